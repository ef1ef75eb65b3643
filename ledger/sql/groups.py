"""What a writer tells the others of its machine: the events of its last transaction.

So nobody who waited for his turn has to ask the database for what is new, or for what became of his
own command, if that was carried out with it (`boxes`). It stands in the file of the turns behind
what that says of the log, with a checksum: whoever dies while he writes it has written nothing.

As the turn is, it is a courtesy. Whether an event is committed says the log.
"""

import os

import msgspec
from xxhash import xxh3_128_digest

_SIZE_BYTES = 4
_CHECKSUM_BYTES = 16
_START = _SIZE_BYTES + _CHECKSUM_BYTES

_MOST_BYTES = 1024 * 1024

# It may be read while it is written.
_READS = 3


class Told(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An event: its seq, its hash, and itself as `store.telling` has it."""

    seq: int
    hash: bytes
    event: bytes


class Group(msgspec.Struct, frozen=True, array_like=True):
    """The events of one transaction, in order.

    `undisturbed` counts the turns of this machine between which no other one wrote.
    """

    events: tuple[Told, ...] = ()
    undisturbed: int = 0


NO_GROUP = Group()
"""Nothing was told."""

_decode = msgspec.msgpack.Decoder(Group).decode
_encode = msgspec.msgpack.Encoder().encode


def read(file: int, offset: int) -> Group:
    """What stands in a file from an offset on; NO_GROUP where nothing stands there, or not all of
    it."""
    for _ in range(_READS):
        head = os.pread(file, _START, offset)
        size = int.from_bytes(head[:_SIZE_BYTES], "big")
        if len(head) < _START or not 0 < size <= _MOST_BYTES:
            break
        content = os.pread(file, size, offset + _START)
        if xxh3_128_digest(content) == head[_SIZE_BYTES:]:
            try:
                return _decode(content)
            except msgspec.MsgspecError:  # of another release
                break
    return NO_GROUP


def write(file: int, offset: int, group: Group) -> None:
    """Have it stand there, and nothing behind it."""
    content = _encode(group)
    size = len(content).to_bytes(_SIZE_BYTES, "big")
    os.pwrite(file, size + xxh3_128_digest(content) + content, offset)
    if os.fstat(file).st_size > offset + _START + len(content):
        os.ftruncate(file, offset + _START + len(content))
