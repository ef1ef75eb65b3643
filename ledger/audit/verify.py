"""Verification: every event checked, every state rebuilt, every digest recomputed.

Works on the database alone. Events are read in order; their hashes, chain, counters and annotations
are checked, their payloads are applied to a rebuilt state, and each resulting tensor and state must
have the digest the event recorded. The first event that does not hold ends the run.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ledger import events
from ledger.digest import StateDigest, chunk_digests, rehash, root
from ledger.errors import CorruptLedger, Pruned
from ledger.events import Counts, Event
from ledger.history import History
from ledger.lineage import cheapest
from ledger.replay import Step, apply_step, split
from ledger.tensors import TensorSpec, lanes

Progress = Callable[[int, int], None]


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
    problem: str | None = None
    bad_seq: int | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None


def verify(history: History, progress: Progress | None = None) -> Report:
    """Check one model's whole log; never raises for what it finds, reports it instead."""
    report = Report(history.model)
    try:
        _verify(history, report, progress or (lambda done, total: None))
    except CorruptLedger as error:
        report.problem, report.bad_seq = str(error), error.seq
    return report


def _verify(history: History, report: Report, progress: Progress) -> None:
    total = history.head().seq + 1
    fold: _Fold | None = None
    last: Event | None = None
    for event in history.store.scan(history.model_id):
        _check_place(event, last, history.model)
        _check_annotation(history, event)
        if fold is None:
            fold = _Fold(history, report)
            fold.begin(event)
        else:
            assert last is not None
            fold.advance(event, last)
        last = event
        report.events += 1
        report.head_seq, report.head_hash = event.seq, event.hash
        report.head_digest = event.state_after
        progress(report.events, total)
    if last is None or last.seq + 1 != total:
        raise CorruptLedger("the log has no first event" if last is None else "the log has a gap")
    _check_snapshots(history, report)


def _check_place(event: Event, last: Event | None, model: str) -> None:
    """The event follows `last`, and its running values are what they must be."""
    seq = 0 if last is None else last.seq + 1
    if event.seq != seq:
        raise CorruptLedger(f"event {seq} is missing, event {event.seq} follows", seq=seq)
    before = last.counts if last else Counts()
    expected: dict[str, object] = {
        "model": model,
        "prev": last.hash if last else None,
        "state_before": last.state_after if last else None,
        "counts": Counts(
            before.updates + (event.series == events.UPDATES),
            before.applied + (event.kind == events.UPDATED),
            before.versions + (event.series == events.VERSIONS),
        ),
    }
    if event.kind not in events.STATE_CHANGING:
        assert last is not None
        expected |= {"node": last.node, "parent": None, "state_seq": last.state_seq}
        expected |= {"state_after": last.state_after}
    else:
        expected |= {"parent": last.node if last else None, "state_seq": event.seq}
        if event.kind != events.ROLLED_BACK:
            expected["node"] = event.seq
    if event.series == events.UPDATES:
        expected["number"] = before.updates + 1
    if event.series == events.VERSIONS:
        expected["number"] = before.versions
    for name, value in expected.items():
        if getattr(event, name) != value:
            raise CorruptLedger(
                f"event {seq}: {name} is {_shown(getattr(event, name))}, expected {_shown(value)}",
                seq=seq,
            )
    if last is not None and event.recorded_at < last.recorded_at:
        raise CorruptLedger(f"event {seq} was recorded before event {last.seq}", seq=seq)


def _check_annotation(history: History, event: Event) -> None:
    annotation = history.store.annotation(history.model_id, event.seq)
    for name in ("actor", "reason", "metadata"):
        recorded = getattr(event, f"{name}_digest")
        found = annotation.digest(name) if annotation else None
        if recorded != found:
            raise CorruptLedger(
                f"event {event.seq}: its {name} is not the one recorded", seq=event.seq
            )


def _check_snapshots(history: History, report: Report) -> None:
    for snapshot in history.store.snapshots(history.model_id):
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
    node: int | None = None
    state: StateDigest | None = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    chunks: dict[str, bytearray] = field(default_factory=dict)

    def begin(self, first: Event) -> None:
        anchors = {a.node for a in self.history.store.snapshots(self.history.model_id)}
        if 0 not in anchors and not self.history.pruned.snapshot(0):
            raise CorruptLedger("the snapshot of the first state is missing", seq=0)
        self._jump(first.node, first)

    def advance(self, event: Event, last: Event) -> None:
        if event.kind not in events.STATE_CHANGING:
            return
        if event.kind == events.ROLLED_BACK:
            self._travel(last.node, event)
        elif self.history.pruned(event.seq):
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
                path = cheapest(self.history.lineage, {node: 0}, event.node, self.history.pruned)
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
        if step.change.form == events.WHOLE:
            assert step.digest is not None
            self.tensors[name] = self.history.whole(spec, step.digest)
        touched = apply_step(self.tensors[name], step)
        bits = lanes(self.tensors[name], name)
        if touched is None:
            self.chunks[name] = chunk_digests(bits)
        else:
            rehash(self.chunks[name], bits, touched.tolist())


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)
