"""The log of one model and the live weights that follow it: the write path.

A write is proposed (validate, compute, encode, verify, prepare), appended in one transaction, and
shown by one assignment. Everything that can fail happens before the append. One lock orders the
writers of this process; between processes the append's compare-and-set decides, and the loser
catches up, proposes again and retries.
"""

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ledger import events, proposals, snapshots, versions
from ledger.audit.verify import Progress, Report, verify
from ledger.caller import ANYONE, Caller
from ledger.canonical import canonical
from ledger.deltas import same_bits
from ledger.digest import StateDigest, content_digest
from ledger.errors import (
    Conflict,
    EngineUnavailable,
    IdempotencyMismatch,
    InvalidRequest,
    LedgerError,
    NotFound,
    PreconditionFailed,
    PublishFailed,
)
from ledger.events import Annotation, Event, seal
from ledger.history import History
from ledger.lineage import EVENT_COST
from ledger.projector import Live, Projector
from ledger.proposals import Guard, Proposal
from ledger.store import Append, EventFilter, KeyTaken, SeqTaken
from ledger.tensors import TensorSpec, lanes
from ledger.updates import IncrementalUpdateRequest, validate

logger = logging.getLogger(__name__)

MAX_DESCRIPTION = 500

# A tiny model would otherwise be snapshotted every few updates, to save reading next to nothing.
MIN_SPACING_BYTES = 1 << 20

# A loser of the compare-and-set waits a random moment that doubles with each round.
_PATIENCE_S = 10.0
_BACKOFF_S = 0.001
_MOST_BACKOFF_S = 0.1


@dataclass(frozen=True, slots=True)
class Written:
    """An event this process appended, with the seconds it took in all and in the database."""

    event: Event
    total_s: float
    append_s: float


Listener = Callable[[Written], None]


