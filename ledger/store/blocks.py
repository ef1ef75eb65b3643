"""Finding events by several things at once: bitmaps over blocks of the log.

For each block of 1,024 events and each term that occurs in it (`terms`) there is a row: which of
the events have the term. So any number of filters is an AND of bitmaps, and what a query costs
depends on the page and on the number of blocks, not on how often things occur together: a million
events have 977 blocks. Beside the terms a block has the norms of its updates, and how many events
there were by day, kind and actor.

The rows are no part of an append. They say nothing that events do not say; a block is written once
it is complete, by the writer that completed it or by the next reader that may write, and read from
the events wherever it is missing, as is the block that is not complete yet.
"""

import math
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import orjson

from weightledger.ledger.events import UPDATED, leaf_hash
from weightledger.ledger.sql.backend import Backend, Execute
from weightledger.ledger.sql.bulk import insert_rows, marks, pieces
from weightledger.ledger.store.rows import altered, key_of, missing
from weightledger.ledger.store.terms import norm_of, terms_of

BLOCK = 1024  # events, for ever

# Rows of a block that are no terms; `term` gives these numbers to nothing else, by all likelihood.
_MOST_NORM, _NORMS, _COUNTS = 0, 1, 2
_SPARSE = 4  # with fewer blocks than one of so many, they are asked for one by one
_NORM_BLOCKS = 128  # whose norms are held at a time

DAY_US = 86_400_000_000
_MASK = (1 << 128) - 1

Counts = Counter[tuple[int, str, str | None]]
"""How many events there were by day (since 1970, UTC), kind and actor."""

_EVENTS = (
    "SELECT e.event_key, e.kind, e.recorded_at, e.header, e.event_hash,"
    " a.actor, a.reason, a.metadata"
    " FROM events e LEFT JOIN annotations a ON a.event_key = e.event_key"
    " WHERE e.event_key BETWEEN ? AND ? ORDER BY e.event_key"
)
_INTO = "search_blocks (model_id, term, block, bits)"
_COUNT = (
    f"SELECT e.recorded_at / {DAY_US}, e.kind, a.actor, count(*)"
    " FROM events e LEFT JOIN annotations a ON a.event_key = e.event_key"
    " WHERE e.event_key BETWEEN ? AND ? GROUP BY 1, 2, 3"
)
_READ = "SELECT term, block, bits FROM search_blocks WHERE model_id = ? AND term {among}"
_BETWEEN = " AND block BETWEEN ? AND ?"
_OF_WRITTEN = "FROM search_blocks WHERE model_id = ? AND term = ? AND block BETWEEN ? AND ?"
_WRITTEN = f"SELECT block {_OF_WRITTEN}"
_WRITTEN_COUNT = f"SELECT count(*) {_OF_WRITTEN}"


def completes(seq: int) -> bool:
    """Whether the event of a seq is the last one of its block."""
    return (seq + 1) % BLOCK == 0


