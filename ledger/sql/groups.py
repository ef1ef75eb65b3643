"""What a writer tells the others of its machine: the events of its last transactions, and what
they led to.

So nobody who waited for his turn has to ask the database for what is new, or for what became of his
own command, if that was carried out with it (`boxes`), nor work anything out again. It stands in
the file of the turns behind what that says of the log, with a checksum: whoever dies while he
writes it has written nothing.

As the turn is, it is a courtesy. Whether an event is committed says the log.
"""

import os

import msgspec
from msgspec.structs import replace
from xxhash import xxh3_128_digest

_SIZE_BYTES = 4
_CHECKSUM_BYTES = 16
_START = _SIZE_BYTES + _CHECKSUM_BYTES

_MOST_BYTES = 1024 * 1024

_AGAIN = 8
_MOST_AGAIN_BYTES = 256 * 1024

# It may be read while it is written.
_READS = 3


class Told(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An event: its seq, its hash, and its header."""

    seq: int
    hash: bytes
    header: bytes


class ToldTensor(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A tensor as it is after the last event: its full state name, the seq of an event after which
    it has not changed, and its bytes."""

    name: str
    seq: int
    data: bytes


class Group(msgspec.Struct, frozen=True, array_like=True):
    """Events of the last transactions, in order, and all tensors that one of them changed.

    `undisturbed` counts the turns of this machine between which no other one wrote; `anchor` is the
    last node at which a writer of it has written a snapshot, -1 for none.
    """

    events: tuple[Told, ...] = ()
    undisturbed: int = 0
    tensors: tuple[ToldTensor, ...] = ()
    anchor: int = -1

    def then(self, news: "Group", after: bytes | None) -> "Group":
        """The same after a transaction behind the event with the hash `after`; nothing is told of
        one that has no events here.

        Some events are told of again, for who was busy when they were told of first.
        """
        before = self.events[-_AGAIN:]
        if not before or before[-1].hash != after:  # perhaps of another history
            return replace(news, undisturbed=self.undisturbed)
        anchor = max(news.anchor, self.anchor)
        new = {one.name for one in news.tensors}
        old = [t for t in self.tensors if t.seq >= before[0].seq and t.name not in new]
        if not news.events or sum([len(one.data) for one in old]) > _MOST_AGAIN_BYTES:
            return replace(news, undisturbed=self.undisturbed, anchor=anchor)
        return Group(before + news.events, self.undisturbed, (*old, *news.tensors), anchor)


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
