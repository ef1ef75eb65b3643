"""Verification: every event checked, every state rebuilt, every digest recomputed.

Works on the database alone. Events are read in order; their hashes, chain, counters and annotations
are checked, their payloads are applied to a rebuilt state, and each resulting tensor and state must
have the digest the event recorded. The first event that does not hold ends the run.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ledger import events
from ledger.codecs.frames import apply_frames
from ledger.digest import StateDigest, chunk_digests, rehash, root
from ledger.errors import CorruptLedger
from ledger.events import Counts, Event
from ledger.history import History
from ledger.lineage import cheapest
from ledger.tensors import lanes

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Report:
    """What a verification covered, and the first thing that did not hold.

    `bad_seq` is the first bad event, None when the trouble has no seq or there is none.
    """

    model: str
    events: int = 0
    states: int = 0
    tensors: int = 0
    payload_bytes: int = 0
    snapshots: int = 0
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
    """The state after each event, rebuilt from the first snapshot and every delta."""

    history: History
    report: Report
    tensors: dict[str, torch.Tensor] = field(init=False)
    chunks: dict[str, bytearray] = field(init=False)
    state: StateDigest = field(init=False)

    def __post_init__(self) -> None:
        anchors = {
            anchor.node: anchor for anchor in self.history.store.snapshots(self.history.model_id)
        }
        if 0 not in anchors:
            raise CorruptLedger("the snapshot of the first state is missing", seq=0)
        self.state = self.history.anchor_state(anchors[0])
        self.tensors = {
            name: self.history.anchored(0, self.state, name) for name in self.state.specs
        }
        self.chunks = {
            name: chunk_digests(lanes(tensor, name)) for name, tensor in self.tensors.items()
        }
        self.report.states += 1
        self.report.tensors += len(self.tensors)

    def advance(self, event: Event, last: Event) -> None:
        if event.kind not in events.STATE_CHANGING:
            return
        if event.kind == events.ROLLED_BACK:
            path = cheapest(self.history.lineage, {last.node: 0}, event.node)
            for seq in path.undo:
                self._apply(self.history.require(seq), undo=True)
            for seq in path.redo:
                self._apply(self.history.require(seq), undo=False)
        else:
            self._apply(event, undo=False)
        if self.state.value != event.state_after:
            raise CorruptLedger(
                f"event {event.seq}: the state has digest {self.state.value.hex()}, "
                f"recorded is {event.state_after.hex()}",
                seq=event.seq,
            )
        self.report.states += 1

    def _apply(self, event: Event, *, undo: bool) -> None:
        payload = memoryview(self.history.store.payload(event))
        self.report.payload_bytes += len(payload)
        if len(payload) != sum(change.size for change in event.changes):
            raise CorruptLedger(f"event {event.seq}: payload has another length", seq=event.seq)
        digests: dict[str, bytes] = {}
        for change in event.changes:
            data, payload = payload[: change.size], payload[change.size :]
            if change.name not in self.tensors:
                raise CorruptLedger(
                    f"event {event.seq} changes unknown tensor {change.name!r}", seq=event.seq
                )
            bits = lanes(self.tensors[change.name], change.name)
            ordered = self.state.specs[change.name].element.ordered
            try:
                touched = apply_frames(bits, data, ordered, undo=undo)
            except CorruptLedger as error:
                raise CorruptLedger(f"event {event.seq}: {error}", seq=event.seq) from error
            rehash(self.chunks[change.name], bits, touched.tolist())
            digests[change.name] = root(self.chunks[change.name])
            if digests[change.name] != (change.before if undo else change.after):
                raise CorruptLedger(
                    f"event {event.seq}: tensor {change.name!r} rebuilds to other bits",
                    seq=event.seq,
                )
            self.report.tensors += 1
        self.state = self.state.with_digests(digests)


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)
