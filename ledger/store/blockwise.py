"""Queries by blocks: events that pass any number of filters, and counts of them.

Blocks are looked at from the end that is wanted, few at first and ever more; those without rows are
read from their events, the last one incrementally, and kept in memory.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from weightledger.ledger.sql.backend import Backend, Execute
from weightledger.ledger.store import EventFilter, blocks
from weightledger.ledger.store.blocks import Block
from weightledger.ledger.store.terms import clauses, term

_FIRST, _GROWTH, _MOST = 8, 4, 512  # blocks that are looked at together


class Unwritten:
    """Blocks of one model that have no rows, read from their events. Safe for many threads."""

    _KEPT = 64

    def __init__(self, model_id: int) -> None:
        self._model_id = model_id
        self._lock = threading.Lock()
        self._blocks: dict[int, Block] = {}

    def get(self, execute: Execute, number: int, last_seq: int) -> Block:
        """A block as far as the log goes."""
        with self._lock:
            block = self._blocks.pop(number, None) or Block(number)
            block.extend(execute, self._model_id, last_seq)
            self._blocks[number] = block  # the one that was asked for last comes last
            while len(self._blocks) > self._KEPT:
                del self._blocks[next(iter(self._blocks))]
        return block


def first_hits(
    execute: Execute,
    backend: Backend,
    model_id: int,
    unwritten: Unwritten,
    where: EventFilter,
    names: Sequence[str],
    bounds: tuple[int, int],
    newest_first: bool,
) -> Iterator[list[int]]:
    """Seqs of events that have what a filter asks for, in order, in lists; `bounds` are seqs."""
    low, high = bounds
    wanted = clauses(where)
    touched = None if where.parameter is None else [term("parameter", name) for name in names]
    if touched == []:
        return
    for numbers in _stretches(low // blocks.BLOCK, high // blocks.BLOCK, newest_first):
        there = blocks.written(execute, model_id, numbers[0], numbers[-1])
        hits = _of_written(execute, backend, model_id, where, wanted, touched, sorted(there))
        for number in numbers:
            if number not in there:
                block = unwritten.get(execute, number, high)
                hits[number] = _of_block(block, where, wanted, touched)
        yield from (
            seqs
            for number in (reversed(numbers) if newest_first else numbers)
            if (seqs := _seqs(number, hits.get(number, 0), low, high, newest_first))
        )


def _stretches(first: int, last: int, newest_first: bool) -> Iterator[list[int]]:
    """Ever longer runs of blocks from the end that is wanted, each ascending."""
    length = _FIRST
    while first <= last:
        if newest_first:
            yield list(range(max(first, last - length + 1), last + 1))
            last -= length
        else:
            yield list(range(first, min(last, first + length - 1) + 1))
            first += length
        length = min(length * _GROWTH, _MOST)


def _of_written(
    execute: Execute,
    backend: Backend,
    model_id: int,
    where: EventFilter,
    wanted: Sequence[Sequence[int]],
    touched: Sequence[int] | None,
    numbers: Sequence[int],
) -> dict[int, int]:
    """Parameters come last, where little is left to look at: a glob may be hundreds of terms."""
    every = (1 << blocks.BLOCK) - 1
    hits = dict.fromkeys(numbers, every)
    for terms in wanted:
        if not hits:
            return {}
        found = blocks.bitmaps(execute, backend, model_id, terms, sorted(hits))
        hits = {n: both for n, bits in found.items() if (both := bits & hits[n])}
    if where.min_norm is not None:
        hits = blocks.norms(execute, backend, model_id, where.min_norm, hits)
    hits = {number: bits for number, bits in hits.items() if bits}
    if touched is None or not hits:
        return hits
    found = blocks.bitmaps(execute, backend, model_id, touched, sorted(hits))
    return {number: bits & hits[number] for number, bits in found.items()}


def _of_block(
    block: Block,
    where: EventFilter,
    wanted: Sequence[Sequence[int]],
    touched: Sequence[int] | None,
) -> int:
    hits = (1 << block.size) - 1
    for terms in (*wanted, *([] if touched is None else [touched])):
        any_of = 0
        for one in terms:
            any_of |= block.bits.get(one, 0)
        hits &= any_of
    if where.min_norm is not None and hits:
        hits &= blocks.at_least(block.norms, where.min_norm)
    return hits


def _seqs(number: int, bits: int, low: int, high: int, newest_first: bool) -> list[int]:
    """The seqs of a block's bits, within bounds."""
    seqs = []
    while bits:
        place = (bits & -bits).bit_length() - 1
        seqs.append(number * blocks.BLOCK + place)
        bits &= bits - 1
    within = [seq for seq in seqs if low <= seq <= high]
    return within[::-1] if newest_first else within


def counted(
    execute: Execute,
    backend: Backend,
    model_id: int,
    unwritten: Unwritten,
    bounds: tuple[int, int],
    last_seq: int,
) -> blocks.Counts:
    """How many events there were between two seqs, by day, kind and actor."""
    low, high = bounds
    total: blocks.Counts = Counter()
    whole = range(-(-low // blocks.BLOCK), (high + 1) // blocks.BLOCK)
    there: set[int] = set()
    if whole:
        for number, found in blocks.counts(execute, backend, model_id, whole[0], whole[-1]):
            there.add(number)
            total.update(found)
    for first, last in _runs(number for number in whole if number not in there):
        stretch = first * blocks.BLOCK, (last + 1) * blocks.BLOCK - 1
        total.update(blocks.counted_anew(execute, model_id, *stretch))
    for number in range(low // blocks.BLOCK, high // blocks.BLOCK + 1):
        if number in whole:
            continue
        if number * blocks.BLOCK >= low and high == last_seq:
            total.update(unwritten.get(execute, number, last_seq).counts)
        else:
            first = number * blocks.BLOCK
            part = max(low, first), min(high, first + blocks.BLOCK - 1)
            total.update(blocks.counted_anew(execute, model_id, *part))
    return total


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Numbers in order, those that follow one another together: the first and the last."""
    first = last = None
    for number in numbers:
        if first is not None and last is not None and number != last + 1:
            yield first, last
            first = None
        first, last = number if first is None else first, number
    if first is not None and last is not None:
        yield first, last
