"""BLAKE3's own tree over a text, kept so that an edit hashes what it reaches and no more.

BLAKE3 cuts its input into chunks of 1 KiB, hashes each to a chaining value of 32 bytes and joins
these in pairs, level by level; one without a partner goes up as it is. The last pair gives the
digest. (O'Connor, Aumasson, Neves, Wilcox-O'Hearn: BLAKE3, section 2.) With the chaining values at
hand, another text for one chunk costs that chunk and one pair for each level. The digest is the one
that BLAKE3 of the whole text gives.

numba compiles this when it is imported, which is when a state is first kept as a tree.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.tensors.compiling import compiled

CHUNK_BYTES = 1024
_BLOCK_BYTES = 64

_START, _END, _PARENT, _ROOT = 1, 2, 4, 8

Words = NDArray[np.uint32]

_IV = np.array(
    [
        0x6A09E667,
        0xBB67AE85,
        0x3C6EF372,
        0xA54FF53A,
        0x510E527F,
        0x9B05688C,
        0x1F83D9AB,
        0x5BE0CD19,
    ],
    np.uint32,
)
_ORDER = np.array([2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8])


def _schedule() -> NDArray[np.intp]:
    """Which word of a block each round takes at each place, [7, 16]."""
    rounds = [np.arange(16)]
    for _ in range(6):
        rounds.append(rounds[-1][_ORDER])
    return np.array(rounds)


_WORD = _schedule()


class ChainingTree:
    """The chaining values over a text of more than one chunk; immutable."""

    __slots__ = ("_nodes", "_size")

    def __init__(self, text: bytes) -> None:
        self._size = len(text)
        if self.chunks < 2:
            raise ValueError(f"a tree needs a text of more than {CHUNK_BYTES} bytes")
        self._nodes = np.empty((_nodes_of(self.chunks), 8), np.uint32)
        padded = text.ljust(self.chunks * CHUNK_BYTES, b"\0")
        _update(self._nodes, self._size, np.arange(self.chunks), _words(padded))

    @property
    def chunks(self) -> int:
        """How many chunks the text has."""
        return -(-self._size // CHUNK_BYTES)

    def replaced(self, chunks: Mapping[int, bytes]) -> "ChainingTree":
        """The tree of the text in which the chunks with these numbers, from 0, are others of the
        same length."""
        other: ChainingTree = object.__new__(ChainingTree)
        other._size, other._nodes = self._size, self._nodes.copy()
        numbers = sorted(chunks)
        text = b"".join([chunks[number].ljust(CHUNK_BYTES, b"\0") for number in numbers])
        _update(other._nodes, self._size, np.array(numbers, np.intp), _words(text))
        return other

    @property
    def digest(self) -> bytes:
        """BLAKE3 of the text, 32 bytes."""
        root = np.empty(8, np.uint32)
        _join(self._nodes[-2:], _PARENT | _ROOT, root)
        return root.astype("<u4").tobytes()


def _words(text: bytes) -> Words:
    """Chunks as words, [chunks, 256]."""
    return np.frombuffer(text, "<u4").reshape(-1, CHUNK_BYTES // 4)


def _nodes_of(chunks: int) -> int:
    """How many chaining values there are on all levels, from the chunks to the last pair."""
    count = chunks
    while chunks > 2:
        chunks = (chunks + 1) // 2
        count += chunks
    return count


@compiled
def _mix(a: Any, b: Any, c: Any, d: Any, x: Any, y: Any) -> Any:
    a = np.uint32(a + b + x)
    d = np.uint32(d ^ a)
    d = np.uint32((d >> np.uint32(16)) | (d << np.uint32(16)))
    c = np.uint32(c + d)
    b = np.uint32(b ^ c)
    b = np.uint32((b >> np.uint32(12)) | (b << np.uint32(20)))
    a = np.uint32(a + b + y)
    d = np.uint32(d ^ a)
    d = np.uint32((d >> np.uint32(8)) | (d << np.uint32(24)))
    c = np.uint32(c + d)
    b = np.uint32(b ^ c)
    b = np.uint32((b >> np.uint32(7)) | (b << np.uint32(25)))
    return a, b, c, d


@compiled
def _compress(value: Words, m: Words, counter: int, length: int, flags: int) -> None:
    """One application of the compression function; `value` becomes the new chaining value."""
    v0, v1, v2, v3 = value[0], value[1], value[2], value[3]
    v4, v5, v6, v7 = value[4], value[5], value[6], value[7]
    v8, v9, v10, v11 = _IV[0], _IV[1], _IV[2], _IV[3]
    v12, v13 = np.uint32(counter), np.uint32(counter >> 32)
    v14, v15 = np.uint32(length), np.uint32(flags)
    for turn in range(7):
        w = _WORD[turn]
        v0, v4, v8, v12 = _mix(v0, v4, v8, v12, m[w[0]], m[w[1]])
        v1, v5, v9, v13 = _mix(v1, v5, v9, v13, m[w[2]], m[w[3]])
        v2, v6, v10, v14 = _mix(v2, v6, v10, v14, m[w[4]], m[w[5]])
        v3, v7, v11, v15 = _mix(v3, v7, v11, v15, m[w[6]], m[w[7]])
        v0, v5, v10, v15 = _mix(v0, v5, v10, v15, m[w[8]], m[w[9]])
        v1, v6, v11, v12 = _mix(v1, v6, v11, v12, m[w[10]], m[w[11]])
        v2, v7, v8, v13 = _mix(v2, v7, v8, v13, m[w[12]], m[w[13]])
        v3, v4, v9, v14 = _mix(v3, v4, v9, v14, m[w[14]], m[w[15]])
    value[0], value[1], value[2], value[3] = v0 ^ v8, v1 ^ v9, v2 ^ v10, v3 ^ v11
    value[4], value[5], value[6], value[7] = v4 ^ v12, v5 ^ v13, v6 ^ v14, v7 ^ v15


@compiled
def _join(pair: Words, flags: int, out: Words) -> None:
    """Write the chaining value over two others."""
    out[:] = _IV
    _compress(out, pair.reshape(16), 0, _BLOCK_BYTES, flags)


@compiled
def _hash_chunk(words: Words, number: int, size: int, out: Words) -> None:
    """Write the chaining value of a chunk of `size` bytes, filled up with zeros."""
    out[:] = _IV
    blocks = (size + _BLOCK_BYTES - 1) // _BLOCK_BYTES
    for block in range(blocks):
        flags = 0
        if block == 0:
            flags |= _START
        if block == blocks - 1:
            flags |= _END
        length = min(_BLOCK_BYTES, size - block * _BLOCK_BYTES)
        _compress(out, words[16 * block : 16 * block + 16], number, length, flags)


@compiled
def _update(nodes: Words, size: int, numbers: NDArray[np.intp], words: Words) -> None:
    """Hash the chunks with these ascending numbers, and bring what is above them up to date."""
    for entry in range(numbers.size):
        number = numbers[entry]
        length = min(CHUNK_BYTES, size - number * CHUNK_BYTES)
        _hash_chunk(words[entry], number, length, nodes[number])
    changed = numbers.copy()
    count = changed.size
    level, width = 0, (size + CHUNK_BYTES - 1) // CHUNK_BYTES
    while width > 2:
        above = level + width
        kept = 0
        for entry in range(count):
            parent = changed[entry] // 2
            if kept and changed[kept - 1] == parent:
                continue
            changed[kept] = parent
            kept += 1
            left = level + 2 * parent
            if 2 * parent + 1 < width:
                _join(nodes[left : left + 2], _PARENT, nodes[above + parent])
            else:
                nodes[above + parent] = nodes[left]
        count = kept
        level, width = above, (width + 1) // 2
