"""Deltas that are applied in batches, the next one read meanwhile, lead where they lead at once."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from weightledger import Ledger
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import Event
from weightledger.ledger.history import replay as replaying
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.replay import Move, RebuiltTensors, Sources, replay
from weightledger.ledger.store.payloads import Portion
from weightledger.ledger.tensors.state import StateDigest

NAMES, WEIGHTS, UPDATES = ("a", "b", "c"), 3000, 8
A_BATCH = 3  # events: as many as the tensors they change are long


@dataclass
class Walk:
    """A log of updates that change every weight, and where they begin and end.

    `told` is what was read of it and taken up, in this order; `reading` counts reads under way.
    """

    history: History
    base: StateDigest
    first: dict[str, torch.Tensor]
    last: dict[str, torch.Tensor]
    events: list[Event]
    told: list[tuple[str, int]] = field(default_factory=list)
    reading: int = 0
    before_read: Callable[[Sequence[Event]], None] = lambda _: None

    def payloads(self, events: Sequence[Event]) -> Sequence[Portion]:
        self.reading += 1
        try:
            self.told += [("read", event.seq) for event in events]
            self.before_read(events)
            return self.history.store.unchecked(events)
        finally:
            self.reading -= 1

    def run(self, tensor: Callable[[str], torch.Tensor] | None = None) -> RebuiltTensors:
        def copy(name: str) -> torch.Tensor:
            return self.first[name.removeprefix("weights/")].clone()

        moves = (Move(event, undo=False) for event in self.events)
        sources = Sources(tensor or copy, self.payloads, self.history.whole)
        end = self.events[-1].state_after
        return replay(self.base, moves, sources, end, self.history.pool)


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Walk]:
    chance = torch.Generator().manual_seed(5)
    weights = {name: torch.randn(WEIGHTS, generator=chance) for name in NAMES}
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        log = ledger.model("m", base=weights)
        base, first = log.projector.live.state, {n: t.clone() for n, t in weights.items()}
        events = []
        for _ in range(UPDATES):
            for tensor in weights.values():
                tensor.mul_(torch.randn(WEIGHTS, generator=chance).mul_(1e-4).add_(1))
            events.append(log.record(weights))
        sizes = [event.payload_size for event in events]
        assert 4 * WEIGHTS * len(NAMES) / max(sizes) > A_BATCH - 1
        assert 4 * WEIGHTS * len(NAMES) / min(sizes) < A_BATCH
        monkeypatch.setattr(replaying, "_LEAST_BATCH_BYTES", 1)
        walk = Walk(log.history, base, first, weights, events)
        split = replaying.split

        def told(event: Event, *rest: object) -> object:
            walk.told.append(("taken", event.seq))
            return split(event, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(replaying, "split", told)
        yield walk
        assert walk.reading == 0, "reads are left behind"
        assert log.history.pool.submit(lambda: 7).result() == 7


def test_batches_lead_to_the_same_bits_and_one_is_read_ahead(walk: Walk) -> None:
    rebuilt = walk.run()
    for name, tensor in walk.last.items():
        assert torch.equal(rebuilt.tensors[f"weights/{name}"], tensor)
    seqs = [event.seq for event in walk.events]
    assert sorted(seq for what, seq in walk.told if what == "read") == seqs
    assert [seq for what, seq in walk.told if what == "taken"] == seqs
    ahead = most = 0
    for what, _ in walk.told:
        ahead += 1 if what == "read" else -1
        most = max(most, ahead)
    assert most <= 2 * A_BATCH


def test_few_bytes_are_one_batch(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "_LEAST_BATCH_BYTES", 1 << 30)
    walk.run()
    assert [what for what, _ in walk.told] == ["read"] * UPDATES + ["taken"] * UPDATES


def test_a_read_that_fails_is_told_once_the_others_have_ended(walk: Walk) -> None:
    def failing(events: Sequence[Event]) -> None:
        if walk.events[A_BATCH + 1] in events:
            raise CorruptLedger("the disk is gone")

    walk.before_read = failing
    with pytest.raises(CorruptLedger, match="the disk is gone"):
        walk.run()


def test_a_batch_that_fails_waits_for_what_is_read_ahead(walk: Walk) -> None:
    failed = threading.Event()

    def waiting(events: Sequence[Event]) -> None:
        if walk.events[0] not in events and walk.events[A_BATCH - 1] not in events:
            assert failed.wait(600)

    def failing(_: str) -> torch.Tensor:
        failed.set()
        raise CorruptLedger("no such tensor")

    walk.before_read = waiting
    with pytest.raises(CorruptLedger, match="no such tensor"):
        walk.run(failing)
