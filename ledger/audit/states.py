"""Every state of a log rebuilt, and every snapshot restored: the half of `audit.verify` that needs
torch."""

import contextlib
from dataclasses import dataclass, field

import torch

from weightledger.ledger import events
from weightledger.ledger.audit.chain import Progress, check_form
from weightledger.ledger.audit.report import Report
from weightledger.ledger.errors import CorruptLedger, Pruned
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies.operands import payload_bytes_of
from weightledger.ledger.events.changes import WHOLE
from weightledger.ledger.history import snapshots
from weightledger.ledger.history.lineage import cheapest
from weightledger.ledger.history.pruning import Prunings
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.replay import Step, apply_step, split
from weightledger.ledger.tensors.digest import chunk_digests, rehash, root
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.tensors.state import StateDigest


def rebuild(history: History, report: Report, progress: Progress, stop: int, total: int) -> None:
    """Rebuild every state of the events from `report.since` on and before `stop`.

    The state before them is restored as any other is.
    """
    fold = _Fold(history, report, history.pruned)
    last: Event | None = None
    if report.since > 0:
        last = history.require(report.since - 1)
        fold.resume(last)
    for event in history.store.scan(report.since, stop):
        if event.kind == events.UPDATED:
            check_form(event)
        if last is None:
            fold.begin(event)
        else:
            fold.advance(event, last)
        last = event
        report.events += 1
        progress(event.seq + 1, total)


def check_snapshots(history: History, report: Report) -> None:
    """Restore every snapshot, and compare its row with what it holds."""
    for snapshot in history.store.snapshots():
        state = history.ways.anchor_state(snapshot)
        for name in state.specs:
            history.anchored(snapshot.node, state, name)
        if snapshots.describe(snapshot.node, state)[0] != snapshot:
            raise CorruptLedger(
                f"the row of the snapshot at event {snapshot.node} is not what the snapshot holds",
                seq=snapshot.node,
            )
        report.snapshots += 1


@dataclass(slots=True)
class _Fold:
    """The state after each event, rebuilt from the first snapshot and every delta.

    Where gc dropped payloads the fold is adrift (`node` None) until it comes to an event whose
    state a snapshot leads to.
    """

    history: History
    report: Report
    pruned: Prunings
    node: int | None = None
    state: StateDigest | None = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    chunks: dict[str, bytearray] = field(default_factory=dict)

    def begin(self, first: Event) -> None:
        anchors = {a.node for a in self.history.store.snapshots()}
        if 0 not in anchors and not self.pruned.snapshot(0):
            raise CorruptLedger("the snapshot of the first state is missing", seq=0)
        self._jump(first.node, first)
        if self.node is None:
            self.report.pruned += 1
        else:
            self.report.states += 1

    def resume(self, last: Event) -> None:
        """Stand after an event whose state was checked before."""
        self._jump(last.node, last)

    def advance(self, event: Event, last: Event) -> None:
        if event.kind not in events.STATE_CHANGING:
            return
        if event.kind == events.ROLLED_BACK:
            self._travel(last.node, event)
        elif self.pruned(event.seq):
            self.node = None
        else:
            if self.node is None:
                self._jump(last.node, last)
            if self.node is not None:
                self._apply(event, undo=False)
                self.node = event.node
        if self.node is None:
            self.report.pruned += 1
            return
        assert self.state is not None
        if self.state.value != event.state_after:
            raise CorruptLedger(
                f"event {event.seq}: the state has digest {self.state.value.hex()}, "
                f"recorded is {event.state_after.hex()}",
                seq=event.seq,
            )
        self.report.states += 1

    def _travel(self, node: int, event: Event) -> None:
        """To the state a rollback leads to: by undo and redo, else from a snapshot."""
        path = None
        if self.node is not None:
            with contextlib.suppress(CorruptLedger, Pruned):
                path = cheapest(self.history.lineage, {node: 0}, event.node, self.pruned)
        if path is None:
            self._jump(event.node, event)
            return
        for seq in path.undo:
            self._apply(self.history.require(seq), undo=True)
        for seq in path.redo:
            self._apply(self.history.require(seq), undo=False)
        self.node = event.node

    def _jump(self, node: int, event: Event) -> None:
        """To a state by the way that restores it; adrift when that was pruned."""
        try:
            self.state, self.tensors = self.history.rebuild(node, event.state_after)
        except Pruned:
            self.node = None
            return
        self.node = node
        self.chunks = {
            name: chunk_digests(lanes(tensor, name)) for name, tensor in self.tensors.items()
        }
        self.report.tensors += len(self.tensors)

    def _apply(self, event: Event, *, undo: bool) -> None:
        assert self.state is not None
        payload = self.history.store.payload(event)
        self.report.payload_bytes += len(payload) - payload_bytes_of(event.body)
        moved: dict[str, tuple[TensorSpec | None, bytes | None]] = {}
        for step in split(event, undo, payload, self.state, {}):
            name = step.change.name
            if step.spec is None:
                del self.tensors[name], self.chunks[name]
            else:
                self._rebuild(step, step.spec)
            digest = root(self.chunks[name]) if step.spec is not None else None
            if digest != step.digest:
                raise CorruptLedger(
                    f"event {event.seq}: tensor {name!r} rebuilds to other bits", seq=event.seq
                )
            moved[name] = (step.spec, digest)
            self.report.tensors += 1
        self.state = self.state.moved(moved)

    def _rebuild(self, step: Step, spec: TensorSpec) -> None:
        name = step.change.name
        if step.change.form == WHOLE:
            assert step.digest is not None
            self.tensors[name] = self.history.whole(spec, step.digest)
            self.chunks[name] = chunk_digests(lanes(self.tensors[name], name))
            return
        written: set[int] = set()
        apply_step(self.tensors[name], step, written)
        rehash(self.chunks[name], lanes(self.tensors[name], name), sorted(written))
