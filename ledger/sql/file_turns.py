"""Turns on SQLite: a queue of locked bytes, in a file for each model.

    FILE-turns/ID.turn    byte 0 is held during a turn; who waits holds the byte at his place, which
                          is when he came, and is next once he holds all places before it

The locks go where there are no bytes. The file has the seq of the log's last event as eight bytes,
behind it when the last turn ended, in ns, as eight more, and then what was written in it
(`groups`).

Where all wait for one lock, whoever comes when it was let go, and before one of those who wait has
woken up, overtakes them. Here a place is held from when its owner came. The operating system gives
it back when its owner dies; one that was stopped keeps his, so whoever sees nobody have a turn for
a while, though others are before him, queues again and goes past one of them. Where that one is
just slow, two are next, and byte 0 is given to one of them.

Who has left his command to others (`boxes`) does not queue at first. He holds a byte beyond all
places, so that they know of him, and waits for his bell, by which whoever ends a turn wakes those
whose commands he has carried out, and one of the others: that one has the turn, unless somebody
queues.

Places are of the clock that all processes of a machine share, and only those can share a database
whose log has its index in memory.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from weightledger.ledger.sql import byte_locks, groups
from weightledger.ledger.sql.boxes import Asked, Boxes, Ticket
from weightledger.ledger.sql.groups import Group
from weightledger.ledger.sql.lock_waiter import LockWaiter
from weightledger.ledger.sql.turns import Meanwhile, Question, Statement

logger = logging.getLogger(__name__)

_HEAD_BYTES = 8
_TIME_BYTES = 8
_GROUP_AT = _HEAD_BYTES + _TIME_BYTES

_LEFT = 1 << 62
"""Where the bytes of those begin who have left their commands to others."""

# He looks so often whether it is carried out, or the turn is to be had, and then queues: the next
# times as well, since those who have turns carry nothing out for others.
_GLANCE_S = 0.05
_GLANCES = 3
_IN_VAIN = 30
# So he does for longer where nobody rang for him though there was something to see.
_UNHEARD = 1000

# Whoever waits looks so often whether there are turns, and goes on after two looks at none.
_LOOK_S = 0.2


class FileLock:
    """`ledger.sql.turns.Lock` over the file."""

    condition = None
    writes = False
    deferring = False

    def __init__(self, database: Path, model_id: int) -> None:
        self._database = database
        self._path = Path(f"{database}-turns") / f"{model_id}.turn"
        self._file: int | None = None
        self._first = 1  # places before it are not waited for
        self._waiter: LockWaiter | None = None
        self._number = 0  # of the file that was opened last
        self._boxes: Boxes | None = None  # of that file
        self._queues = 0  # so often at once
        self._group: Group | None = None  # what is told, in this turn
        self._has_turn = False
        self._in_place: tuple[int, int] | None = None  # the database, at the first turn

    @property
    def neighbours(self) -> "FileLock":
        """Itself."""
        return self

    def acquire(
        self,
        timeout_s: float,
        meanwhile: Meanwhile | None = None,
        _question: Question | None = None,
    ) -> bool:
        """Whether it is held now; `meanwhile` is told by whoever is next.

        False once no turn has ended for `timeout_s`, and where `meanwhile` is `answered`.
        """
        self._group = None
        try:
            self._has_turn = self._acquired(timeout_s, meanwhile)
            return self._has_turn
        except BaseException:  # what is held goes with the file
            self._close_file()
            raise

    def _acquired(self, timeout_s: float, meanwhile: Meanwhile | None) -> bool:
        if self._begins():
            return True
        if not timeout_s:
            return False
        if meanwhile is not None and meanwhile.waits(self):
            if self._waits_in_box(meanwhile):
                return True
            if meanwhile.answered:
                return False
        patience = _Patience(timeout_s)
        while not self._is_next(patience):
            if patience.over:
                return False
        if meanwhile is not None:
            meanwhile.is_next(self)
        if not self._had(0, 1, patience.lasts):
            return False
        byte_locks.let_go(self._opened(), 1)  # now another one is next
        return True

    def _begins(self) -> bool:
        """Whether the turn is had at once: nobody has it, and nobody queues."""
        file = self._opened()
        began = byte_locks.take(file, 0, _now() + 1)
        if began:
            byte_locks.let_go(file, 1)
        return began

    def _waits_in_box(self, meanwhile: Meanwhile) -> bool:
        """Wait until others have done what was left to them, which `meanwhile` is told, or the turn
        can be had: whether it is. Neither after some glances, when one has to queue."""
        if self._queues:
            self._queues -= 1
            return False
        file, boxes = self._opened(), self._opened_boxes()
        byte_locks.take(file, _LEFT + _now(), 1)
        try:
            for _ in range(_GLANCES):
                if self._begins():
                    return True
                rang = boxes.wait(_GLANCE_S)
                if rang is None:
                    return False
                if meanwhile.look(self):
                    # Perhaps it is just about to ring.
                    if not rang and not boxes.wait(_GLANCE_S):
                        self._queues = _UNHEARD
                    return False
            began = self._begins()
            if not began:
                self._queues = _IN_VAIN
            return began
        finally:
            byte_locks.let_go(file, _LEFT)

    def _is_next(self, patience: "_Patience") -> bool:
        """Take a place and wait until nobody is before it; if False it is given up."""
        file, place = self._opened(), _now()
        while not byte_locks.take(file, place, 1):  # who was next, or first, came later than this
            holder = byte_locks.held_by_others(file, place, 1)
            place = _now() if holder is None else holder.stop + 1
        first = self._first if self._first < place else 1
        # Not up to the place itself: locks that touch are made one, and all who wait woken up.
        before = (first, place - 1 - first)

        def waits(file: int) -> bool:
            return patience.lasts(file) and not (patience.idle and self._passes(file, *before))

        return self._had(*before, waits)

    def _passes(self, file: int, first: int, count: int) -> bool:
        """Whether there is somebody before this place; from now on it is after him."""
        holder = byte_locks.held_by_others(file, first, count)
        if holder is not None:
            self._first = holder.stop + 2  # who is next holds what is before his place, too
        return holder is not None

    def _had(self, first: int, count: int, waits: Callable[[int], bool]) -> bool:
        """Whether these bytes came while `waits` said so of the file; else nothing is held."""
        file = self._opened()
        if byte_locks.take(file, first, count):
            return True
        waiter, self._waiter = self._waiter or LockWaiter(), None
        self._file = None  # until it is known whether it can be used any more
        if not waiter.wait(file, first, count, _LOOK_S, lambda: waits(file)):
            return False
        self._file, self._waiter = file, waiter
        return True

    def news(self) -> None:
        """Nothing: a file answers no question."""

    def write(self, statements: Sequence[Statement]) -> list[tuple[int, ...]]:
        """Never: a file runs no statement."""
        raise NotImplementedError("a file runs no statement")

    def release(self, head: int | None) -> None:
        """Let it go, and leave what is known of the log to whoever comes next."""
        assert self._file is not None
        self._has_turn, self._group = False, None
        try:
            ended = time.time_ns().to_bytes(_TIME_BYTES, "big")
            if head is None:
                os.pwrite(self._file, ended, _HEAD_BYTES)
            else:
                os.pwrite(self._file, head.to_bytes(_HEAD_BYTES, "big") + ended, 0)
        except OSError as error:  # a full disk: nothing is known is better than what was known once
            logger.debug("%s cannot be written to: %s", self._path, error)
            os.ftruncate(self._file, 0)
        finally:
            byte_locks.let_go(self._file)
            self._ring()

    def _ring(self) -> None:
        """Wake those who have left their commands to others, if there are any."""
        try:
            if byte_locks.held_by_others(self._opened(), _LEFT, 0) is not None:
                self._opened_boxes().ring()
        except OSError as error:
            logger.debug("nobody is woken who waits for %s: %s", self._path, error)

    def ask(self, command: bytes) -> Ticket | None:
        """See `Neighbours.ask`."""
        self._require_in_place()
        return self._opened_boxes().put(command)

    def asked(self) -> list[Asked]:
        """See `Neighbours.asked`."""
        self._require_in_place()
        return self._opened_boxes().others()

    def promise(self, asked: Asked, seq: int, event_hash: bytes) -> None:
        """See `Neighbours.promise`."""
        self._opened_boxes().promise(asked, seq, event_hash)

    def clean(self) -> None:
        """See `Neighbours.clean`."""
        self._opened_boxes().clean()

    def is_free(self) -> bool:
        """See `Lock.is_free`."""
        return byte_locks.held_by_others(self._opened(), 0, 0) is None

    def are_waiting(self) -> bool:
        """See `Neighbours.are_waiting`."""
        return byte_locks.held_by_others(self._opened(), 1, 0) is not None

    def told(self) -> Group:
        """See `Neighbours.told`."""
        if self._group is not None:
            return self._group
        self._require_in_place()
        group = groups.read(self._opened(), _GROUP_AT)
        if self._has_turn:
            self._group = group
        return group

    def tell(self, news: Group, after: bytes | None) -> None:
        """See `Neighbours.tell`."""
        self._write(self.told().then(news, after))

    def count(self, undisturbed: int) -> None:
        """Note how many turns there were between which nobody from elsewhere wrote."""
        group = self.told()
        if undisturbed != group.undisturbed:
            self._write(replace(group, undisturbed=undisturbed))

    def _write(self, group: Group) -> None:
        groups.write(self._opened(), _GROUP_AT, group)
        self._group = group

    def settle(self) -> None:
        """Nothing to wait for."""

    def head(self) -> int | None:
        """What the last holder left."""
        left = os.pread(self._opened(), _HEAD_BYTES, 0)
        return int.from_bytes(left, "big") if len(left) == _HEAD_BYTES else None

    def under_way(self) -> object:
        """When the turn before it ended."""
        return _ended(self._opened())

    def close(self) -> None:
        """Close the file; what is held is let go with it."""
        self._close_file()
        self._close_boxes()
        if self._waiter is not None:
            self._waiter.end()
            self._waiter = None

    def forked(self) -> None:
        """What a fork closes stays locked for the process that locked it; its threads are not
        there."""
        self._waiter = None
        boxes, self._boxes = self._boxes, None
        if boxes is not None:
            boxes.forked()
        self._close_file()

    def _close_file(self) -> None:
        self._has_turn, self._group = False, None
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _opened(self) -> int:
        """A descriptor of the file, which may be used by whoever may use the database."""
        if self._file is None:
            if self._in_place is None:
                self._in_place = self._place()
            mode = self._mode()
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            try:
                self._file = os.open(self._path, flags, mode)
            except FileNotFoundError:
                self._path.parent.mkdir(mode=mode | (mode & 0o444) >> 2, exist_ok=True)
                self._file = os.open(self._path, flags, mode)
            number = os.fstat(self._file).st_ino
            if number != self._number:
                self._close_boxes()
                self._number = number
        return self._file

    def _opened_boxes(self) -> Boxes:
        """Those of this very file: who has a turn by another one has boxes of his own."""
        if self._boxes is None:
            self._opened()
            self._boxes = Boxes(self._path.with_suffix(f".{self._number:x}.boxes"), self._mode)
        return self._boxes

    def _require_in_place(self) -> None:
        """Raise OSError where the database was moved, removed or replaced: who has the other one
        open may not do anything for us, nor tell us anything."""
        self._opened()
        if self._in_place != self._place():
            raise OSError(f"{self._database} was replaced while it was in use")

    def _place(self) -> tuple[int, int]:
        found = os.stat(self._database)
        return found.st_dev, found.st_ino

    def _close_boxes(self) -> None:
        boxes, self._boxes = self._boxes, None
        if boxes is not None:
            boxes.close()

    def _mode(self) -> int:
        return self._database.stat().st_mode & 0o666


class _Patience:
    """What whoever waits knows of the turns: `idle` when there are none, `over` when one lasts for
    longer than he waits."""

    def __init__(self, timeout_s: float) -> None:
        self.idle = self.over = False
        self._timeout_s = timeout_s
        self._until = time.monotonic() + timeout_s
        self._ended: bytes | None = None
        self._free = False

    def lasts(self, file: int) -> bool:
        """Look at the file; whether it is waited for any longer."""
        ended, was_free = _ended(file), self._free
        self._free = byte_locks.held_by_others(file, 0, 1) is None
        now, went_on = time.monotonic(), ended != self._ended
        if went_on and self._ended is not None:
            self._until = now + self._timeout_s
        self._ended = ended
        self.idle = self._free and was_free and not went_on
        self.over = now >= self._until
        return not self.over


def _now() -> int:
    """A place: an even number, later than all before."""
    return 2 * time.monotonic_ns()


def _ended(file: int) -> bytes:
    return os.pread(file, _TIME_BYTES, _HEAD_BYTES)
