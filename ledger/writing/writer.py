"""The writer: one queue of writes, one lock, and as few transactions as will do.

Whoever holds the lock works the queue off, for all who wait. Writes that allow it are worked out
one on another and appended in one transaction; one that looks at the committed state goes alone.
Between processes writers take turns; the append's compare-and-set decides all the same, and a loser
catches up and works its writes out again.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from weightledger.ledger import events
from weightledger.ledger.errors import (
    EngineUnavailable,
    IdempotencyMismatch,
    KeyTaken,
    LedgerError,
    PreconditionFailed,
    PublishFailed,
    SeqTaken,
)
from weightledger.ledger.events import Annotation, Event, seal
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.projector import Changes, Projector
from weightledger.ledger.sql.turns import Turn
from weightledger.ledger.store import Append
from weightledger.ledger.writing import plans
from weightledger.ledger.writing.append_loop import back_off, gave_up, out_of_patience
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.plans import ProposedEvent
from weightledger.ledger.writing.staged import Staged

logger = logging.getLogger(__name__)

# What one transaction takes at most: events, and bytes of new weights held until it commits.
_GROUP_EVENTS = 64
_GROUP_BYTES = 32 * 1024 * 1024
# Losing the race in a turn, to a writer that goes without: once more before the turn is given on.
_TRIES_A_TURN = 2


@dataclass(frozen=True, slots=True)
class Request:
    """A write that is asked for: who asks, what identifies it, and how it is worked out.

    `digest` is of the canonical request. `propose` is called on the staged, again after each lost
    race. With `alone` nothing is worked out before or after it in the same transaction.
    """

    caller: Caller
    digest: bytes | None
    propose: Callable[[Staged], ProposedEvent]
    metadata: str | None = None
    alone: bool = True


@dataclass(frozen=True, slots=True)
class Committed:
    """An event this process appended, with the seconds it took in all and in the database."""

    event: Event
    total_s: float
    append_s: float


def _running() -> "Future[Event]":
    """A future that whoever waits for it cannot cancel: a queued write is carried out."""
    future: Future[Event] = Future()
    future.set_running_or_notify_cancel()
    return future


@dataclass(slots=True, eq=False)
class _Job:
    """One write in the queue. `ready` makes the request, on the thread that works it off."""

    ready: Callable[[], Request]
    result: "Future[Event]" = field(default_factory=_running)
    request: Request | None = None
    started: float = 0.0
    attempts: int = 0


@dataclass(slots=True)
class _Waiting:
    """A write that has its event but is not appended yet."""

    job: _Job
    append: Append
    proposal: ProposedEvent


class _Later(Exception):
    """This write has to wait until those before it are appended."""


class Writer:
    """Appends to one log and shows what it appended. Safe to use from any thread."""

    def __init__(
        self, history: History, projector: Projector, afterwards: Callable[[Committed], None]
    ) -> None:
        self.lock = threading.RLock()
        self._history = history
        self._projector = projector
        self._staged = Staged(projector)
        self._afterwards = afterwards
        self._queue: deque[_Job] = deque()
        self._thread: int | None = None

    def write(self, request: Request) -> Event:
        """Write, and give the event; it is durable and visible."""
        job = _Job(lambda: request)
        if self._thread == threading.get_ident():
            self._queue.appendleft(job)  # what follows a write comes before what waits
        else:
            self._queue.append(job)
        with self.lock:
            self._drain(job)
        return job.result.result()

    def submit(self, ready: Callable[[], Request]) -> "Future[Event]":
        """Queue a write; `drain`, on any thread, works it off together with what waits by then."""
        job = _Job(ready)
        self._queue.append(job)
        return job.result

    def drain(self) -> None:
        """Work off everything that waits."""
        with self.lock:
            self._drain(None)

    def _drain(self, last: _Job | None) -> None:
        outer, self._thread = self._thread, threading.get_ident()
        try:
            while self._queue and not (last and last.result.done()):
                with self._history.store.turn() as turn:
                    self._work_off(turn)
        finally:
            self._thread = outer
            self._staged.clear()

    def _work_off(self, turn: Turn) -> None:
        """Append what waits, as far as it goes into one transaction."""
        if turn.head is not None and turn.head > self._projector.live.head.seq:
            # What fails here fails again, and is told, when the append loses to these events.
            with contextlib.suppress(LedgerError):
                self.catch_up()
        for _ in range(_TRIES_A_TURN):
            if self._append(self._gather()):
                break
        turn.head = self._projector.live.head.seq

    def _gather(self) -> list[_Waiting]:
        """Take writes off the queue and work them out, one on another, until one must go alone."""
        group: list[_Waiting] = []
        size = 0
        while self._queue and len(group) < _GROUP_EVENTS and size < _GROUP_BYTES:
            job = self._queue.popleft()
            try:
                job.request = job.request or job.ready()
                if group and self._must_wait(job.request, group):
                    raise _Later
                waiting = self._propose(job, job.request)
            except _Later:
                self._queue.appendleft(job)
                break
            except Exception as error:  # noqa: BLE001  (it is for whoever waits for this write)
                job.result.set_exception(error)
                continue
            except BaseException as error:
                for one in (*(waiting.job for waiting in group), job):
                    one.result.set_exception(error)
                raise
            if waiting is None:
                continue
            group.append(waiting)
            changes = waiting.proposal.changes
            self._staged.stage(waiting.append.event, changes)
            size += sum(tensor.nbytes for tensor in changes.weights.values()) if changes else 0
            if job.request.alone or self._projector.remote is not None:
                break
        return group

    def _must_wait(self, request: Request, group: list[_Waiting]) -> bool:
        """Whether a write cannot be answered before those in `group` are appended."""
        key, expected = request.caller.idempotency_key, request.caller.expected_seq
        return (
            request.alone
            or (key is not None and any(one.append.event.idempotency_key == key for one in group))
            or (expected is not None and expected != self._staged.live.head.state_seq)
        )

    def _propose(self, job: _Job, request: Request) -> _Waiting | None:
        """The write with its event; None when its idempotency key has been answered already."""
        job.started = job.started or time.perf_counter()
        known = self._known(request)
        if known is not None:
            self._finish(job, known)
            return None
        self._require_expected(request.caller.expected_seq)
        proposal = request.propose(self._staged)
        annotation = Annotation(request.caller.actor, request.caller.reason, request.metadata)
        event = self._seal(proposal, annotation, request)
        return _Waiting(job, _append(event, annotation, proposal), proposal)

    def _append(self, group: list[_Waiting]) -> bool:
        """One transaction, one publication, and an answer for each; False if others were first."""
        if not group:
            return True
        try:
            changes = self._prepared(group)
            append_started = time.perf_counter()
            self._history.store.append(*[waiting.append for waiting in group])
            appended = time.perf_counter()
            last = group[-1].append.event
            self._show_appended(group, last, changes)
        except (SeqTaken, KeyTaken):
            self._staged.clear()
            self._lost([waiting.job for waiting in group])
            return False
        except BaseException as error:
            self._staged.clear()
            for waiting in group:
                waiting.job.result.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return True
        self._staged.clear()
        shown = time.perf_counter()
        try:
            for waiting in group:
                took = Committed(
                    waiting.append.event, shown - waiting.job.started, appended - append_started
                )
                self._afterwards(took)
        finally:  # they are written, whatever interrupts what follows
            for waiting in group:
                self._finish(waiting.job, waiting.append.event)
        return True

    def _show_appended(self, group: list[_Waiting], last: Event, changes: Changes | None) -> None:
        """Make what was appended visible; what fails here does not make it unrecorded."""
        try:
            if any(one.append.event.kind in events.STATE_CHANGING for one in group):
                self._show(last, changes)
            else:
                self._projector.note(last)
        except Exception as error:
            logger.exception("%s of %s is recorded but not shown", last.name, last.model)
            raise EngineUnavailable(
                f"{last.name} is recorded, but the live weights could not be brought to it"
                f" ({error}); the next write or a restart brings them there"
            ) from error

    def _show(self, event: Event, changes: Changes | None) -> None:
        try:
            self._projector.show(event, changes)
        except PublishFailed as error:
            self._answer(event, error)

    def _answer(self, refused: Event, error: PublishFailed) -> None:
        """Append the rollback of an event that the engine could not be brought to.

        Another process may have written on top of it: then its state is the one to show.
        """
        logger.error("%s of %s: %s", refused.name, refused.model, error)
        started = time.perf_counter()
        draft = plans.answer(self._projector.live, refused, str(error))
        event = seal(draft, self._history.model, refused, time.time_ns() // 1000)
        try:
            self._history.store.append(Append(event, Annotation()))
        except SeqTaken:
            self.catch_up()
            return
        appended = time.perf_counter()
        self._projector.show(event)
        shown = time.perf_counter()
        self._afterwards(Committed(event, shown - started, appended - started))

    def _finish(self, job: _Job, event: Event) -> None:
        """Give the event, or EngineUnavailable while a remote engine is not known to show it."""
        remote = self._projector.remote
        if remote is not None and remote.fault and event.kind in events.STATE_CHANGING:
            job.result.set_exception(
                EngineUnavailable(
                    f"{event.name} is recorded and will be shown as soon as possible, but the "
                    f"engine is fenced: {remote.fault}"
                )
            )
        else:
            job.result.set_result(event)

    def _prepared(self, group: list[_Waiting]) -> Changes | None:
        """What the whole group changes, ready to be shown; None when that is no tensor."""
        if len(group) > 1:
            return self._staged.gathered()
        changes = group[0].proposal.changes
        return None if changes is None else self._projector.prepare(changes)

    def _lost(self, jobs: list[_Job]) -> None:
        """Another process was faster: catch up and put the writes back, or give up on them."""
        attempts = 0
        for job in reversed(jobs):
            job.attempts += 1
            attempts = max(attempts, job.attempts)
            if out_of_patience(job.started):
                job.result.set_exception(gave_up(job.attempts, self._history.model))
            else:
                self._queue.appendleft(job)
        if attempts > 1:  # the first time because nobody had told of them; they are done by now
            back_off(attempts)
        try:
            self.catch_up()
        except Exception as error:  # noqa: BLE001  (it is for whoever waits for these writes)
            for job in jobs:
                if not job.result.done():
                    self._queue.remove(job)
                    job.result.set_exception(error)

    def catch_up(self) -> Event:
        """Show what other processes appended; returns the head."""
        with self.lock:
            return self._projector.catch_up(self._history)

    def _seal(self, proposal: ProposedEvent, annotation: Annotation, request: Request) -> Event:
        draft = proposal.draft
        sealed = replace(
            draft,
            payload=proposal.payload.refs,
            annotation=annotation,
            request_id=request.caller.request_id,
            idempotency_key=request.caller.idempotency_key,
            request_digest=request.digest,
        )
        return seal(sealed, self._history.model, self._staged.live.head, time.time_ns() // 1000)

    def _known(self, request: Request) -> Event | None:
        """The event this idempotency key has led to already."""
        key = request.caller.idempotency_key
        if key is None:
            return None
        event = self._history.store.by_key(key)
        if event is None:
            return None
        if event.request_digest != request.digest:
            raise IdempotencyMismatch(
                f"idempotency key {key!r} was used for another request, {event.name}"
            )
        if event.seq > self._projector.live.head.seq:
            if self._staged.pending:
                raise _Later
            self.catch_up()
        return event

    def _require_expected(self, expected: int | None) -> None:
        if expected is None or self._staged.live.head.state_seq == expected:
            return
        head = self.catch_up()
        if head.state_seq != expected:
            raise PreconditionFailed(
                f"expected seq {expected}, but the last state change is seq {head.state_seq}",
                head_seq=head.state_seq,
            )


def _append(event: Event, annotation: Annotation, proposal: ProposedEvent) -> Append:
    payload = proposal.payload
    return Append(
        event,
        annotation,
        proposal.parameters,
        payload.inline,
        payload.blobs,
    )
