"""The writer: one queue of commands, one lock, and as few transactions as will do.

Whoever holds the lock works the queue off, for all who wait. Commands that allow it are worked out
one on another and appended in one transaction; one that looks at the committed state goes alone.
Between processes writers take turns; the append's compare-and-set decides all the same, and a loser
catches up and works its commands out again.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

from weightledger.ledger import forks, interrupts
from weightledger.ledger.codecs.warming import warm_few
from weightledger.ledger.errors import KeyTaken, LedgerError, SeqTaken
from weightledger.ledger.events import Event
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.change import Change
from weightledger.ledger.projection.following import MOST_NEWS, News
from weightledger.ledger.projection.projector import Projector
from weightledger.ledger.sql.turns import Turn
from weightledger.ledger.writing import arithmetic
from weightledger.ledger.writing.append_loop import back_off, gave_up, out_of_patience
from weightledger.ledger.writing.approval_commands import CarryOut, RequestApproval
from weightledger.ledger.writing.attempts import Attempts
from weightledger.ledger.writing.commands import Command
from weightledger.ledger.writing.handlers import row_of
from weightledger.ledger.writing.handlers.approvals import held_back
from weightledger.ledger.writing.job import Job, Later
from weightledger.ledger.writing.policy import Policy
from weightledger.ledger.writing.showing import Committed, Showing
from weightledger.ledger.writing.staged import Staged

# What one transaction takes at most: events, and bytes of new weights held until it commits.
_GROUP_EVENTS = 64
_GROUP_BYTES = 32 * 1024 * 1024
# Losing the race in a turn, to a writer that goes without: once more before the turn is given on.
_TRIES_A_TURN = 2


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
        self._attempts = Attempts(history, projector, self._staged)
        self._showing = Showing(history, projector, afterwards)
        self._afterwards = afterwards
        self._queue: deque[Job] = deque()
        self._thread: int | None = None
        self._warm = not any(spec.dtype == "float32" for spec in projector.specs.values())
        self._left = False
        forks.tell(self)

    def forked(self) -> None:
        """In a fork: nothing is written there, and nobody waits for a thread that did not come."""
        self._left = True

    def execute(self, command: Command) -> Event:
        """Carry a command out, and give its event; it is durable and visible."""
        job = self._job(self.ready(command))
        job.digest = job.command.digest  # here, so that nobody waits for it
        with interrupts.held:
            if self._thread == threading.get_ident():
                self._queue.appendleft(job)  # what follows a write comes before what waits
            else:
                self._queue.append(job)
            self._work_off_until(job)
        return job.result()

    def _work_off_until(self, job: Job) -> None:
        """Have a queued command carried out, by this thread or by one that is at it."""
        try:
            interrupts.acquire(self.lock)
        except BaseException:
            self._withdraw(job)
            raise
        try:
            self._drain(job)
        except BaseException:  # such as Ctrl-C while others had their turn
            self._withdraw(job)
            raise
        finally:
            self.lock.release()

    def _withdraw(self, job: Job) -> None:
        """What its caller is told came to nothing is not carried out with somebody's next write."""
        with contextlib.suppress(ValueError):  # it is under way
            self._queue.remove(job)

    def ready(self, command: Command) -> Command:
        """Do what takes long and needs no lock; gives the command to queue.

        One that was answered already is left as it is: what it reads may be gone by now.
        """
        if isinstance(command, CarryOut):
            return command
        row, key = row_of(held_back(command, self._policy)), command.caller.idempotency_key
        if not self._warm and row.grouped:
            warm_few()
            arithmetic.warm()
            self._warm = True
        if row.read is None or (key is not None and self._history.store.by_key(key)):
            return command
        self._policy.require(row.switch)
        readied: Command = row.read(command, self._staged)
        return readied

    def submit(self, command: Command, told: Callable[[Job], None] | None = None) -> Job:
        """Queue a command; `drain`, on any thread, works it off with what waits by then.

        Nobody can cancel it: a queued write is carried out.
        """
        job = self._job(command)
        job.told = told
        self._queue.append(job)
        return job

    @property
    def waiting(self) -> int:
        """How many writes are queued."""
        return len(self._queue)

    def drain(self) -> None:
        """Work off everything that waits; what could not be worked off has failed."""
        self._require_ours()
        with self.lock:
            try:
                self._drain(None)
            except BaseException as error:
                while self._queue:
                    self._queue.popleft().fail(error)
                raise

    def catch_up(self, to: int | None = None, news: News | None = None) -> Event:
        """Show what other processes appended; gives the head, or the event `to` that was asked for.

        See `Projector.catch_up`.
        """
        self._require_ours()
        with self.lock:
            return self._projector.catch_up(self._history, to, news)

    def _require_ours(self) -> None:
        if self._left:
            raise forks.refused(f"the log of {self._history.model}")

    def _job(self, command: Command) -> Job:
        self._require_ours()
        if isinstance(command, CarryOut):
            command = command.command
        else:
            command = held_back(command, self._policy)
        if isinstance(command, RequestApproval):
            self._policy.require(row_of(command.command).switch)
        row = row_of(command)
        self._policy.require(row.switch)
        return Job(command, row)

    def _drain(self, last: Job | None) -> None:
        outer, self._thread = self._thread, threading.get_ident()
        try:
            while self._queue and not (last and last.done):
                after = self._projector.live.head.seq
                with self._history.store.turn(self._meanwhile, after) as turn:
                    self._work_off(turn)
        finally:
            self._thread = outer
            self._staged.clear()

    def _work_off(self, turn: Turn) -> None:
        """Append what waits, as far as it goes into one transaction."""
        if turn.head is not None and turn.head > self._projector.live.head.seq:
            self._meanwhile(turn)
        for _ in range(_TRIES_A_TURN):
            if self._append(self._gather(), turn):
                break
        turn.head = self._projector.live.head.seq

    def _meanwhile(self, turn: Turn | None = None) -> None:
        """Show what others have written so far: while they write, or at last when it is our turn.

        What fails here fails again, and is told, when the append loses to these events.
        """
        with contextlib.suppress(LedgerError):
            if turn is None or turn.news is None:
                self.catch_up()
            else:
                seq = self._projector.live.head.seq
                self.catch_up(news=self._history.store.news(seq, MOST_NEWS, turn))

    def _gather(self) -> list[Job]:
        """Take commands off the queue and work them out, one on another, until one goes alone."""
        group: list[Job] = []
        size = 0
        while self._queue and len(group) < _GROUP_EVENTS and size < _GROUP_BYTES:
            job = self._queue.popleft()
            alone = not job.row.grouped or self._policy.alone
            try:
                if group and (alone or self._must_wait(job.command, group)):
                    raise Later
                if not self._attempts.work_out(job):
                    continue
            except Later:
                self._queue.appendleft(job)
                break
            except SeqTaken:  # while replicas prepared it; it was alone
                self._lost([job])
                break
            except Exception as error:  # noqa: BLE001  (it is for whoever waits for this write)
                job.fail(error)
                continue
            except BaseException as error:
                for one in (*group, job):
                    one.fail(error)
                raise
            group.append(job)
            if job.change is not None:
                size += sum(one.tensor.nbytes for one in job.change.weights.values())
            if alone or self._projector.remote is not None:
                break
        return group

    def _must_wait(self, command: Command, group: list[Job]) -> bool:
        """Whether a command cannot be answered before those in `group` are appended."""
        key, expected = command.caller.idempotency_key, command.caller.expected_seq
        return (key is not None and any(one.event.idempotency_key == key for one in group)) or (
            expected is not None and expected != self._staged.live.head.state_seq
        )

    def _append(self, group: list[Job], turn: Turn) -> bool:
        """One transaction, one publication, and an answer for each; False if others were first.

        Once the events are durable the turn is over: others need not wait until they are shown.
        """
        if not group:
            return True
        appends = [append for job in group for append in job.appends]
        try:
            change = self._prepared(group)
            append_started = time.perf_counter()
            turn.ending = True
            self._history.store.append(*appends)
            appended = time.perf_counter()
            turn.head = appends[-1][0].seq
            turn.over()
            self._showing.show(appends, change)
        except (SeqTaken, KeyTaken):
            self._staged.clear()
            self._lost(group)
            return False
        except BaseException as error:
            self._staged.clear()
            for job in group:
                job.fail(error)
            if not isinstance(error, Exception):
                raise
            return True
        self._staged.clear()
        shown = time.perf_counter()
        try:
            for job in group:
                for event, annotation, _ in job.appends:
                    took = Committed(
                        event,
                        shown - job.started,
                        appended - append_started,
                        annotation,
                        shown - appended,
                    )
                    self._afterwards(took)
        finally:  # they are written, whatever interrupts what follows
            for job in group:
                try:
                    self._attempts.finish(job, job.event)
                except Exception as error:  # noqa: BLE001  (it is for whoever waits for this write)
                    job.fail(error)
        return True

    def _prepared(self, group: list[Job]) -> Change | None:
        """What the whole group changes, ready to be shown; None when that is no tensor."""
        if len(group) > 1:
            return self._staged.gathered()
        change = group[0].change
        return None if change is None else self._projector.prepare(change)

    def _lost(self, jobs: list[Job]) -> None:
        """Another process was faster: catch up and put the commands back, or give up on them."""
        attempts = 0
        for job in reversed(jobs):
            job.attempts += 1
            attempts = max(attempts, job.attempts)
            # One that expects a seq is not told that it gave up, but which seq it is now.
            patient = not out_of_patience(job.started, job.attempts)
            if job.command.caller.expected_seq is None and not patient:
                job.fail(gave_up(job.attempts, self._history.model))
            else:
                self._queue.appendleft(job)
        if attempts > 1:  # the first time because nobody had told of them; they are done by now
            back_off(attempts)
        try:
            self.catch_up()
        except Exception as error:  # noqa: BLE001  (it is for whoever waits for these writes)
            for job in jobs:
                if not job.done:
                    self._queue.remove(job)
                    job.fail(error)
