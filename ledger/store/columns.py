"""Columns of the search: what a page of written blocks says to one question, in memory.

A page is 128 blocks, and its column one number with a bit for each of its events: reading the rows
of a block costs more than everything that is done with them, and blocks that are written stay as
they are until something is redacted or repaired. So whoever asks keeps what they read of whole
pages, the norms too, in bounded memory, and forgets all of it then (`filtering`).
"""

import math
import threading
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from weightledger.ledger.sql.backend import Backend, Execute
from weightledger.ledger.store import blocks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PAGE = 128  # blocks

_KEPT_BYTES = 32 << 20  # of one model: its norms and some 200 questions for a million events
_FEW_TERMS = 8  # of more, all of a page is too many rows for a few blocks of it
_NORMS, _MOST_NORMS = "norms", "most norms"  # what is kept beside the answers of questions
_COSTS = 100  # bytes of an object
_SOME_BLOCKS = 4  # when more than one of so many are wanted, all of a page are read
_FEW_BLOCKS = 8  # with fewer than one of so many, their norms alone are read

Column = dict[int, int]
"""By page, a bit for each event: `stride()` bits a block, the lowest for the first."""


class Columns:
    """Columns of whole pages of one model, those asked for last. Safe for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Any, tuple[Any, int]] = {}
        self._bytes = 0

    def get(self, key: Any) -> Any:
        """What was kept by a key, None when it is not there."""
        with self._lock:
            kept = self._kept.pop(key, None)
            if kept is None:
                return None
            self._kept[key] = kept  # the one that was asked for last comes last
        return kept[0]

    def keep(self, key: Any, value: Any, size_bytes: int) -> None:
        """Keep something, and let go of others when there is too much."""
        with self._lock:
            _, before = self._kept.pop(key, (None, 0))
            self._kept[key] = value, size_bytes
            self._bytes += size_bytes - before
            while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
                _, size = self._kept.pop(next(iter(self._kept)))
                self._bytes -= size


def stride() -> int:
    """Bits of a column for each block: whole bytes."""
    return -(-blocks.BLOCK // 8) * 8


def every(numbers: Collection[int]) -> Column:
    """All events of these blocks."""
    block = (1 << blocks.BLOCK) - 1
    if not isinstance(numbers, range):
        return of_blocks((number, block) for number in numbers)
    content = block.to_bytes(stride() // 8, "little")
    hits: Column = {}
    for page in range(numbers[0] // PAGE, numbers[-1] // PAGE + 1):
        start = max(numbers[0] - page * PAGE, 0)
        stop = min(numbers[-1] + 1 - page * PAGE, PAGE)
        hits[page] = int.from_bytes(content * (stop - start), "little") << start * stride()
    return hits


def of_blocks(bitmaps: Iterable[tuple[int, int]]) -> Column:
    """A column from bitmaps of blocks."""
    width, block = stride() // 8, (1 << blocks.BLOCK) - 1
    pages: dict[int, bytearray] = {}
    for number, bits in bitmaps:
        page, place = divmod(number, PAGE)
        if page not in pages:
            pages[page] = bytearray(PAGE * width)
        content = (bits & block).to_bytes(width, "little")
        pages[page][place * width : (place + 1) * width] = content
    return {page: int.from_bytes(content, "little") for page, content in pages.items()}


def both(one: Column, other: Mapping[int, int]) -> Column:
    """The events that are in both."""
    return {page: bits for page in one if (bits := one[page] & other.get(page, 0))}


def either(one: Column, other: Column) -> Column:
    """The events that are in one of them."""
    return {page: one.get(page, 0) | other.get(page, 0) for page in {*one, *other}}


def count(hits: Column) -> int:
    """How many events there are."""
    return sum(bits.bit_count() for bits in hits.values())


def seqs(hits: Column, newest_first: bool) -> Iterator[int]:
    """The seqs of events, in order."""
    import numpy as np  # few questions need it

    for page in sorted(hits, reverse=newest_first):
        bits = np.unpackbits(_bytes(hits[page]), axis=1, bitorder="little")
        places = np.flatnonzero(bits[:, : blocks.BLOCK].astype(bool))
        places += page * PAGE * blocks.BLOCK
        yield from (places[::-1] if newest_first else places).tolist()


def _numbers(hits: Column) -> list[int]:
    """The blocks in which there are events, ascending."""
    import numpy as np

    return [
        page * PAGE + place
        for page in sorted(hits)
        for place in np.flatnonzero(_bytes(hits[page]).any(axis=1)).tolist()
    ]


def _bytes(bits: int) -> "NDArray[np.uint8]":
    """The bits of a page, a row of bytes for each block."""
    import numpy as np

    width = stride() // 8
    return np.frombuffer(bits.to_bytes(PAGE * width, "little"), "u1").reshape(PAGE, width)


class WrittenBlocks:
    """The written blocks of pages of one model, as one state of the database has them.

    `there` are the blocks that are written. What is kept of a page is kept under their number, so
    of a page without gaps alone.
    """

    def __init__(
        self,
        execute: Execute,
        backend: Backend,
        model_id: int,
        kept: Columns,
        there: Collection[int],
    ) -> None:
        self._from = execute, backend, model_id
        self._kept = kept
        self._filled = {
            page: range(page * PAGE, page * PAGE + count)
            for page, count in Counter(number // PAGE for number in there).items()
            if all(number in there for number in range(page * PAGE, page * PAGE + count))
        }

    def having(self, terms: Sequence[int], hits: Column) -> Column:
        """Of these events those that have one of these terms."""
        if 1 < len(terms) <= _FEW_TERMS:  # others may ask for these in other company
            each = (self.having([one], hits) for one in terms)
            return reduce(either, each)
        passing: Column = {}
        numbers: list[int] = []
        keep = []
        for page in hits:
            filled = self._filled.get(page, range(0))
            column = self._kept.get((tuple(terms), filled))
            if column is not None:
                passing[page] = column
                continue
            possible = _numbers({page: hits[page]})
            if filled and (len(terms) == 1 or len(possible) * _SOME_BLOCKS > PAGE):
                keep.append((page, filled))
                possible = list(filled)
            numbers += possible
        if numbers:
            read = blocks.bitmaps(*self._from, terms, sorted(numbers))
            fresh = of_blocks(read.items())
            for page, filled in keep:
                column = fresh.setdefault(page, 0)
                size = _COSTS + column.bit_length() // 8
                self._kept.keep((tuple(terms), filled), column, size)
            passing |= fresh
        return both(hits, passing)

    def at_least(self, least: float, hits: Column) -> Column:
        """Of these events those whose norm, rounded up, is so much."""
        passing: Column = {}
        few: list[int] = []
        for page in hits:
            filled = self._filled.get(page, range(0))
            norms = self._kept.get((_NORMS, filled))
            if norms is None:
                most = self._most_norms(page, filled)
                numbers = _numbers({page: hits[page]})
                possible = [n for n in numbers if most.get(n, math.inf) >= least]
                if not filled or len(possible) * _FEW_BLOCKS <= PAGE:
                    few += possible
                    continue
                norms = b"".join(self._read_norms(filled))
                self._kept.keep((_NORMS, filled), norms, _COSTS + len(norms))
            passing[page] = int.from_bytes(_passing(norms, least), "little")
        if few:
            bits = _passing(b"".join(self._norms(few)), least)
            width = stride() // 8
            passing |= of_blocks(
                (number, int.from_bytes(bits[place * width : (place + 1) * width], "little"))
                for place, number in enumerate(few)
            )
        return both(hits, passing)

    def _most_norms(self, page: int, filled: range) -> dict[int, float]:
        """The largest norm of each block of a page."""
        most: dict[int, float] | None = self._kept.get((_MOST_NORMS, filled))
        if most is None:
            numbers = filled or blocks_of(page)
            most = blocks.most_norms(*self._from, numbers[0], numbers[-1])
            if filled:
                self._kept.keep((_MOST_NORMS, filled), most, _COSTS * len(most))
        return most

    def _norms(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """The norms of each of some blocks, which are kept by themselves."""
        norms = {number: self._kept.get((_NORMS, number)) for number in numbers}
        missing = sorted(number for number in numbers if norms[number] is None)
        for number, content in zip(missing, self._read_norms(missing), strict=True):
            norms[number] = content
            self._kept.keep((_NORMS, number), content, _COSTS + len(content))
        return (norms[number] for number in numbers)

    def _read_norms(self, numbers: Sequence[int]) -> list[bytes]:
        """The norms of each of some blocks; where they are lost, events are looked at."""
        read = dict(blocks.norms(*self._from, numbers))
        unknown = array("f", [math.inf]).tobytes() * blocks.BLOCK
        return [read.get(number, unknown) for number in numbers]


def blocks_of(page: int) -> range:
    """The blocks of a page."""
    return range(page * PAGE, (page + 1) * PAGE)


def _passing(norms: bytes, least: float) -> bytes:
    """A bit for each event of one block or more, in whole bytes for each block."""
    import numpy as np

    enough = np.frombuffer(norms, "<f4").reshape(-1, blocks.BLOCK) >= np.float64(least)
    return np.packbits(enough, axis=1, bitorder="little").tobytes()
