"""Whatever is damaged or gone of what a question reads: the right answer, or an error with its seq.

Never another answer, and never an exception that is not the ledger's.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults import folders, models
from tests.faults.folders import HEAD, MODEL
from weightledger import Caller, Ledger, TorchEngine
from weightledger.ledger.errors import CorruptLedger, LedgerError
from weightledger.ledger.questions import Questions

LAST = HEAD + 6
LISTED = (HEAD + 1, HEAD + 2, LAST)  # the events of versions

Ask = Callable[[Questions], Any]

ASKED: dict[str, Ask] = {
    "events": lambda log: log.events(),
    "events in order": lambda log: log.history.events(newest_first=False),
    "a page of events": lambda log: log.events(limit=3, max_seq=4),
    "events of somebody": lambda log: log.events(actors=["ana"]),
    "events of a parameter": lambda log: log.events(parameter="2.bias"),
    "events by their words": lambda log: log.events(text="worse"),
    "versions": lambda log: log.versions(),
    "diff": lambda log: log.diff("seq:0", "head"),
    "diff across branches": lambda log: log.diff("seq:4", "seq:3"),
    "each": lambda log: log.each("seq:0", "head"),
    "replay": lambda log: log.replayed("seq:2").weights,
    "what-if": lambda log: log.what_if(["update_7", "update_2"]).state.weights,
    "bisect": lambda log: log.bisect("seq:0", "head", _is_good)["first_bad"],
    "blame": lambda log: log.blame("2.bias"),
    "blame of an element": lambda log: log.blame("0.weight", "3,4"),
}


def _is_good(state: Any) -> bool:
    return bool(state.seq < HEAD)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Updates of tensors small and large, a branch that was left, versions, snapshots."""
    folder = folders.make_folder(tmp_path_factory.mktemp("questions") / "data")
    generator = torch.Generator().manual_seed(8)
    with folders.opened(folder) as ledger:
        log = ledger.model(MODEL, engine=TorchEngine(models.factory()), on_mismatch="ledger")
        log.create_version("one")
        log.apply(folders.request("2.bias", torch.randn(4, generator=generator), actor="ana"))
        log.apply(folders.request("0.weight", torch.randn(400, 400, generator=generator)))
        log.snapshot()
        log.apply(folders.request("2.bias", torch.randn(4, generator=generator), reason="worse"))
        log.create_version("two")
        assert log.history.head().seq == LAST
    return folder


@pytest.fixture(scope="module")
def right(pristine: Path) -> dict[str, Any]:
    return {name: ask(pristine, one) for name, one in ASKED.items()}


def ask(folder: Path, question: Ask) -> Any:
    """Its answer as plain values, or the error of the ledger that it ends in."""
    try:
        with Ledger.open(folders.url_of(folder), upgrade=False, guarded=False) as ledger:
            return _plain(question(Questions(ledger.history(MODEL))))
    except LedgerError as error:
        return error


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.view(torch.uint8).tolist() if value.dim() else value.item()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    return repr(value)


def damaged(pristine: Path, to: Path, statement: str, *flip: str) -> Path:
    copy = folders.copy_folder(pristine, to)
    with folders.without_triggers(copy) as connection:
        if flip:
            folders.flip(connection, *flip)
        else:
            connection.execute(statement)
    return copy


@pytest.mark.parametrize("how", ["gone", "flipped"])
@pytest.mark.parametrize("seq", range(LAST))
def test_an_event_that_is_damaged_or_gone_is_named_or_not_needed(
    pristine: Path, right: dict[str, Any], tmp_path: Path, seq: int, how: str
) -> None:
    where = folders.event(seq)
    flip = () if how == "gone" else ("events", "header", where)
    folder = damaged(pristine, tmp_path / "data", f"DELETE FROM events WHERE {where}", *flip)
    failed = set()
    for name, question in ASKED.items():
        answer = ask(folder, question)
        if isinstance(answer, LedgerError):
            assert isinstance(answer, CorruptLedger), (name, answer)
            named = answer.seq == seq or f"event {seq}" in str(answer)
            assert named or (how == "gone" and "event of update_" in str(answer)), (name, answer)
            failed.add(name)
        else:
            assert answer == right[name], name
    assert {"events", "events in order"} <= failed
    assert ("versions" in failed) == (seq in LISTED)


def test_a_block_that_names_an_event_which_is_gone_says_so(pristine: Path, tmp_path: Path) -> None:
    """Of a long log blocks say which events have which words."""
    copy = folders.copy_folder(pristine, tmp_path / "data")
    with folders.opened(copy) as ledger:
        log = ledger.model(MODEL, engine=TorchEngine(models.factory()), on_mismatch="ledger")
        for _ in range(300):
            log.create_version("x", caller=Caller(reason="word"))
        assert len(log.events(text="word")) == 300
    folder = damaged(copy, tmp_path / "gone", f"DELETE FROM events WHERE {folders.event(40)}")
    found = ask(folder, lambda log: log.events(text="word"))
    assert isinstance(found, CorruptLedger)
    assert found.seq == 40
