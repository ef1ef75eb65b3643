"""What is true of every command: help, an example, exit statuses, and forms for programs."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from tests.api.test_command import inside
from weightledger.api.cli import COMMANDS, app


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command there is, loaded, by the words that call it."""
    root = get_command(app)
    context = root.make_context("weightledger", ["config", "show"], resilient_parsing=True)
    for name in root.list_commands(context):
        command = root.get_command(context, name).load()
        if hasattr(command, "list_commands"):
            if command.invoke_without_command:  # it does something by itself, too
                yield (name,), command
            inner = command.make_context(name, [], resilient_parsing=True)
            for word in command.list_commands(inner):
                yield (name, word), command.get_command(inner, word)
        else:
            yield (name,), command


ALL = dict(commands())
LISTINGS = [
    ("log",),
    ("version", "list"),
    ("keys", "list"),
    ("approvals", "list"),
    ("hold", "list"),
    ("trials", "list"),
    ("fleet", "status"),
    ("rollout", "list"),
    ("rules", "list"),
    ("config", "show"),
    ("config", "list"),
]
# What these print has a form of its own, or there is nothing to print.
PLAIN = [
    ("serve",),
    ("follow",),
    ("db", "upgrade"),
    ("db", "role"),
    ("checkpoint",),
    ("witness", "serve"),
    ("step",),
]
WRITES = [
    ("update",),
    ("rollback",),
    ("version", "create"),
    ("version", "pin"),
    ("version", "unpin"),
    ("version", "retire"),
    ("trials", "promote"),
    ("trials", "abort"),
    ("learn",),
    ("approvals", "approve"),
    ("approvals", "reject"),
    ("hold", "place"),
    ("hold", "release"),
    ("redact",),
    ("gc",),
]


def options(words: tuple[str, ...]) -> set[str]:
    return {name for one in ALL[words].params for name in one.opts}


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_each_has_help_with_an_example_that_parses(words: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        status, out, _ = inside(*words, flag)
        assert status == 0
        assert "Usage" in out
    command = ALL[words]
    example = re.search(r"Example: (?:[A-Z_]+=\S+ )?weightledger (.*?)(?: [|>]|$)", command.help)
    assert example, command.help
    given = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", example[1])]
    assert tuple(given[: len(words)]) == words
    command.make_context(words[-1], given[len(words) :])  # raises where it is no such usage
    for one in command.params:
        assert one.help or one.name == "help", f"{words} {one.name}"
    # The terminal's width breaks lines, and nothing else does.
    assert not re.search(r"[^\n]\n[^\n]", command.help.strip()), command.help


@pytest.mark.parametrize("columns", [40, 80, 300])
@pytest.mark.parametrize(
    "words", [(), *dict.fromkeys(words[:1] for words in ALL if len(words) > 1), *ALL]
)
def test_help_has_every_name_whole(words: tuple[str, ...], columns: int, monkeypatch) -> None:
    """However wide the terminal is: flags, and commands with all that is said of them."""
    monkeypatch.setenv("COLUMNS", str(columns))
    status, out, _ = inside(*words, "--help")
    assert status == 0
    shown = set(re.findall(r"[^\s,]+", out))
    inner = [ALL[name] for name in ALL if name[:-1] == words]
    if words in ALL:
        for one in ALL[words].params:
            if one.param_type_name == "option":
                assert shown >= {*one.opts, *one.secondary_opts}
            else:
                assert re.search(rf"^ +{one.display_name_raw}\b", out, re.M)
    elif words:
        assert shown >= {one.name for one in inner}
    else:
        assert shown >= set(COMMANDS)
        spaced = " ".join(out.split())
        assert all(" ".join(one.help.split()) in spaced for one in COMMANDS.values())


def test_a_number_of_events_has_a_long_name_too() -> None:
    """The one that REST has."""
    assert options(("log",)) >= {"-n", "--limit"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_in_the_list_is_the_commands_own_first_line(name: str) -> None:
    context = get_command(app).make_context("w", ["status"], resilient_parsing=True)
    command = get_command(app).get_command(context, name).load()
    assert command.help.split("\n")[0] == COMMANDS[name].help


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_wrong_usage_is_status_2_and_no_traceback(words: tuple[str, ...]) -> None:
    status, _, err = inside(*words, "--no-such-option")
    assert status == 2
    assert "Traceback" not in err


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_each_that_lists_has_every_form(words: tuple[str, ...]) -> None:
    if words in LISTINGS:
        assert {"--json", "--csv", "--quiet", "-q"} <= options(words)
    elif "list" in words or words == ("log",):
        raise AssertionError(f"{words} lists: add it")
    elif words not in PLAIN:
        assert "--json" in options(words)


@pytest.mark.parametrize("words", WRITES, ids=" ".join)
def test_each_that_writes_takes_who_and_why(words: tuple[str, ...]) -> None:
    assert {"--reason", "-m", "--actor"} <= options(words)


@pytest.mark.parametrize(
    "words",
    [
        *(("status",), ("log",), ("show",), ("replay",), ("version", "list"), ("version", "show")),
        *(("diff",), ("blame",)),
    ],
    ids=" ".join,
)
def test_each_that_reads_takes_a_url(words: tuple[str, ...]) -> None:
    assert {"--url", "--api-key", "--data-dir", "--database"} <= options(words)


def test_a_program_that_closes_the_pipe_gets_no_traceback() -> None:
    """`weightledger config list | head -1`"""
    ran = subprocess.run(
        f"{sys.executable} -m weightledger config list --json | head -c 1",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell: str) -> None:
    def completed(words: str, number: int) -> str:
        environment = {
            **os.environ,
            "_WEIGHTLEDGER_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": words,
            "COMP_CWORD": str(number),
            "_TYPER_COMPLETE_ARGS": words,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
        code = (
            "import sys; sys.argv=['weightledger']; from weightledger.api.cli import main; main()"
        )
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        ).stdout

    assert "rollback" in completed("weightledger ro", 1)
    assert "--reason" in completed("weightledger version create --re", 3)
    assert "create" in completed("weightledger version cr", 2)
