"""What the pages call in Python is there to be called."""

import re
from pathlib import Path

import pytest

from weightledger import DynamicModelManager, Ledger
from weightledger.ledger.log import Log

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
OWNERS = {"manager": DynamicModelManager, "log": Log, "ledger": Ledger}

_SPAN = re.compile(r"`([^`\n]+)`")
_CALL = re.compile(r"(?<![\w./])(manager|log|ledger)\.([a-z_]+)\(")
_BARE = re.compile(r"(?:await )?([a-z_]+)\(.*\)")
_AFTER = re.compile(r"[Ii]n Python[ :][^\n]*?(?:\. |\.$|$)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_method_that_a_page_calls_exists(page: Path) -> None:
    """Of the manager, the log and the ledger; a sentence's further calls are of the same object."""
    text = page.read_text("utf-8")
    for span in _SPAN.findall(text):
        for owner, name in _CALL.findall(span):
            assert hasattr(OWNERS[owner], name), f"{page.name}: {owner}.{name}"
    for sentence in _AFTER.findall(text):
        owner = None
        for span in _SPAN.findall(sentence):
            if called := _CALL.search(span):
                owner = called[1]
            elif owner is not None and (bare := _BARE.fullmatch(span)):
                assert hasattr(OWNERS[owner], bare[1]), f"{page.name}: {owner}.{bare[1]}"


def test_adapters_are_loaded_alike_by_manager_and_log() -> None:
    """As docs/adapters.md says."""
    for name in ("load_adapter", "unload_adapter", "merge_adapter"):
        assert callable(getattr(Log, name)) and callable(getattr(DynamicModelManager, name))
