"""Writers of one model, in whatever process, one at a time and in the order in which they came.

A turn is held while its holder catches up, works out its event and appends it, so that nobody's
work is in vain. It is a courtesy: what keeps the log right is the compare-and-set of the append,
so a turn that cannot be had (a lock that does not work on this file system, a holder that was
suspended) is gone without. `file_turns` has the locks for SQLite, `advisory_turns` for PostgreSQL.
"""

import contextlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from weightledger.ledger import interrupts
from weightledger.ledger.errors import LedgerError
from weightledger.ledger.sql.boxes import Asked, Ticket
from weightledger.ledger.sql.groups import Group

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""A turn that lasts for so long, or twice as long, is not waited for any longer."""

# After so many turns between which nobody else wrote, the statement that writes asks for the turn
# itself where the lock can do that: it saves a lone writer a round trip.
_UNDISTURBED = 2

_UNKNOWN = object()


Statement = tuple[str, Sequence[Any]]
"""SQL with `?` for each value, and the values."""

News = list[list[bytes | None]]
"""Rows of a query, each value in the database's binary form."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is new: a query for the events after the seq `after`, in their order, and its values."""

    after: int
    sql: str
    params: tuple[int, ...]


class Neighbours(Protocol):
    """The writers of one machine, as one of them meets the others; see `boxes` and `groups`.

    Every method may raise OSError. `asked`, `promise`, `clean` and `tell` are for whoever has the
    turn.
    """

    def ask(self, command: bytes) -> Ticket | None:
        """Leave a command to those who have their turns before this writer; None where that cannot
        be."""

    def asked(self) -> list[Asked]:
        """Commands of those who wait, for which nothing is promised."""

    def promise(self, asked: Asked, seq: int, event_hash: bytes) -> None:
        """Which event a command will be, before that is committed: nobody else carries it out."""

    def clean(self) -> None:
        """Wipe out what those have left who died while they waited."""

    def are_waiting(self) -> bool:
        """Whether others wait for their turn."""

    def told(self) -> Group:
        """What was told last; at any time."""

    def tell(self, news: Group, after: bytes | None) -> None:
        """Tell which events are committed behind the one with the hash `after`, what the tensors
        are that they changed, and the last node known to have a snapshot."""


class Meanwhile(Protocol):
    """What whoever waits for a turn does until then, where the lock can tell."""

    def waits(self, neighbours: Neighbours) -> bool:
        """It comes to waiting: whether what it is for is left to those who have turns before. May
        be called more than once."""

    def look(self, neighbours: Neighbours) -> bool:
        """Whether that is done, so that there is no need for a turn any more."""

    @property
    def answered(self) -> bool:
        """What `look` gave last."""

    def is_next(self, neighbours: Neighbours) -> None:
        """The next turn is this writer's: he may read what others wrote so far."""


class Lock(Protocol):
    """A lock between processes that is given to those who wait for it in order.

    Every method may raise OSError or LedgerError. The lock goes with a holder that dies.
    """

    condition: str | None
    """An SQL expression, true where it was free: then the transaction holds it. None where there is
    no such."""
    writes: bool
    """Whether `write` does."""
    deferring: bool
    """While it is held: whether that goes for this machine only, and the statement that writes has
    still to ask for `condition`."""

    @property
    def neighbours(self) -> Neighbours | None:
        """While it is held: those of this machine, where it is among them."""

    def acquire(
        self,
        timeout_s: float,
        meanwhile: Meanwhile | None = None,
        question: Question | None = None,
    ) -> bool:
        """Whether it is held now; with 0 it is only tried.

        `meanwhile` is told of the waiting where the lock can tell; it is not held where that is
        `answered`. The question is answered with the lock where the lock is the database's.
        """

    def news(self) -> News | None:
        """The answer to the question, while it is held; None where none was asked or is given."""

    def write(self, statements: Sequence[Statement]) -> list[tuple[int, ...]]:
        """Run the last statements of a turn, whose COMMIT lets the lock go; gives the rows of all,
        as `Backend.alone` does."""

    @property
    def connection(self) -> Any:
        """The driver's connection that `write` used."""

    def release(self, head: int | None) -> None:
        """Let it go; `head` is the seq of the log's last event, where that is known."""

    def is_free(self) -> bool:
        """Whether nobody is known to have it or to wait for it, without asking the database."""

    def settle(self) -> None:
        """Wait until what was let go is free, where letting go takes a while."""

    def head(self) -> int | None:
        """The seq of the log's last event as far as holders told, without holding the lock."""

    def under_way(self) -> object:
        """What tells the turn that is under way from every other; asked while it is another's."""

    def close(self) -> None:
        """Give back what it takes; it is not used any more."""

    def forked(self) -> None:
        """In a fork: let go there of what both processes hold."""


