"""Commands of writers that wait for their turn, each in its writer's box of a file they share.

A writer has one box for as long as it lives, by a lock on the box's byte. It puts a command there
when it has to wait, under a number that no other command has, and empties the box at its own turn.
Until then whoever has a turn may carry the command out. Before he commits what comes of it, he
writes into the box which event that will be; from then on nobody else does, and the owner can look
for it in the log. So who has read a state of the log, and finds nothing promised after that, knows
that this state is without his command. What the owner of a box has not lived to empty is wiped out
by the next who looks.

    FILE   16 labels: number, size, checksum; number carried out, seq, event hash; then 16 × 16 KiB
"""

import logging
import os
import secrets
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from xxhash import xxh3_128_digest

from weightledger.ledger.sql import byte_locks
from weightledger.ledger.sql.bells import Bells

logger = logging.getLogger(__name__)

_BOXES = 16
_ASKED = struct.Struct(">QQ16s")
_PROMISED = struct.Struct(">QQ32s")
_LABEL_BYTES = _ASKED.size + _PROMISED.size
_NUMBER = struct.Struct(">Q")
_CONTENTS_AT = 4096
MOST_BYTES = 16 * 1024
"""Of a command."""


class Asked(NamedTuple):
    """A command in the box of another writer, and its number."""

    box: int
    number: int
    command: bytes


class Promised(NamedTuple):
    """The event that a command comes to, if it is committed: its seq and its hash."""

    seq: int
    hash: bytes