class Log:
    """The log of one model and its live weights. Safe to use from any thread."""

    def __init__(self, history: History, projector: Projector, *, alpha: float = 1.0) -> None:
        self.history = history
        self.projector = projector
        model_bytes = sum(spec.nbytes for spec in projector.specs.values())
        self._spacing = max(alpha * model_bytes, MIN_SPACING_BYTES)
        self._lock = threading.RLock()
        self._listeners: list[Listener] = []
        self._first_names = projector.engine.aliases()
        self._since_anchor = self._bytes_since_anchor()

    # Writes. Each raises PreconditionFailed, IdempotencyMismatch, Conflict or StorageError as
    # well as what it names; after an error neither the log nor the model has changed.

    def apply(self, request: IncrementalUpdateRequest, guard: Guard | None = None) -> Event:
        """Apply an update as one event.

        Returns the `updated` event, or the `update_rejected` event when the guard refuses the
        candidate or the result would not be finite. Raises InvalidRequest or NotFound for a
        request that does not fit the model.
        """
        name = self._first_names.get(request.parameter_name, request.parameter_name)
        update = validate(replace(request, parameter_name=name), self.projector.specs)
        caller = Caller(
            request.actor,
            request.reason,
            request.request_id,
            request.idempotency_key,
            request.expected_seq,
        )
        return self._write(
            caller,
            update.digest,
            lambda: proposals.update(self.history, self.projector, update, guard),
            metadata=update.metadata,
        )

    def record(
        self,
        source: torch.nn.Module | Mapping[str, torch.Tensor],
        reason: str | None = None,
        *,
        caller: Caller = ANYONE,
        metadata: Mapping[str, Any] | None = None,
    ) -> Event:
        """Record what has become of the model elsewhere, in one atomic event.

        `source` is compared with the head tensor by tensor; it must have the same names, dtypes
        and shapes (InvalidRequest, NotFound). Values are recorded as they are, NaN included.
        """
        tensors = source.state_dict() if isinstance(source, torch.nn.Module) else source
        self._require_same_tensors(tensors)
        if reason is not None:
            caller = replace(caller, reason=reason)
        text = None if metadata is None else canonical(dict(metadata), param="metadata").decode()
        request_digest = None
        if caller.idempotency_key is not None:  # hashing the whole model is for retries only
            digests = {name: content_digest(lanes(tensors[name])).hex() for name in self.specs}
            request_digest = _digest_of("record", {"tensors": digests, "metadata": text})
        return self._write(
            caller,
            request_digest,
            lambda: proposals.record(self.history, self.projector, tensors),
            metadata=text,
        )

    def create_version(
        self,
        description: str,
        *,
        caller: Caller = ANYONE,
        performance_metrics: Mapping[str, float] | None = None,
    ) -> Event:
        """Name the current state. Version 0 is always the initial state: it is named first.

        Raises InvalidRequest unless the description has 1 to 500 characters.
        """
        check_description(description)
        facts = {"description": description, "performance_metrics": dict(performance_metrics or {})}
        return self._write(
            caller,
            _digest_of("create_version", {"description": description}),
            lambda: self._version(facts),
        )

    def create_initial_version(
        self, description: str = "Initial version", *, caller: Caller = ANYONE
    ) -> Event:
        """Name the state the model was registered with, v0; returns v0 if it is named already."""
        check_description(description)
        facts = {"description": description, "performance_metrics": {}}
        with self._lock:
            self.catch_up()
            named = self.history.store.by_number(self.history.model_id, events.VERSIONS, 0)
            if named is not None:
                return named
            first = self.history.require(0)
            return self._write(
                caller,
                _digest_of("create_initial_version", {"description": description}),
                lambda: proposals.version(self.projector, first, facts),
            )

    def rollback(self, position: str, *, caller: Caller = ANYONE, cause: str = "manual") -> Event:
        """Move the model to an earlier state (or any other), bit for bit, as one event.

        NotFound when the position names nothing. Later updates branch from the state rolled back
        to; the states left behind stay in the log.
        """
        return self._write(
            caller,
            _digest_of("rollback", {"to": position}),
            lambda: proposals.rollback(
                self.history, self.projector, self.history.resolve(position), cause
            ),
        )

    def retire_versions(self, keep: int) -> list[Event]:
        """Take the oldest names off the list until `keep` are left, never the active one's."""
        retired = []
        with self._lock:
            listed = versions.listed_numbers(self.history.store, self.history.model_id)
            active = self.projector.live.head.active
            spare = [seq for number, seq in listed if number != active]
            for seq in spare[: max(0, len(listed) - keep)]:
                with contextlib.suppress(NotFound):  # another writer was faster
                    retired.append(self._retire(self.history.require(seq)))
        return retired

    def snapshot(self) -> None:
        """Write an anchor at the live state, unless there is one; unchanged tensors are shared."""
        with self._lock:
            live = self.projector.live
            store, model_id = self.history.store, self.history.model_id
            if any(anchor.node == live.head.node for anchor in store.snapshots(model_id)):
                return
            snapshots.store_tensors(self.history.blobs, live.state, self.projector.tensor)
            anchor, _ = snapshots.describe(live.head.node, live.state)
            store.add_snapshot(model_id, anchor)
            self._since_anchor = 0

    def catch_up(self) -> Event:
        """Show what other processes appended; returns the head."""
        with self._lock:
            before = self.projector.live.head
            head = self.projector.catch_up(self.history)
            if head.node != before.node:
                self._since_anchor = self._bytes_since_anchor()
            return head

    def verify(self, progress: Progress | None = None) -> Report:
        """Recompute every digest from the log; see `ledger.audit.verify`."""
        return verify(self.history, progress)

    def verify_live(self) -> tuple[Live, StateDigest]:
        """What the live weights should be, and the digests of the tensors as they are now."""
        with self._lock:
            return self.projector.live, self.projector.hash_live()

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` after each event of this process is durable and visible."""
        self._listeners.append(listener)

    # Reads

    @property
    def live(self) -> Live:
        """What the live weights show right now."""
        return self.projector.live

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The model's tensors by bare name."""
        return self.projector.specs

    def state(self, position: str = "head") -> dict[str, torch.Tensor]:
        """Every tensor at a position, by bare name; see `ledger.positions` for the forms."""
        return self.history.state(position)

    def events(self, *, limit: int | None = None, **where: Any) -> list[Event]:
        """Events, newest first; filters are the fields of `ledger.store.EventFilter`."""
        return self.history.events(EventFilter(**where), limit=limit)

    def versions(self) -> Sequence[versions.ModelVersion]:
        """Listed versions, newest first."""
        return self.history.versions()

    # One write

    def _write(
        self,
        caller: Caller,
        request_digest: bytes | None,
        propose: Callable[[], Proposal],
        *,
        metadata: str | None = None,
    ) -> Event:
        annotation = Annotation(caller.actor, caller.reason, metadata)
        started = time.perf_counter()
        with self._lock:
            deadline = time.perf_counter() + _PATIENCE_S
            attempts = 0
            while True:
                known = self._known(caller.idempotency_key, request_digest)
                if known is not None:
                    return self._visible(known)
                self._require_expected(caller.expected_seq)
                proposal = propose()
                event = self._seal(proposal, annotation, caller, request_digest)
                append_started = time.perf_counter()
                try:
                    self.history.store.append(_append(event, annotation, proposal))
                except (SeqTaken, KeyTaken):
                    attempts += 1
                    if time.perf_counter() > deadline:
                        raise Conflict(
                            f"other writers won {attempts} times in a row on model "
                            f"{self.history.model!r}"
                        ) from None
                    most = min(_BACKOFF_S * 2**attempts, _MOST_BACKOFF_S)
                    time.sleep(random.random() * most)
                    self.catch_up()
                    continue
                appended = time.perf_counter()
                self._show(event, proposal)
                shown = time.perf_counter()
                self._afterwards(Written(event, shown - started, appended - append_started))
                return self._visible(event)

    def _seal(
        self,
        proposal: Proposal,
        annotation: Annotation,
        caller: Caller,
        request_digest: bytes | None,
    ) -> Event:
        draft = replace(
            proposal.draft,
            payload=proposal.payload.refs,
            annotation=annotation,
            request_id=caller.request_id,
            idempotency_key=caller.idempotency_key,
            request_digest=request_digest,
        )
        return seal(draft, self.history.model, self.projector.live.head, time.time_ns() // 1000)

    def _known(self, idempotency_key: str | None, request_digest: bytes | None) -> Event | None:
        """The event this idempotency key has led to already."""
        if idempotency_key is None:
            return None
        event = self.history.store.by_key(self.history.model_id, idempotency_key)
        if event is not None and event.request_digest != request_digest:
            raise IdempotencyMismatch(
                f"idempotency key {idempotency_key!r} was used for another request, {event.name}"
            )
        if event is not None and event.seq > self.projector.live.head.seq:
            self.catch_up()
        return event

    def _require_expected(self, expected: int | None) -> None:
        if expected is None or self.projector.live.head.state_seq == expected:
            return
        head = self.catch_up()
        if head.state_seq != expected:
            raise PreconditionFailed(
                f"expected seq {expected}, but the last state change is seq {head.state_seq}",
                head_seq=head.state_seq,
            )

    def _show(self, event: Event, proposal: Proposal) -> None:
        if event.kind not in events.STATE_CHANGING:
            self.projector.note(event)
            return
        try:
            self.projector.show(event, proposal.changes)
        except PublishFailed as error:
            self._answer(event, error)

    def _answer(self, refused: Event, error: PublishFailed) -> None:
        """Append the rollback of an event that the engine could not be brought to.

        Another process may have written on top of it: then its state is the one to show.
        """
        logger.error("%s of %s: %s", refused.name, refused.model, error)
        started = time.perf_counter()
        draft = proposals.answer(self.projector, refused, str(error))
        event = seal(draft, self.history.model, refused, time.time_ns() // 1000)
        try:
            self.history.store.append(Append(event, Annotation()))
        except SeqTaken:
            self.catch_up()
            return
        appended = time.perf_counter()
        self.projector.show(event)
        shown = time.perf_counter()
        self._afterwards(Written(event, shown - started, appended - started))

    def answer_to(self, event: Event) -> Event | None:
        """The rollback that answered an event which could not be shown, if one did."""
        after = self.history.store.event(self.history.model_id, event.seq + 1)
        if after is None or after.kind != events.ROLLED_BACK:
            return None
        return after if after.body["cause"] == proposals.PUBLISH_FAILED else None

    def _visible(self, event: Event) -> Event:
        """`event`, or EngineUnavailable while a remote engine is not known to show it."""
        remote = self.projector.remote
        if remote is not None and remote.fault and event.kind in events.STATE_CHANGING:
            raise EngineUnavailable(
                f"{event.name} is recorded and will be shown as soon as possible, but the engine "
                f"is fenced: {remote.fault}"
            )
        return event

    def _afterwards(self, written: Written) -> None:
        """What follows a write. The event is durable and visible, so nothing here may fail it."""
        event = written.event
        try:
            if event.kind == events.ROLLED_BACK:
                self._since_anchor = self._bytes_since_anchor()
            elif event.kind == events.UPDATED:
                self._since_anchor += event.payload_size + EVENT_COST
            if self._since_anchor >= self._spacing:
                self.snapshot()
        except LedgerError as error:
            logger.warning("no snapshot after event %d, will try again: %s", event.seq, error)
        for listener in self._listeners:
            try:
                listener(written)
            except Exception:
                logger.exception("a listener failed on event %d", event.seq)

    def _version(self, facts: Mapping[str, Any]) -> Proposal:
        """A name for the live state; the initial state is named before any other."""
        head = self.projector.live.head
        if head.counts.versions == 0 and head.node != 0:
            self.create_initial_version()
        return proposals.version(self.projector, self.projector.live.head, facts)

    def _retire(self, version_created: Event) -> Event:
        return self._write(
            ANYONE,
            None,
            lambda: proposals.retirement(self.history, self.projector, version_created),
        )

    def _require_same_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        missing = sorted(self.projector.specs.keys() - tensors.keys())
        if missing:
            raise NotFound(f"the recorded model lacks {', '.join(missing)}")
        extra = sorted(tensors.keys() - self.projector.specs.keys() - self._first_names.keys())
        if extra:
            raise InvalidRequest(f"the ledger's model has no {', '.join(extra)}", param=extra[0])
        for alias, first in self._first_names.items():
            spec = self.projector.specs[first]
            tied = tensors.get(alias)
            if tied is not None and (
                TensorSpec.of(first, tied) != spec or not same_bits(tied, tensors[first], spec)
            ):
                raise InvalidRequest(
                    f"{alias!r} is tied to {first!r}, but holds other values", param=alias
                )
        for name, spec in self.projector.specs.items():
            got = TensorSpec.of(name, tensors[name])
            if got != spec:
                raise InvalidRequest(
                    f"tensor {name!r} is {spec.dtype} {spec.shape}, got {got.dtype} {got.shape}",
                    param=name,
                )

    def _bytes_since_anchor(self) -> int:
        """Payload bytes between the head and its nearest anchored ancestor."""
        anchors = {anchor.node for anchor in self.history.store.snapshots(self.history.model_id)}
        size = 0
        at: int | None = self.projector.live.head.node
        while at is not None and at not in anchors:
            size += self.history.lineage.size(at)
            at = self.history.lineage.parent(at)
        return size


def check_description(description: str) -> None:
    """Raise InvalidRequest unless it is a string of 1 to 500 characters."""
    if not isinstance(description, str) or not 1 <= len(description) <= MAX_DESCRIPTION:
        got = len(description) if isinstance(description, str) else type(description).__name__
        raise InvalidRequest(
            f"description must have 1 to {MAX_DESCRIPTION} characters, got {got}",
            param="description",
        )


def _append(event: Event, annotation: Annotation, proposal: Proposal) -> Append:
    payload = proposal.payload
    return Append(event, annotation, proposal.parameters, payload.inline, payload.blobs)


def _digest_of(operation: str, fields: Mapping[str, Any]) -> bytes:
    """The digest of a canonical request, 32 bytes."""
    return content_digest(canonical({"operation": operation, **fields}))