class Turn(msgspec.Struct, eq=False):
    """One writer's turn; `head` is the seq of the log's last event, None when that is not known.

    It is told by whoever had a turn before, so it may lag behind. Whoever appends says so here.
    `held` is whether others wait for its end; a turn that is not held yet, `deferred`, may be had
    by the statement that writes. `within` is how many blocks there are inside the one it began in.
    `news` is what the question gave that was asked with it; `ending` says that nothing is written
    in it after the next statement that writes, with which it may end. `among` are the other
    writers of this machine, whose turn this is as well.
    """

    head: int | None = None
    held: bool = False
    deferred: bool = False
    ending: bool = False
    news: News | None = None
    within: int = 0
    among: Neighbours | None = None
    turnstile: "Turnstile | None" = None

    @property
    def neighbours(self) -> Neighbours | None:
        """The other writers of this machine, where they wait for its end; None within another
        block, whose turn it is."""
        return None if self.within else self.among

    def over(self) -> None:
        """Give it on before its block ends: what was to be written is. Not within another block,
        whose turn it is."""
        if self.turnstile is not None:
            self.turnstile.end(self)


class Turnstile:
    """The turns of one model in this process; safe to share between threads."""

    def __init__(self, lock: Lock, model: str) -> None:
        self._lock = lock
        self._model = model
        self._ours = threading.RLock()
        self._turn: Turn | None = None
        self._stuck = False  # the turn under way was not waited for
        self._stuck_in: object = _UNKNOWN  # which one that was
        self._left: int | None = None  # the head when our last turn ended
        self._thread: int | None = None
        self._undisturbed = 0  # turns one after the other between which nobody else wrote

    def turn(
        self, meanwhile: Meanwhile | None = None, question: Question | None = None
    ) -> "_InTurn":
        """Wait for this writer's turn; within a turn there is no further one to wait for.

        `meanwhile` is told of the waiting, where the lock can tell who is next: what is done then
        is not done while the others wait. The question is answered with the turn where
        the lock can do that.
        """
        return _InTurn(self, meanwhile, question)

    @property
    def answers(self) -> bool:
        """Whether a question is answered with the turn: where the lock is the database's."""
        return self._lock.writes

    @property
    def condition(self) -> str | None:
        """In a deferred turn what the one statement that writes has to ask for, else None.

        It is true where nobody has a turn or waits for one; then the turn is the statement's own.
        """
        turn = self._deferred()
        return None if turn is None else self._lock.condition

    def take(self) -> bool:
        """Wait for the turn where it is deferred: whether it was, so that others may have written.

        For what cannot be written by one statement, or found that others have a turn.
        """
        turn = self._deferred()
        if turn is None:
            return False
        turn.deferred = False
        self._undisturbed = 0
        turn.held = self._acquired()
        turn.among = self._lock.neighbours if turn.held else None
        turn.head = self._read_head() if turn.held else None
        return True

    @property
    def head(self) -> int | None:
        """The seq of the log's last event when this thread's turn was had, if that is known."""
        turn = self._turn
        return None if turn is None or self._thread != threading.get_ident() else turn.head

    def lent(self) -> Lock | None:
        """What the last statements of this thread's turn are written by, so that the turn ends with
        them; None where it does not end with a statement. In a deferred turn the first of them has
        to ask for `condition`."""
        turn = self._turn
        if (
            turn is None
            or not (turn.held or turn.deferred)
            or not turn.ending
            or turn.within
            or not self._lock.writes
            or self._thread != threading.get_ident()
        ):
            return None
        try:
            if turn.deferred:
                self._lock.settle()
        except (OSError, LedgerError):
            return None
        turn.held = False
        return self._lock

    def close(self) -> None:
        """Give back the lock's files or connection."""
        with self._ours, contextlib.suppress(OSError, LedgerError):
            self._lock.close()

    def forked(self) -> None:
        """In a fork: no turn is taken there any more."""
        self._lock.forked()

    def enter(self, meanwhile: Meanwhile | None, question: Question | None) -> tuple[Turn, bool]:
        """The turn of this thread, and whether it is one that was under way; see `turn`."""
        interrupts.acquire(self._ours)
        if self._turn is not None:
            self._turn.within += 1
            return self._turn, True
        self._thread = threading.get_ident()
        try:
            if self._may_defer():
                turn = Turn(deferred=True, turnstile=self)
                self._turn = turn
                return turn, False
            # From here on, so that what `meanwhile` does does not wait for a turn of its own.
            self._turn = turn = Turn(turnstile=self)
            turn.held = held = self._acquired(meanwhile, question)
            if held:
                turn.news = self._lock.news()
                turn.deferred, turn.among = self._lock.deferring, self._lock.neighbours
            turn.head = head = self._read_head() if held else None
        except BaseException:
            self._turn = None
            self._ours.release()
            raise
        alone = held and head is not None and head == self._left
        self._undisturbed = self._undisturbed + 1 if alone else 0
        return turn, False

    def leave(self, turn: Turn, within: bool) -> None:
        """The end of what `enter` gave."""
        try:
            if within:
                turn.within -= 1
            else:
                self.end(turn)
        finally:
            self._ours.release()

    def end(self, turn: Turn) -> None:
        """See `Turn.over`; the second time it does nothing."""
        if turn is not self._turn or turn.within:
            return
        self._turn = None
        self._left = turn.head
        if turn.held or turn.among is not None:
            turn.held, turn.among = False, None
            self._release(turn)

    def _may_defer(self) -> bool:
        """Whether the statement that writes can ask for the turn, none of ours before it."""
        if self._undisturbed < _UNDISTURBED or self._stuck or self._lock.condition is None:
            return False
        try:
            self._lock.settle()
            return self._lock.is_free()
        except (OSError, LedgerError):
            return False

    def _deferred(self) -> Turn | None:
        """This thread's turn, where it is deferred."""
        turn = self._turn
        if turn is None or not turn.deferred or self._thread != threading.get_ident():
            return None
        return turn

    def _acquired(
        self, meanwhile: Meanwhile | None = None, question: Question | None = None
    ) -> bool:
        try:
            if self._stuck:
                if self._lock.acquire(0, None, question):
                    self._stuck = False
                    return True
                if self._lock.under_way() == self._stuck_in:
                    return False
                self._stuck = False  # others have turns again: queue with them
            before: object = _UNKNOWN
            while not self._lock.acquire(PATIENCE_S, meanwhile, question):
                if meanwhile is not None and meanwhile.answered:
                    return False
                interrupts.handle()
                now = self._lock.under_way()
                # Where nobody has written since our own turn, it was the same one all the time.
                if now == before or (self._left is not None and self._lock.head() == self._left):
                    self._stuck, self._stuck_in = True, now
                    logger.warning(
                        "a writer of %s holds its turn and has not written for %d s: going on"
                        " without waiting for it",
                        self._model,
                        PATIENCE_S,
                    )
                    return False
                before = now
        except (OSError, LedgerError) as error:
            logger.warning("writers of %s go without turns: %s", self._model, error)
            return False
        return True

    def _read_head(self) -> int | None:
        try:
            return self._lock.head()
        except (OSError, LedgerError):
            return None

    def _release(self, turn: Turn) -> None:
        try:
            self._lock.release(turn.head)
        except (OSError, LedgerError) as error:
            logger.warning("a turn of %s could not be given on: %s", self._model, error)


class _InTurn:
    """A turn for as long as its block runs, which nothing interrupts; a class, because a generator
    costs as much again."""

    __slots__ = ("_meanwhile", "_question", "_turn", "_turnstile", "_within")

    def __init__(
        self, turnstile: Turnstile, meanwhile: Meanwhile | None, question: Question | None
    ) -> None:
        self._turnstile = turnstile
        self._meanwhile = meanwhile
        self._question = question

    def __enter__(self) -> Turn:
        interrupts.held.__enter__()
        try:
            self._turn, self._within = self._turnstile.enter(self._meanwhile, self._question)
        except BaseException as error:
            interrupts.held.__exit__(type(error), error, None)
            raise
        return self._turn

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> None:
        try:
            self._turnstile.leave(self._turn, self._within)
        finally:
            interrupts.held.__exit__(kind, error, trace)
