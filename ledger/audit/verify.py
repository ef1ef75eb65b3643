"""Verification: every event checked, every state rebuilt, every digest recomputed.

Works on the database alone. The chain of events is checked first (`ledger.audit.chain`); then their
payloads are applied to a rebuilt state, and each resulting tensor and state must have the digest
the event recorded. The first event that does not hold is reported.
"""

from dataclasses import dataclass, field

import torch

from ledger import events
from ledger.audit import chain
from ledger.audit.chain import Progress
from ledger.codecs.frames import apply_frames
from ledger.digest import StateDigest, chunk_digests, rehash, root
from ledger.errors import CorruptLedger
from ledger.events import Event
from ledger.history import History
from ledger.lineage import cheapest
from ledger.store import EventFilter
from ledger.tensors import lanes


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


def verify(
    history: History,
    progress: Progress | None = None,
    *,
    states: bool = True,
    processes: int = 1,
) -> Report:
    """Check one model's whole log; never raises for what it finds, reports it instead.

    Without `states` no payload is read and no state rebuilt: hashes, order, rows and annotations
    only. `processes` share the work of that part.
    """
    report = Report(history.model)
    try:
        _verify(history, report, progress or (lambda done, total: None), states, processes)
    except CorruptLedger as error:
        report.problem, report.bad_seq = str(error), error.seq
    return report


def _verify(
    history: History, report: Report, progress: Progress, states: bool, processes: int
) -> None:
    total = sound = history.head().seq + 1
    broken: CorruptLedger | None = None
    try:
        watch = None if states else progress
        chain.check_in_processes(history.store, history.model, total, processes, watch)
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
    _check_listed(history, total)
    if states:
        _check_snapshots(history, report)
    weak = history.store.weaknesses()
    if weak:
        raise CorruptLedger(f"the database is not append-only: {'; '.join(weak)}")


def _rebuild(history: History, report: Report, progress: Progress, stop: int, total: int) -> None:
    """Rebuild every state of the events before `stop`."""
    fold: _Fold | None = None
    last: Event | None = None
    for event in history.store.scan(history.model_id, 0, stop):
        if fold is None:
            fold = _Fold(history, report)
        else:
            assert last is not None
            fold.advance(event, last)
        last = event
        report.events += 1
        progress(report.events, total)


def _check_listed(history: History, total: int) -> None:
    """The versions on the list are those that were named and not retired."""
    store, model_id = history.store, history.model_id
    named = EventFilter(kinds=[events.VERSION_CREATED, events.VERSION_RETIRED], max_seq=total - 1)
    listed: dict[int | None, int] = {}
    for event in store.select(model_id, named, limit=total, newest_first=False):
        if event.kind == events.VERSION_CREATED:
            listed[event.number] = event.seq
        else:
            listed.pop(event.number, None)
    found = [(number, seq) for number, seq in store.listed_versions(model_id) if seq < total]
    if found != sorted(listed.items()):
        raise CorruptLedger("the list of versions is not what the log says")


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
