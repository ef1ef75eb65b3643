"""Messages between a process and its workers: their length in four bytes, then their bytes."""

import os
import struct

_LENGTH = struct.Struct("<I")


def send(descriptor: int, message: bytes) -> None:
    """Write a message; OSError when nobody reads any more."""
    view = memoryview(_LENGTH.pack(len(message)) + message)
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor: int) -> bytes | None:
    """The next message; None when whoever wrote is gone, be it in the middle of one."""
    head = _exactly(descriptor, _LENGTH.size)
    return None if head is None else _exactly(descriptor, _LENGTH.unpack(head)[0])


def _exactly(descriptor: int, size: int) -> bytes | None:
    pieces = []
    while size:
        piece = os.read(descriptor, min(size, 1 << 20))
        if not piece:
            return None
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
