"""The log as people know it from git: filters, forms, lanes, and a pager on a terminal only."""

import contextlib
import io
import sys
from pathlib import Path

import pytest
import torch

from tests.api.test_command import as_json, inside, ok
from tests.terminal import at_terminal
from weightledger import Caller, IncrementalUpdateRequest, Ledger
from weightledger.api.cli import main


def update(log, name: str, *, actor: str | None = None, reason: str | None = None) -> None:
    log.apply(IncrementalUpdateRequest(name, 1.0, actor=actor, reason=reason))


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A ledger with a branch that was left behind."""
    url = f"sqlite:///{tmp_path_factory.mktemp('log')}/l.db"
    with Ledger.open(url) as ledger:
        log = ledger.model("m", base={"w": torch.zeros(100), "b": torch.zeros(4)})
        log.create_version("start")
        update(log, "w", actor="ana", reason="Nightly run 7")
        update(log, "b", actor="bo", reason="nightly fix\x1b[2J")
        update(log, "w", actor="bo")
        log.rollback("update_1", caller=Caller(actor="ana", reason="it got worse"))
        update(log, "b", actor="ana", reason="by hand")
    return ("--database", url)


def test_the_tree_is_drawn(at: tuple[str, str]) -> None:
    lines = ok("log", "--graph", *at).splitlines()
    assert [line.split(" — ")[0].split(" [")[0] for line in lines] == [
        "* 6 (HEAD) update_4 additive b lr 0.01 4 changed",
        "o 5 rolled back to update_1",
        "| * 4 update_3 additive w lr 0.01 100 changed",
        "| * 3 update_2 additive b lr 0.01 4 changed",
        "|/",
        "* 2 update_1 additive w lr 0.01 100 changed",
        ". 1 v0 version created: start",
        "* 0 (v0) registered",
    ]


def test_a_filtered_tree_keeps_its_lanes(at: tuple[str, str]) -> None:
    lines = ok("log", "--graph", "--parameter", "w", *at).splitlines()
    assert [line[:6] for line in lines] == ["* 4 up", "* 2 up"]
    lines = ok("log", "--graph", "--parameter", "b", *at).splitlines()
    assert [line[:8] for line in lines] == ["* 6 (HEA", "| * 3 up"]


def test_what_changed_stands_below(at: tuple[str, str]) -> None:
    out = ok("log", "--graph", "--stat", "-n", "3", *at)
    assert "|  b | 4 " + "~" * 30 in out
    assert "| |  1 tensor changed, 100 elements, " in out
    one = ok("log", "--stat", "--parameter", "w", "-n", "1", *at).splitlines()
    assert one[1].startswith(" w | 100 ~~~")


def test_texts_of_reasons_are_found(at: tuple[str, str]) -> None:
    def seqs(*options: str) -> list[int]:
        return [one["seq"] for one in as_json("log", *options, *at)]

    assert seqs("--reason", "NIGHTLY") == seqs("--text", "nightly") == [3, 2]
    assert seqs("--reason", "nightly bo") == seqs("--reason", "nightly", "--actor", "bo") == [3]
    assert seqs("--reason", "nightly", "--parameter", "w") == [2]
    assert seqs("--reason", "worse", "--kind", "rolled_back") == [5]
    assert seqs("--reason", "worse", "--kind", "updated") == []


def test_a_key_of_metadata_is_asked_for(at: tuple[str, str]) -> None:
    status, out, err = inside("log", "--metadata", "=x", *at)
    assert (status, out) == (2, "") and "KEY or KEY=VALUE, got '=x'" in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_without_our_characters_is_shown_the_rest(
    at: tuple[str, str], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "argv", ["weightledger", "log", *at])
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as ended:
        main()
    printed = shown.buffer.getvalue().decode(encoding)
    assert ended.value.code in (0, None)
    assert ("|Δ|" if encoding == "utf-8" else "|\\u0394|") in printed
    assert "by hand" in printed


def test_what_strangers_wrote_moves_no_cursor(at: tuple[str, str]) -> None:
    for form in ("--oneline", "--graph", "--stat"):
        out = ok("log", form, *at)
        assert "\x1b" not in out
        assert "nightly fix\\x1b[2J" in out


def test_forms_for_people_and_for_programs_do_not_mix(at: tuple[str, str]) -> None:
    for form in ("--oneline", "--graph", "--stat"):
        status, _, err = inside("log", form, "--json", *at)
        assert status == 2
        assert "for people" in err


def test_only_a_terminal_has_a_pager(at: tuple[str, str], tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    pager = tmp_path / "pager"
    pager.write_text(f'#!/bin/sh\necho pager "$LESS"\ntee {seen} | head -2\n')
    pager.chmod(0o755)
    env = {"PAGER": str(pager), "LESS": ""}
    with at_terminal("log", *at, lines=4, env=env) as terminal:
        terminal.wait_for("update_4")
        assert terminal.end() == 0
        assert terminal.output.startswith("pager \r\n")
    assert "\x1b[" in seen.read_text()  # in colours
    assert "update_1" in seen.read_text()
    seen.unlink()
    for options, lines in (((), 40), (("--no-pager",), 4), (("--json",), 4)):
        with at_terminal("log", *options, *at, lines=lines, env=env) as terminal:
            terminal.wait_for("event_0")
            assert terminal.end() == 0
        assert not seen.exists()
    with at_terminal("log", *at, lines=4, env={"PAGER": "no-such-pager"}) as terminal:
        terminal.wait_for("event_0")
        assert terminal.end() == 0
