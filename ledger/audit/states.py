"""Every state of a log rebuilt, and every snapshot restored: the half of `audit.verify` that needs
torch."""

import contextlib
from dataclasses import dataclass, field

import torch

from weightledger.ledger import events
from weightledger.ledger.audit.chain import Progress, check_form
from weightledger.ledger.audit.report import Report
from weightledger.ledger.audit.split_payloads import Chunks, checked_chunks, spans_of_share
from weightledger.ledger.errors import CorruptLedger, Pruned
from weightledger.ledger.events import Event
from weightledger.ledger.events.changes import WHOLE
from weightledger.ledger.history import snapshots
from weightledger.ledger.history.lineage import cheapest
from weightledger.ledger.history.pruning import Prunings
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.rebuilding import spans_of
from weightledger.ledger.history.replay import split
from weightledger.ledger.history.steps import ReplayStep, apply_step
from weightledger.ledger.parallel.shares import EVERYTHING, Share
from weightledger.ledger.store.payloads import Portion
from weightledger.ledger.store.sharded_payloads import is_sharded
from weightledger.ledger.tensors.digest import chunk_digests, rehash, root
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.tensors.state import StateDigest


def rebuild(
    history: History,
    report: Report,
    progress: Progress,
    stop: int,
    total: int,
    share: Share = EVERYTHING,
) -> list[Chunks]:
    """Rebuild every state of the events from `report.since` on and before `stop`.

    The state before them is restored as any other is. Of a share its tensors are rebuilt, and of
    the others the recorded digests are followed; given are then the digests of payload chunks that
    only all shares together can check.
    """
    fold = _Fold(history, report, history.pruned, share)
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
    return fold.chunks_read


def check_snapshots(history: History, report: Report, share: Share = EVERYTHING) -> None:
    """Restore every snapshot, a share's tensors of it, and compare its row with what it holds."""
    for snapshot in history.store.snapshots():
        state = history.ways.anchor_state(snapshot)
        for name in share.of(state.specs):
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
    share: Share
    node: int | None = None
    state: StateDigest | None = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    chunks: dict[str, bytearray] = field(default_factory=dict)
    chunks_read: list[Chunks] = field(default_factory=list)

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
            self.state, self.tensors = self._restored(node, event.state_after)
        except Pruned:
            self.node = None
            return
        self.node = node
        self.chunks = {
            name: chunk_digests(lanes(tensor, name)) for name, tensor in self.tensors.items()
        }
        self.report.tensors += len(self.tensors)

    def _restored(self, node: int, digest: bytes) -> tuple[StateDigest, dict[str, torch.Tensor]]:
        if self.share == EVERYTHING:
            return self.history.rebuild(node, digest)
        state = self.history.digests(node)
        return state, self.history.tensors(node, digest, self.share.of(state.specs))

    def _portion(self, event: Event) -> Portion:
        """What the share needs of an event's payload, checked as far as it can be alone."""
        store = self.history.store
        if self.share == EVERYTHING:
            return Portion.whole(store.payload(event))
        if is_sharded(event):  # what lies where follows from its index: the first share checks it
            if self.share.is_first:
                return Portion.whole(store.payload(event))
            (portion,) = store.portions([(event, spans_of(event, self.share))])
            return portion
        (portion,) = store.portions([(event, spans_of_share(event, self.share))])
        self.chunks_read += checked_chunks(event, self.share, portion)
        return portion

    def _apply(self, event: Event, *, undo: bool) -> None:
        assert self.state is not None
        portion = self._portion(event)
        moved: dict[str, tuple[TensorSpec | None, bytes | None]] = {}
        for step in split(event, undo, portion, self.state, {}):
            name = step.change.name
            if name not in self.share:
                moved[name] = (step.spec, step.digest)
                continue
            self.report.payload_bytes += step.change.size
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

    def _rebuild(self, step: ReplayStep, spec: TensorSpec) -> None:
        name = step.change.name
        if step.change.form == WHOLE:
            assert step.digest is not None
            self.tensors[name] = self.history.whole(spec, step.digest)
            self.chunks[name] = chunk_digests(lanes(self.tensors[name], name))
            return
        written: set[int] = set()
        apply_step(self.tensors[name], step, written)
        rehash(self.chunks[name], lanes(self.tensors[name], name), sorted(written))
