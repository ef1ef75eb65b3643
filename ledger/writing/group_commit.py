"""Group commit between the processes of a machine: one transaction for all who wait.

A writer that has to wait for its turn leaves its command to those before it. Whoever has the turn
works out what was left to him after what is his own, and appends all of it at once. At its own turn
each finds its event, or carries its command out itself: because nobody took it, because what came
of it is an error, which it is to hear itself, or because he who took it died or lost to another
writer. Which event a command will be is promised before that is committed. So who finds nothing
promised after he has read a state knows that this is without his command, and may work it out upon
it: of the two events then only one gets the place behind that state.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from msgspec.structs import replace

from weightledger.ledger.errors import LedgerError
from weightledger.ledger.events import REDACTED, Annotation, Event
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.change import Change
from weightledger.ledger.projection.following import told_on
from weightledger.ledger.projection.projector import Projector
from weightledger.ledger.sql.boxes import Asked
from weightledger.ledger.sql.groups import NO_GROUP, Group, Told
from weightledger.ledger.sql.turns import Neighbours, Turn
from weightledger.ledger.store.attached import Append
from weightledger.ledger.store.telling import heard, told
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.spec import WEIGHTS
from weightledger.ledger.writing.asking import asked, asked_for
from weightledger.ledger.writing.attempts import Attempts
from weightledger.ledger.writing.commands import Command
from weightledger.ledger.writing.handlers import row_of
from weightledger.ledger.writing.job import Job
from weightledger.ledger.writing.left import LeftToOthers
from weightledger.ledger.writing.policy import Policy
from weightledger.ledger.writing.update_commands import ApplyUpdates

logger = logging.getLogger(__name__)


# Events of which it is remembered that they are in this log: those of some turns of all.
_MOST_KNOWN = 512


class GroupCommit:
    """What one writer leaves to others and does for them; used under the writer's lock."""

    def __init__(
        self,
        history: History,
        projector: Projector,
        policy: Policy,
        attempts: Attempts,
        catch_up: Callable[[], object],
    ) -> None:
        self._history = history
        self._projector = projector
        self._policy = policy
        self._attempts = attempts
        self._catch_up = catch_up
        self.offered: Job | None = None
        """The job that may be left to others if its turn has to be waited for."""
        self._left: LeftToOthers | None = None
        self._theirs: list[tuple[Asked, Job]] = []
        self._told = NO_GROUP
        self._heard: list[Event] | None = None  # of it
        self._answer: Told | None = None
        self._others_write = False
        self._are_waiting = False
        # Only then what others tell is believed, and something is left to them: files may be newer
        # than the database beside them, but not while both are written to.
        self._has_written = False
        self._known: dict[bytes, None] = {}

    # While it waits

    def waits(self, neighbours: Neighbours) -> bool:
        """See `Meanwhile.waits`."""
        self._leave(neighbours)
        return self._left is not None

    def look(self, neighbours: Neighbours) -> bool:
        """See `Meanwhile.look`."""
        left = self._left
        assert left is not None, "it waits for what it left to others"
        with contextlib.suppress(OSError):
            promised = left.ticket.promised()
            told = NO_GROUP if promised is None else neighbours.told()
            for one in told.events:
                if promised == (one.seq, one.hash):
                    self._hear(told)
                    self._answer = one
        return self.answered

    @property
    def answered(self) -> bool:
        """See `Meanwhile.answered`."""
        return self._answer is not None

    def _leave(self, neighbours: Neighbours) -> None:
        """Leave the job to others. Who has not written here himself, and so may not be allowed to,
        leaves nothing to others."""
        job = self.offered
        if job is None or self._left is not None or job.attempts or job.left is not None:
            return
        if not self._has_written or self._projector.remote is not None:
            return
        words = _words(job)
        salt, live = b"" if words is None else words.salt, self._projector.live.head
        head, device = (live.seq, live.hash), self._device(job.command)
        command = asked(job.command, self._policy, salt, head, device)
        if command is None:
            return
        try:
            ticket = neighbours.ask(command)
        except OSError as error:
            logger.debug("nothing is left to others of %s: %s", self._history.model, error)
            return
        if ticket is not None:
            job.started = job.started or time.perf_counter()
            job.words = words
            job.left = self._left = LeftToOthers(self._history, job, ticket)

    def is_next(self, neighbours: Neighbours) -> None:
        """See `Meanwhile.is_next`."""
        with contextlib.suppress(OSError):
            if self._left is not None and self._left.ticket.promised() is not None:
                return  # its turn is over as soon as it begins: that is for afterwards
        self._hear(_what_is_told(neighbours))
        if not self.follow():
            self._catch_up()

    # In its turn

    def begin(self, turn: Turn) -> tuple[Job, Told] | None:
        """The turn has begun: the job that was left to others, and its event, where that is among
        those that were told of last. What the log has to say of it, it says when the job is worked
        out."""
        self.offered = None
        neighbours, left = turn.neighbours, self._left
        answer = self._answer
        if answer is not None:
            assert left is not None, "what it left to others was done"
            self._are_waiting = False
            self.withdraw()
            return left.job, answer
        self._hear(NO_GROUP)
        self._are_waiting = self._others_write = False
        if left is None and turn.head == self._projector.live.head.seq:
            return None  # nothing is new: so it is for a writer that is alone
        self._others_write = True
        if neighbours is not None:
            self._hear(_what_is_told(neighbours))
        self.withdraw()
        if left is None or neighbours is None:
            return None
        left.has_turn = True
        with contextlib.suppress(OSError):
            promised = left.ticket.promised()
            for one in self._told.events if promised is not None and self._has_written else ():
                if promised == (one.seq, one.hash):
                    return left.job, one
        return None

    def has_left(self, job: Job) -> bool:
        """Whether others may be carrying out a job right now."""
        return self._left is not None and self._left.job is job

    def withdraw(self) -> None:
        """Let nobody begin with what was left to others."""
        left, self._left, self._answer = self._left, None, None
        if left is not None:
            with contextlib.suppress(OSError):
                left.ticket.withdraw()

    def follow(self) -> bool:
        """Show what was told last; False where that is not of what is shown here."""
        if not self._told.events:  # so it is for a writer that is alone
            return self._has_written
        try:
            news = self._news()
            if news:
                live = self._projector.live
                ahead = told_on(live.head, live.state, news, self._told.tensors)
                if ahead is None:
                    return False
                self._projector.go_on(self._history, ahead)
                self._projector.way.hear_of_anchor(self._told.anchor)
                self._remember(news)
        except LedgerError:  # it fails again, and is told, when an event of our own loses to these
            return False
        return news is not None

    def theirs(self, turn: Turn, own: Sequence[Append]) -> list[Job]:
        """Work out what others left to this turn, after all that is staged, which is `own`."""
        self._theirs = []
        neighbours = turn.neighbours
        if neighbours is None:
            return []
        try:
            self._are_waiting = neighbours.are_waiting()
            if not self._are_waiting or self._projector.remote is not None or not _all_small(own):
                return []
            self._remember([self._projector.live.head])
            commands = neighbours.asked()
        except OSError:
            return []
        self._theirs = [
            (one, job) for one in commands if (job := self._worked_out(one.command)) is not None
        ]
        return [job for _, job in self._theirs]

    def _worked_out(self, data: bytes) -> Job | None:
        """A command of another process and what it comes to; None where that is for its own
        process to find out, or it is not known to be of this log."""
        try:
            one = asked_for(data, self._policy, self._projector.specs)
            if one is None or not self._is_ours(*one.head):
                return None
            if one.device != self._device(one.command):
                return None
            job = Job(one.command, row_of(one.command))
            job.words = _words(job, one.salt)
            return job if self._attempts.work_out(job) else None
        except Exception as error:  # noqa: BLE001  (whose command it is does it again, and is told)
            logger.debug("a command of another process: %s", error)
            return None

    def promise(self, turn: Turn) -> bool:
        """Tell those whose commands are in this turn's transaction what they come to; False where
        they could not know it."""
        neighbours = turn.neighbours
        try:
            for one, job in self._theirs:
                assert neighbours is not None, "their commands came with it"
                neighbours.promise(one, job.event.seq, job.event.hash)
        except OSError as error:
            logger.debug("nothing can be promised to others of %s: %s", self._history.model, error)
            return False
        return True

    def committed(self, turn: Turn, appends: Sequence[Append], change: Change | None) -> None:
        """Tell who waits what is committed, and changes live weights so; the turn is over."""
        neighbours = turn.neighbours
        if neighbours is not None:
            try:
                if self._are_waiting or self._others_write:
                    anchor = self._projector.way.anchor
                    news = replace(self._to_tell(appends, change), anchor=anchor)
                    neighbours.tell(news, appends[0][0].prev)
                for event, _, _ in appends:
                    if event.kind == REDACTED:
                        neighbours.clean()
            except OSError as error:  # then they ask the log
                logger.debug("%s: nobody is told of a commit: %s", self._history.model, error)
        turn.over()

    def _to_tell(self, appends: Sequence[Append], change: Change | None) -> Group:
        if change is None:
            return told(appends, {})
        changed = {name: new.tensor for name, new in change.weights.items()}
        here = all(tensor.is_cpu for tensor in changed.values())
        if not here or change.auxiliary is not self._projector.live.auxiliary:
            return NO_GROUP
        return told(appends, {name: lanes(tensor, name) for name, tensor in changed.items()})

    def shown(self, appends: Sequence[Append]) -> None:
        """This turn's events are visible, and nothing is staged any more."""
        last = appends[-1][0]
        theirs, self._theirs = self._theirs, []
        self._has_written = True
        if self._are_waiting:
            self._remember(event for event, _, _ in appends)
        for _, job in theirs:
            self._history.learn(job.event)
        if theirs:
            self._projector.tell_followed(last)

    def give_up(self) -> None:
        """What was worked out for others is not appended."""
        self._theirs = []

    def heard(self, one: Told) -> Event:
        """An event of those that were told of last; CorruptLedger where one of them is none."""
        return next(event for event in self._all_heard(one.seq) if event.seq == one.seq)

    def _all_heard(self, seq: int) -> list[Event]:
        """What was told last, as far as it is not shown here yet, or from a seq on."""
        if self._heard is None:
            first = min(seq, self._projector.live.head.seq + 1)
            self._heard = heard([one for one in self._told.events if one.seq >= first])
        return self._heard

    def _news(self) -> list[Event] | None:
        """What was told last and is not shown here yet; None unless it goes on from that."""
        before = self._projector.live.head
        if not self._has_written:
            return None
        news = [one for one in self._all_heard(before.seq + 1) if one.seq > before.seq]
        for event in news:
            if event.prev != before.hash:
                return None
            before = event
        return news

    def _hear(self, group: Group) -> None:
        self._told, self._heard = group, None

    def _device(self, command: Command) -> str:
        """What kind of device has the parameter that an update is for: others may not come to its
        very bits."""
        if not isinstance(command, ApplyUpdates):
            return ""
        return self._projector.tensor(WEIGHTS + command.updates[0].spec.name).device.type

    def _is_ours(self, seq: int, event_hash: bytes) -> bool:
        """Whether this log has an event."""
        if event_hash not in self._known:
            event = self._history.store.event(seq)
            if event is None or event.hash != event_hash:
                return False
            self._remember([event])
        return True

    def _remember(self, events: Iterable[Event]) -> None:
        known = self._known
        for event in events:
            known[event.hash] = None
        while len(known) > _MOST_KNOWN:
            del known[next(iter(known))]


def _what_is_told(neighbours: Neighbours) -> Group:
    try:
        return neighbours.told()
    except OSError:
        return NO_GROUP


def _words(job: Job, salt: bytes | None = None) -> Annotation | None:
    """The words of a job's caller, as they are to stand beside its event."""
    caller, metadata = job.command.caller, job.command.metadata
    if caller.actor is None and caller.reason is None and metadata is None:
        return None
    if salt is None:
        return Annotation(caller.actor, caller.reason, metadata)
    return Annotation(caller.actor, caller.reason, metadata, salt)


def _all_small(own: Sequence[Append]) -> bool:
    """Whether nobody who waits is held up by more than small events."""
    return all(its.inline is not None or not event.payload for event, _, its in own)
