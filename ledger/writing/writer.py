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
from weightledger.ledger.events import NO_WORDS, Event
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.change import Change
from weightledger.ledger.projection.following import MOST_NEWS, News
from weightledger.ledger.projection.projector import Projector
from weightledger.ledger.sql.groups import Told
from weightledger.ledger.sql.turns import Turn
from weightledger.ledger.store.attached import Append
from weightledger.ledger.writing import arithmetic
from weightledger.ledger.writing.append_loop import back_off, gave_up, out_of_patience
from weightledger.ledger.writing.approval_commands import CarryOut, RequestApproval
from weightledger.ledger.writing.attempts import Attempts
from weightledger.ledger.writing.commands import Command
from weightledger.ledger.writing.group_commit import GroupCommit
from weightledger.ledger.writing.handlers import row_of
from weightledger.ledger.writing.handlers.approvals import held_back
from weightledger.ledger.writing.job import Job, Later
from weightledger.ledger.writing.policy import Policy
from weightledger.ledger.writing.showing import Committed, Showing, not_shown
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
        self._groups = GroupCommit(history, projector, policy, self._attempts, self._meanwhile)
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
                if outer is None:
                    self._groups.offered = self._queue[0] if len(self._queue) == 1 else None
                with self._history.store.turn(self._groups, after) as turn:
                    answered = self._groups.begin(turn) if outer is None else None
                    if answered is None:
                        self._work_off(turn)
                    else:
                        self._answered(*answered, turn)
        finally:
            self._thread = outer
            if outer is None:
                self._groups.withdraw()
            self._staged.clear()

    def _work_off(self, turn: Turn) -> None:
        """Append what waits, as far as it goes into one transaction."""
        self._groups.follow()
        if turn.head is not None and turn.head > self._projector.live.head.seq:
            self._meanwhile(turn)
        for _ in range(_TRIES_A_TURN):
            if self._append(self._gather(turn), turn):
                break
        turn.head = self._projector.live.head.seq

    def _answered(self, job: Job, told: Told, turn: Turn) -> None:
        """Show what others did, and with it the event that they made of a job left to them."""
        turn.over()  # nobody need wait until it is read
        try:
            event = self._groups.heard(told)
        except LedgerError:  # in its next turn it is looked for in the log
            return
        with contextlib.suppress(ValueError):  # its caller went away meanwhile
            self._queue.remove(job)
        job.left = None
        try:
            self._groups.follow()
            if self._projector.live.head.seq < event.seq:
                self.catch_up()
        except BaseException as error:
            job.fail(not_shown(event, error))
            if not isinstance(error, Exception):
                raise
            return
        try:
            self._tell_of(job, event)
        finally:  # it is done, whatever interrupts what follows
            self._attempts.finish(job, event)

    def _tell_of(self, job: Job, event: Event) -> None:
        """Tell of an event that another process made of a job of ours."""
        took = time.perf_counter() - job.started
        self._afterwards(Committed(event, took, None, job.words or NO_WORDS))

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

    def _gather(self, turn: Turn) -> list[Job]:
        """Take commands off the queue and work them out, one on another, until one goes alone.

        An append on a state that is not the last any more loses, and is worked out again; but what
        is refused, or found to be done already, is so on the last one.
        """
        group: list[Job] = []
        size = 0
        while self._queue and len(group) < _GROUP_EVENTS and size < _GROUP_BYTES:
            if self._groups.has_left(self._queue[0]):
                break
            job = self._queue.popleft()
            if not (job.row.grouped or job.row.light or group):
                self._is_behind(turn)
            alone = not job.row.grouped or self._policy.alone
            try:
                if group and (alone or self._must_wait(job.command, group)):
                    raise Later
                left = job.left
                if not self._attempts.work_out(job):
                    if left is not None and job.left is None:  # another process had done it
                        self._tell_of(job, job.result())
                    continue
            except Later:
                self._queue.appendleft(job)
                break
            except SeqTaken:  # while replicas prepared it; it was alone
                self._lost([job])
                break
            except Exception as error:  # noqa: BLE001  (it is for whoever waits for this write)
                if self._is_behind(turn):
                    self._queue.appendleft(job)
                    if group:
                        break
                else:
                    job.fail(error)
                continue
            except BaseException as error:
                for one in (*group, job):
                    one.fail(error)
                raise
            group.append(job)
            for new in () if job.change is None else job.change.weights.values():
                size += new.tensor.nbytes
            if alone or self._projector.remote is not None:
                break
        return group

    def _is_behind(self, turn: Turn) -> bool:
        """Whether others wrote what nobody had told of; it is shown, if nothing is staged."""
        if turn.head is not None and not turn.deferred:
            return False
        seq = self._projector.live.head.seq
        try:
            if self._history.store.last_seq() <= seq:
                return False
            if not self._staged.pending:
                self.catch_up()
        except LedgerError:  # what was refused is
            return False
        return True

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
        own = [append for job in group for append in job.appends]
        try:
            jobs = [*group, *self._theirs(group, own, turn)]
            appends = [append for job in jobs for append in job.appends]
            change = self._prepared(jobs)
            append_started = time.perf_counter()
            if not self._groups.promise(turn):
                return self._without_others(group)
            turn.ending = True
            self._history.store.append(*appends)
            appended = time.perf_counter()
            turn.head = appends[-1][0].seq
            self._groups.committed(turn, appends, change)
            self._showing.show(appends, change)
        except (SeqTaken, KeyTaken):
            return self._without_others(group)
        except BaseException as error:
            self._groups.give_up()
            self._staged.clear()
            for job in group:
                job.fail(error)
            if not isinstance(error, Exception):
                raise
            return True
        self._staged.clear()
        shown = time.perf_counter()
        try:
            self._groups.shown(appends)
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

    def _without_others(self, group: list[Job]) -> bool:
        """Try a group again, which could not be appended, without commands of other processes."""
        self._groups.give_up()
        self._staged.clear()
        self._lost(group)
        return False

    def _theirs(self, group: list[Job], own: list[Append], turn: Turn) -> list[Job]:
        """Commands of other processes, worked out to be appended after those of `group`. One that
        lost before goes without them: it may be theirs that cannot be appended."""
        if self._policy.alone:
            return []
        for job in group:
            if job.attempts or not job.row.grouped:
                return []
        return self._groups.theirs(turn, own)

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
