"""The writer: one queue of commands, one lock, and as few transactions as will do.

Whoever holds the lock works the queue off, for all who wait. Commands that allow it are worked out
one on another and appended in one transaction; one that looks at the committed state goes alone.
Between processes writers take turns; the append's compare-and-set decides all the same, and a loser
catches up and works its commands out again.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

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
from weightledger.ledger.events import Annotation, Draft, Event, seal
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.projector import Changes, Projector
from weightledger.ledger.sql.turns import Turn
from weightledger.ledger.store import Append
from weightledger.ledger.writing.append_loop import back_off, gave_up, out_of_patience
from weightledger.ledger.writing.commands import Command
from weightledger.ledger.writing.handlers import Row, row_of
from weightledger.ledger.writing.handlers.rollbacks import answer
from weightledger.ledger.writing.plans import Plan, ProposedEvent, proposed
from weightledger.ledger.writing.policy import Policy
from weightledger.ledger.writing.staged import Staged

logger = logging.getLogger(__name__)

# What one transaction takes at most: events, and bytes of new weights held until it commits.
_GROUP_EVENTS = 64
_GROUP_BYTES = 32 * 1024 * 1024
# Losing the race in a turn, to a writer that goes without: once more before the turn is given on.
_TRIES_A_TURN = 2


@dataclass(frozen=True, slots=True)
class Committed:
    """An event this process appended, with the seconds it took in all and in the database."""

    event: Event
    total_s: float
    append_s: float
    annotation: Annotation = field(default_factory=Annotation)


def _running() -> "Future[Event]":
    """A future that whoever waits for it cannot cancel: a queued write is carried out."""
    future: Future[Event] = Future()
    future.set_running_or_notify_cancel()
    return future


@dataclass(slots=True, eq=False)
class _Job:
    """One command in the queue; `appends` and `changes` are what its last attempt came to."""

    command: Command
    row: Row
    result: "Future[Event]" = field(default_factory=_running)
    digest: bytes | None = None
    started: float = 0.0
    attempts: int = 0
    appends: list[Append] = field(default_factory=list)
    changes: Changes | None = None

    @property
    def event(self) -> Event:
        """The event that answers the command."""
        return self.appends[-1].event


class _Later(Exception):
    """This command has to wait until those before it are appended."""


class Writer:
    """Appends to one log and shows what it appended. Safe to use from any thread."""

    def __init__(
        self,
        history: History,
        projector: Projector,
        policy: Policy,
        afterwards: Callable[[Committed], None],
    ) -> None:
        self.lock = threading.RLock()
        self._history = history
        self._projector = projector
        self._policy = policy
        self._staged = Staged(history, projector, policy)
        self._afterwards = afterwards
        self._queue: deque[_Job] = deque()
        self._thread: int | None = None

    def execute(self, command: Command) -> Event:
        """Carry a command out, and give its event; it is durable and visible."""
        job = self._job(self.ready(command))
        if self._thread == threading.get_ident():
            self._queue.appendleft(job)  # what follows a write comes before what waits
        else:
            self._queue.append(job)
        with self.lock:
            self._drain(job)
        return job.result.result()

    def ready(self, command: Command) -> Command:
        """Do what takes long and needs no lock; gives the command to queue.

        One that was answered already is left as it is: what it reads may be gone by now.
        """
        row, key = row_of(command), command.caller.idempotency_key
        if row.read is None or (key is not None and self._history.store.by_key(key)):
            return command
        self._policy.require(row.switch)
        readied: Command = row.read(command, self._staged)
        return readied

    def submit(self, command: Command) -> "Future[Event]":
        """Queue a command; `drain`, on any thread, works it off with what waits by then."""
        job = self._job(command)
        self._queue.append(job)
        return job.result

    @property
    def waiting(self) -> int:
        """How many writes are queued."""
        return len(self._queue)

    def drain(self) -> None:
        """Work off everything that waits."""
        with self.lock:
            self._drain(None)

    def catch_up(self) -> Event:
        """Show what other processes appended; returns the head."""
        with self.lock:
            return self._projector.catch_up(self._history)

    def _job(self, command: Command) -> _Job:
        row = row_of(command)
        self._policy.require(row.switch)
        return _Job(command, row)

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

    def _gather(self) -> list[_Job]:
        """Take commands off the queue and work them out, one on another, until one goes alone."""
        group: list[_Job] = []
        size = 0
        while self._queue and len(group) < _GROUP_EVENTS and size < _GROUP_BYTES:
            job = self._queue.popleft()
            alone = not job.row.grouped or self._policy.alone
            try:
                if group and (alone or self._must_wait(job.command, group)):
                    raise _Later
                if not self._worked_out(job):
                    continue
            except _Later:
                self._queue.appendleft(job)
                break
            except Exception as error:  # noqa: BLE001  (it is for whoever waits for this write)
                job.result.set_exception(error)
                continue
            except BaseException as error:
                for one in (*group, job):
                    one.result.set_exception(error)
                raise
            group.append(job)
            if job.changes is not None:
                size += sum(tensor.nbytes for tensor in job.changes.weights.values())
            if alone or self._projector.remote is not None:
                break
        return group

    def _must_wait(self, command: Command, group: list[_Job]) -> bool:
        """Whether a command cannot be answered before those in `group` are appended."""
        key, expected = command.caller.idempotency_key, command.caller.expected_seq
        return (key is not None and any(one.event.idempotency_key == key for one in group)) or (
            expected is not None and expected != self._staged.live.head.state_seq
        )

    def _worked_out(self, job: _Job) -> bool:
        """Work a command out on the staged state, and stage its events.

        False when there is nothing to append: it was answered before.
        """
        command, staged = job.command, self._staged
        job.started = job.started or time.perf_counter()
        job.appends, job.changes = [], None
        known = self._known(job)
        if known is not None:
            self._finish(job, known)
            return False
        self._require_expected(command.caller.expected_seq)
        try:
            while True:
                answered = job.row.handle(command, staged)
                if isinstance(answered, Event):
                    self._finish(job, answered)
                    return False
                event = proposed(answered, staged) if isinstance(answered, Plan) else answered
                append = self._sealed(event, job)
                job.appends.append(append)
                job.changes = event.changes
                staged.stage(append.event, event.changes)
                if not event.more:
                    return True
        except BaseException:
            if job.appends:  # it was alone, so nothing else is staged
                staged.clear()
            raise

    def _sealed(self, proposed: ProposedEvent, job: _Job) -> Append:
        """The proposed event in its place after the staged head. Only the last event of a command
        has its key and its words."""
        caller, drafted, last = job.command.caller, proposed.draft, not proposed.more
        words = (caller.actor, caller.reason, job.command.metadata) if last else (None, None, None)
        annotation = Annotation(*words)
        draft = Draft(  # not `replace`, which takes longer than all the rest here
            body=drafted.body,
            state_after=drafted.state_after,
            target_node=drafted.target_node,
            number=drafted.number,
            active=drafted.active,
            payload=proposed.payload.refs,
            annotation=annotation,
            request_id=caller.request_id if last else drafted.request_id,
            idempotency_key=caller.idempotency_key if last else drafted.idempotency_key,
            request_digest=job.digest if last else drafted.request_digest,
        )
        event = seal(draft, self._history.model, self._staged.live.head, time.time_ns() // 1000)
        return Append(
            event,
            annotation,
            proposed.parameters,
            proposed.payload.inline,
            proposed.payload.blobs,
        )

    def _append(self, group: list[_Job]) -> bool:
        """One transaction, one publication, and an answer for each; False if others were first."""
        if not group:
            return True
        appends = [append for job in group for append in job.appends]
        try:
            changes = self._prepared(group)
            append_started = time.perf_counter()
            self._history.store.append(*appends)
            appended = time.perf_counter()
            self._show_appended(appends, changes)
        except (SeqTaken, KeyTaken):
            self._staged.clear()
            self._lost(group)
            return False
        except BaseException as error:
            self._staged.clear()
            for job in group:
                job.result.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return True
        self._staged.clear()
        shown = time.perf_counter()
        try:
            for job in group:
                for append in job.appends:
                    took = Committed(
                        append.event,
                        shown - job.started,
                        appended - append_started,
                        append.annotation,
                    )
                    self._afterwards(took)
        finally:  # they are written, whatever interrupts what follows
            for job in group:
                self._finish(job, job.event)
        return True

    def _show_appended(self, appends: list[Append], changes: Changes | None) -> None:
        """Make what was appended visible; what fails here does not make it unrecorded."""
        last = appends[-1].event
        try:
            if any(one.event.kind in events.STATE_CHANGING for one in appends):
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
        draft = answer(self._projector.live, refused, str(error))
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

    def _prepared(self, group: list[_Job]) -> Changes | None:
        """What the whole group changes, ready to be shown; None when that is no tensor."""
        if len(group) > 1:
            return self._staged.gathered()
        changes = group[0].changes
        return None if changes is None else self._projector.prepare(changes)

    def _lost(self, jobs: list[_Job]) -> None:
        """Another process was faster: catch up and put the commands back, or give up on them."""
        attempts = 0
        for job in reversed(jobs):
            job.attempts += 1
            attempts = max(attempts, job.attempts)
            # One that expects a seq is not told that it gave up, but which seq it is now.
            if job.command.caller.expected_seq is None and out_of_patience(job.started):
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

    def _known(self, job: _Job) -> Event | None:
        """The event this idempotency key has led to already."""
        job.digest = job.digest or job.command.digest
        key = job.command.caller.idempotency_key
        if key is None:
            return None
        event = self._history.store.by_key(key)
        if event is None:
            return None
        if event.request_digest != job.digest:
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