@dataclass(slots=True)
class Block:
    """What one block can be searched by, as far as it goes: `size` events so far.

    `bits` has a bit for each event, the lowest for the first; `norms` a number for each, NaN where
    it has none; `counts` how many events there were by day (since 1970, UTC), kind and actor.
    """

    number: int
    size: int = 0
    bits: dict[int, int] = field(default_factory=dict)
    norms: "array[float]" = field(default_factory=lambda: array("d"))
    counts: Counts = field(default_factory=Counter)

    def extend(self, execute: Execute, model_id: int, last_seq: int) -> None:
        """Add the events up to a seq that are not in it yet."""
        start = self.number * BLOCK
        stop = min(last_seq + 1, start + BLOCK)
        if start + self.size >= stop:
            return
        bounds = key_of(model_id, start + self.size), key_of(model_id, stop - 1)
        for key, row in enumerate(execute(_EVENTS, bounds).fetchall(), bounds[0]):
            if row[0] != key:  # every bit behind it would be another event's
                raise missing(key)
            self._add(row)

    def _add(self, row: Sequence[Any]) -> None:
        key, kind, recorded_at, header, event_hash, actor, reason, metadata = row
        if leaf_hash(header) != event_hash:
            raise altered(key)
        body = orjson.loads(header)["body"]
        bit = 1 << self.size
        for one in terms_of(kind, body, actor, reason, metadata):
            self.bits[one] = self.bits.get(one, 0) | bit
        self.norms.append(norm_of(body) if kind == UPDATED else math.nan)
        self.counts[recorded_at // DAY_US, kind, actor] += 1
        self.size += 1

    @property
    def most_norm(self) -> float:
        """The largest norm in it; minus infinity where there is none."""
        return max((one for one in self.norms if one == one), default=-math.inf)

    def rows(self, model_id: int) -> Iterator[tuple[int, int, int, bytes]]:
        """The rows of a complete block."""
        counts = [[*key, count] for key, count in sorted(self.counts.items(), key=repr)]
        others = {
            _MOST_NORM: array("d", [self.most_norm]).tobytes(),
            _NORMS: _rounded_up(self.norms),
            _COUNTS: orjson.dumps(counts),
        }
        for number, content in others.items():
            yield model_id, number, self.number, content
        for one, bits in sorted(self.bits.items()):
            if one not in others:
                yield model_id, one, self.number, bits.to_bytes(-(-BLOCK // 8), "little")


def read_block(execute: Execute, model_id: int, number: int, last_seq: int) -> Block:
    """A block from its events, as far as they go."""
    block = Block(number)
    block.extend(execute, model_id, last_seq)
    return block


def write_block(execute: Execute, block: Block, model_id: int) -> None:
    """Write a complete block, unless another process has."""
    number = block.number
    if not written(execute, model_id, number, number):
        insert_rows(execute, _INTO, block.rows(model_id))


def written(execute: Execute, model_id: int, first: int, last: int) -> Collection[int]:
    """Which blocks of a range have their rows."""
    (count,) = execute(_WRITTEN_COUNT, (model_id, _COUNTS, first, last)).fetchone()
    if count == last + 1 - first:  # as nearly always
        return range(first, last + 1)
    rows = execute(_WRITTEN, (model_id, _COUNTS, first, last)).fetchall()
    return {number for (number,) in rows}


def bitmaps(
    execute: Execute, backend: Backend, model_id: int, terms: Sequence[int], numbers: Sequence[int]
) -> dict[int, int]:
    """The events that have one of these terms, by block; `numbers` are the blocks, ascending."""
    sql = _READ.format(among=backend.among("bigint"))
    many, found = backend.many(list(terms)), dict[int, int]()
    if len(numbers) * _SPARSE > numbers[-1] - numbers[0]:
        rows = execute(sql + _BETWEEN, (model_id, many, numbers[0], numbers[-1])).fetchall()
    else:
        rows = [
            row
            for page in pieces(numbers)
            for row in execute(
                f"{sql} AND block IN ({marks(len(page))})", (model_id, many, *page)
            ).fetchall()
        ]
    wanted = set(numbers)
    for _, number, bits in rows:
        if number in wanted:
            found[number] = found.get(number, 0) | int.from_bytes(bits, "little")
    return found


def most_norms(
    execute: Execute, backend: Backend, model_id: int, first: int, last: int
) -> dict[int, float]:
    """The largest norm in each written block of a range."""
    sql = _READ.format(among=backend.among("bigint")) + _BETWEEN
    rows = execute(sql, (model_id, backend.many([_MOST_NORM]), first, last)).fetchall()
    return {number: _double(most) for _, number, most in rows}


def norms(
    execute: Execute, backend: Backend, model_id: int, numbers: Sequence[int]
) -> Iterator[tuple[int, bytes]]:
    """Blocks with the norms of their events, each rounded up to four bytes, NaN for none."""
    sql = _READ.format(among=backend.among("bigint")) + _BETWEEN
    for page in pieces(numbers, _NORM_BLOCKS):
        rows = execute(
            f"{sql} AND block IN ({marks(len(page))})",
            (model_id, backend.many([_NORMS]), page[0], page[-1], *page),
        ).fetchall()
        for _, number, content in rows:
            yield number, content


def at_least(values: "array[float]", least: float) -> int:
    """A bit for each value that is at least so much."""
    import numpy as np  # few questions need it

    passing = np.frombuffer(values, values.typecode) >= np.float64(least)
    return int.from_bytes(np.packbits(passing, bitorder="little").tobytes(), "little")


def _rounded_up(norms: "array[float]") -> bytes:
    """Norms in half as many bytes, none of them less than it was: who finds one looks at it."""
    import numpy as np

    exact = np.frombuffer(norms, "d")
    with np.errstate(over="ignore"):
        rounded = exact.astype("<f4")
    short = rounded < exact
    rounded[short] = np.nextafter(rounded[short], np.float32(np.inf))
    return rounded.tobytes()


def counts(
    execute: Execute, backend: Backend, model_id: int, first: int, last: int
) -> Iterator[tuple[int, Counts]]:
    """How many events there were by day, kind and actor, of each block of a range."""
    sql = _READ.format(among=backend.among("bigint")) + _BETWEEN
    rows = execute(sql, (model_id, backend.many([_COUNTS]), first, last)).fetchall()
    for _, number, content in rows:
        yield (
            number,
            Counter({(day, kind, actor): n for day, kind, actor, n in orjson.loads(content)}),
        )


def counted_anew(execute: Execute, model_id: int, first: int, last: int) -> Counts:
    """The counts of the events between two seqs, from the events."""
    rows = execute(_COUNT, (key_of(model_id, first), key_of(model_id, last))).fetchall()
    return Counter({(day, kind, actor): count for day, kind, actor, count in rows})


def checksums(execute: Execute, model_id: int) -> dict[int, int]:
    """A checksum of the rows of each block that has any, in whatever order they come."""
    sums: dict[int, int] = {}
    rows = execute(
        "SELECT model_id, term, block, bits FROM search_blocks WHERE model_id = ?", (model_id,)
    )
    for row in rows:
        sums[row[2]] = (sums.get(row[2], 0) + _hash(row)) & _MASK
    return sums


def checksum(block: Block, model_id: int) -> int:
    """What `checksums` has to give for a complete block."""
    return sum(map(_hash, block.rows(model_id))) & _MASK


def _hash(row: Sequence[Any]) -> int:
    model_id, one, number, bits = row
    return int.from_bytes(blake2b(b"%d %d %d %s" % (model_id, one, number, bits)).digest()[:16])


def forget(execute: Execute, model_id: int, numbers: Iterable[int]) -> None:
    """Remove blocks, which are then read from the events again."""
    for number in numbers:
        execute("DELETE FROM search_blocks WHERE model_id = ? AND block = ?", (model_id, number))


def _double(content: bytes) -> float:
    (value,) = array("d", content)
    return value
