"""A command that a page, a message or a document names is one that there is."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.test_every_command import ALL
from weightledger.verify_offline import main as verify_offline

ROOT = Path(__file__).parents[2]
PAGES = [
    *ROOT.glob("api/dashboard/templates/*.html"),
    *ROOT.glob("api/**/*.py"),
    *ROOT.glob("ledger/**/*.py"),
    *ROOT.glob("docs/*.md"),
    ROOT / "README.md",
]
_NAMED = re.compile(r"(?:`|<code>)weightledger ([a-z][^`<]*)(?:`|</code>)")
_CHECKED = re.compile(r"(?:`|<code>)python -m weightledger\.verify_offline ([^ `<]+)")


def named() -> Iterator[tuple[str, str]]:
    """Where a command is named, and its words."""
    for page in PAGES:
        for words in _NAMED.findall(re.sub(r"\{\{.*?\}\}|\{[a-z_.]+\}", "X", page.read_text())):
            yield str(page.relative_to(ROOT)), " ".join(words.split())


def unknown(words: list[str]) -> list[str]:
    """Those of a command's words that it does not know."""
    path = next((tuple(words[:n]) for n in (2, 1) if tuple(words[:n]) in ALL), None)
    if path is None:
        groups = {known[0] for known in ALL}
        return [] if words[0] in groups and len(words) == 1 else words[:2]
    options = {"--help", "-h"}
    for parameter in ALL[path].params:
        options |= {*parameter.opts, *parameter.secondary_opts}
    rest = words[len(path) :]
    if "--" in rest:  # what follows is another's command
        rest = rest[: rest.index("--")]
    asked = [word.partition("=")[0].strip("[](),.:;…") for word in rest]
    return [word for word in asked if re.match(r"--?[a-z]", word) and word not in options]


def test_every_command_that_is_named_is_there() -> None:
    told = list(named())
    assert len(told) > 150
    assert [one for one in told if unknown(one[1].split())] == []


def test_a_command_that_is_not_there_would_be_noticed() -> None:
    assert unknown(["export", "--log", "-o", "log.jsonl"]) == ["--log"]
    assert unknown(["version", "praise", "v1"]) == ["version", "praise"]


def test_the_offline_verifier_is_called_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = {kind for page in PAGES for kind in _CHECKED.findall(page.read_text())}
    assert kinds
    for kind in kinds:
        monkeypatch.setattr(sys, "argv", ["verify_offline", kind, "--help"])
        with pytest.raises(SystemExit) as ended:
            verify_offline()
        assert ended.value.code == 0, capsys.readouterr().err
