"""Verification: every event checked, every state rebuilt, every digest recomputed.

Works on the database alone. The chain of events is checked first (`ledger.audit.chain`); then their
payloads are applied to a rebuilt state, and each resulting tensor and state must have the digest
the event recorded. The first event that does not hold is reported.
"""

import contextlib
from dataclasses import dataclass, field

import torch

from weightledger.ledger import events
from weightledger.ledger.audit import parallel, tree
from weightledger.ledger.audit.chain import Progress
from weightledger.ledger.errors import CorruptLedger, Pruned
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies import VersionCreated, body_of, pin_of
from weightledger.ledger.events.changes import WHOLE
from weightledger.ledger.history.lineage import cheapest
from weightledger.ledger.history.pruning import Prunings
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.replay import Step, apply_step, split
from weightledger.ledger.store import EventFilter, Listed
from weightledger.ledger.tensors.digest import chunk_digests, rehash, root
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.tensors.state import StateDigest


@dataclass(slots=True)
class Report:
    """What a verification covered, and the first thing that did not hold.

    `pruned` counts state changes whose states gc made unreachable: of these the chain and the
    digests were checked, but no bits rebuilt. `bad_seq` is the first bad event, None when the
    trouble has no seq or there is none.
    """

    model: str
    events: int = 0
    states: int = 0
    tensors: int = 0
    payload_bytes: int = 0
    snapshots: int = 0
    pruned: int = 0
    head_seq: int | None = None
    head_digest: bytes | None = None
    head_hash: bytes | None = None
    tree_root: bytes | None = None
    problem: str | None = None
    bad_seq: int | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None


def verify(
    history: History,
    progress: Progress | None = None,
    *,
    states: bool = True,
    processes: int = 1,
) -> Report:
    """Check one model's whole log; never raises for what it finds, reports it instead.

    Without `states` no payload is read and no state rebuilt: hashes, order, rows and annotations
    only. `processes` share the work of that part. Starts over when gc drops something meanwhile.
    """
    told = progress or (lambda done, total: None)
    while True:
        report, runs = Report(history.model), _gc_runs(history)
        try:
            _verify(history, report, told, states, processes)
        except CorruptLedger as error:
            if _gc_runs(history) != runs:
                continue
            report.problem, report.bad_seq = str(error), error.seq
        return report


def _gc_runs(history: History) -> int | None:
    """How often gc dropped something; None where the log is too damaged to say."""
    try:
        return history.pruned.runs
    except CorruptLedger:
        return None


def _verify(
    history: History, report: Report, progress: Progress, states: bool, processes: int
) -> None:
    total = sound = history.head().seq + 1
    broken: CorruptLedger | None = None
    try:
        watch = None if states else progress
        parallel.check(history.store, total, processes, watch)
    except CorruptLedger as error:
        broken, sound = error, error.seq or 0
    if states:
        _rebuild(history, report, progress, sound, total)
    else:
        report.events = sound
    if broken is not None:
        raise broken
    head = history.require(total - 1)
    report.head_seq, report.head_digest, report.head_hash = head.seq, head.state_after, head.hash
    report.tree_root = tree.check(history.store, total)
    _check_listed(history)
    if states:
        _check_snapshots(history, report)
    weak = history.store.home.weaknesses()
    if weak:
        raise CorruptLedger(f"the database is not append-only: {'; '.join(weak)}")


def _rebuild(history: History, report: Report, progress: Progress, stop: int, total: int) -> None:
    """Rebuild every state of the events before `stop`."""
    fold: _Fold | None = None
    last: Event | None = None
    for event in history.store.scan(0, stop):
        if fold is None:
            fold = _Fold(history, report, history.pruned)
            fold.begin(event)
        else:
            assert last is not None
            fold.advance(event, last)
        last = event
        report.events += 1
        progress(report.events, total)


def _check_listed(history: History) -> None:
    """The versions on the list are those that were named and not retired, pinned as was said."""
    store, head = history.store, -1
    while head != (head := history.head().seq):  # until nothing is appended meanwhile
        found = store.listed_versions()
    kinds = (
        *(events.VERSION_CREATED, events.VERSION_RETIRED),
        *(events.VERSION_PINNED, events.VERSION_UNPINNED),
    )
    listed: dict[int | None, Listed] = {}
    said = EventFilter(kinds=kinds, max_seq=head)
    for event in store.select(said, limit=head + 1, newest_first=False):
        if event.kind == events.VERSION_CREATED:
            assert event.number is not None
            node = body_of(event, VersionCreated).names.node
            listed[event.number] = Listed(event.number, event.seq, node, False)
        elif event.kind == events.VERSION_RETIRED:
            listed.pop(event.number, None)
        else:
            number, pinned = pin_of(event)
            if number in listed:
                listed[number] = listed[number]._replace(pinned=pinned)
    if found != sorted(listed.values()):
        raise CorruptLedger("the list of versions is not what the log says")


def _check_snapshots(history: History, report: Report) -> None:
    for snapshot in history.store.snapshots():
        state = history.anchor_state(snapshot)
        for name in state.specs:
            history.anchored(snapshot.node, state, name)
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
        self.report.payload_bytes += len(payload)
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