class Boxes:
    """The boxes of one model's writers, of which one is ours once it is wanted. Every method may
    raise OSError."""

    def __init__(self, path: Path, mode: Callable[[], int]) -> None:
        self.path = path
        self._mode = mode
        self._file: int | None = None
        self._own: int | None = None
        self._number = secrets.randbits(62)
        self._bells: Bells | None = None

    def put(self, command: bytes) -> "Ticket | None":
        """Put a command into our box; None where we have none, or it is too large."""
        if len(command) > MOST_BYTES:
            return None
        file = self._opened()
        box = self._box(file)
        if box is None:
            return None
        self._number += 1
        if self._bells is not None:
            self._bells.silence()
        os.pwrite(file, command, _contents_at(box))
        label = _ASKED.pack(self._number, len(command), _sum(self._number, command))
        os.pwrite(file, label + bytes(_PROMISED.size), box * _LABEL_BYTES)
        return Ticket(self, self._number, len(command))

    def promised(self, number: int) -> Promised | None:
        """What somebody promised for our command with a number."""
        file, box = self._mine()
        label = os.pread(file, _PROMISED.size, box * _LABEL_BYTES + _ASKED.size)
        carried_out, seq, event_hash = _PROMISED.unpack(label)
        return Promised(seq, event_hash) if carried_out == number else None

    def empty(self, size: int) -> None:
        """Empty our box of a command of so many bytes."""
        file, box = self._mine()
        try:
            os.pwrite(file, bytes(_ASKED.size), box * _LABEL_BYTES)
            os.pwrite(file, bytes(size), _contents_at(box))
        except OSError:  # a box that is nobody's is not looked into
            self.close()
            raise

    def _mine(self) -> tuple[int, int]:
        if self._file is None or self._own is None:
            raise OSError("the box was given up")
        return self._file, self._own

    def others(self) -> list[Asked]:
        """The commands of others for which nothing is promised; during a turn only. Boxes of the
        dead are wiped out."""
        file = self._opened()
        found = []
        for box, (number, size, checksum), carried_out in self._labels():
            if not 0 < size <= MOST_BYTES or box == self._own:
                continue
            if byte_locks.held_by_others(file, box, 1) is None:
                self._wipe(file, box)
            elif carried_out != number:
                command = os.pread(file, size, _contents_at(box))
                if checksum == _sum(number, command):
                    found.append(Asked(box, number, command))
        return found

    def _labels(self) -> Iterator[tuple[int, tuple[int, int, bytes], int]]:
        """Of each box its number, what was asked last, and the number that was carried out."""
        labels = os.pread(self._opened(), _BOXES * _LABEL_BYTES, 0)
        for box in range(len(labels) // _LABEL_BYTES):
            (carried_out,) = _NUMBER.unpack_from(labels, box * _LABEL_BYTES + _ASKED.size)
            yield box, _ASKED.unpack_from(labels, box * _LABEL_BYTES), carried_out

    def clean(self) -> None:
        """Wipe out the boxes of the dead."""
        file = self._opened()
        for box in range(_BOXES):
            self._wipe(file, box)

    def promise(self, asked: Asked, seq: int, event_hash: bytes) -> None:
        """Say which event a command will be; before it is committed."""
        label = _PROMISED.pack(asked.number, seq, event_hash)
        os.pwrite(self._opened(), label, asked.box * _LABEL_BYTES + _ASKED.size)

    def wait(self, timeout_s: float) -> bool | None:
        """Whether somebody rang for us by then; None, at once, where nobody can."""
        return None if self._bells is None else self._bells.wait(timeout_s)

    def ring(self) -> None:
        """Ring for those whose commands were carried out, and for the next of the others."""
        self._opened()
        if self._bells is None:
            return
        # From ours on: else those with the first boxes were always the first to go on.
        own = -1 if self._own is None else self._own
        found = False
        for box, (number, size, _), carried_out in sorted(
            self._labels(), key=lambda label: (label[0] <= own, label[0])
        ):
            if not 0 < size <= MOST_BYTES or box == own:
                continue
            if carried_out != number:
                if found:
                    continue
                found = True
            self._bells.ring(box)

    def forked(self) -> None:
        """In a fork: the box is the other process's."""
        if self._bells is not None:
            self._bells.forked()
            self._bells = None
        self.close()

    def close(self) -> None:
        """Give our box to others."""
        bells, self._bells = self._bells, None
        if bells is not None:
            bells.close()
        file, self._file, self._own = self._file, None, None
        if file is not None:
            os.close(file)

    def _box(self, file: int) -> int | None:
        """Our box, which nobody else has; None where all are taken."""
        if self._own is None:
            self._own = next((one for one in range(_BOXES) if byte_locks.take(file, one, 1)), None)
            if self._own is not None:
                _clear(file, self._own)
                self._hang_bell(self._own)
        return self._own

    def _wipe(self, file: int, box: int) -> None:
        """Clear a box, unless it is somebody's."""
        if box != self._own and byte_locks.take(file, box, 1):
            try:
                _clear(file, box)
            finally:
                byte_locks.let_go(file, box, 1)

    def _opened(self) -> int:
        if self._file is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(self.path, flags, self._mode())
            found = os.fstat(self._file)
            try:
                self._bells = Bells(f"{found.st_dev:x}-{found.st_ino:x}")
            except OSError as error:
                logger.debug("nobody is woken by way of %s: %s", self.path, error)
        return self._file

    def _hang_bell(self, box: int) -> None:
        if self._bells is None:
            return
        try:
            self._bells.hang(box)
        except OSError as error:
            logger.debug("nobody can ring for box %d of %s: %s", box, self.path, error)
            self._bells.close()
            self._bells = None


class Ticket:
    """A command of ours in our box. Its methods raise OSError where the box was given up."""

    __slots__ = ("_boxes", "_number", "_size")

    def __init__(self, boxes: Boxes, number: int, size: int) -> None:
        self._boxes = boxes
        self._number = number
        self._size = size

    def promised(self) -> Promised | None:
        """Which event it is, or will be if that is committed; None while nobody is known to have
        carried it out."""
        return self._boxes.promised(self._number)

    def withdraw(self) -> None:
        """Let nobody begin with it; whoever has begun may still promise something."""
        self._boxes.empty(self._size)


def _clear(file: int, box: int) -> None:
    if os.pread(file, _ASKED.size, box * _LABEL_BYTES).strip(b"\0"):
        os.pwrite(file, bytes(_LABEL_BYTES), box * _LABEL_BYTES)
        os.pwrite(file, bytes(MOST_BYTES), _contents_at(box))


def _sum(number: int, command: bytes) -> bytes:
    return xxh3_128_digest(_NUMBER.pack(number) + command)


def _contents_at(box: int) -> int:
    return _CONTENTS_AT + box * MOST_BYTES
