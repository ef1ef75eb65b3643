"""Queries by blocks: events that pass any number of filters, and counts of them.

Blocks are looked at from the end that is wanted, few at first and ever more; those without rows are
read from their events, the last one incrementally, and kept in memory.
"""

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import orjson

from weightledger.ledger.events.bodies import counted_parameters
from weightledger.ledger.sql.backend import Backend, Execute
from weightledger.ledger.sql.bulk import marks, pieces
from weightledger.ledger.store import EventFilter, blocks, columns
from weightledger.ledger.store.blocks import Block
from weightledger.ledger.store.columns import Columns, WrittenBlocks, blocks_of
from weightledger.ledger.store.rows import key_of
from weightledger.ledger.store.terms import clauses, parameter_term

_FIRST, _GROWTH, _MOST = 4, 4, 512  # blocks that are looked at together
_LOOK = 12  # times a row of a block: what an event costs whose parameters are looked at
_LOOKED_AT = 64  # together


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


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process knows of one model's blocks.

    It holds of states of the log in which `changed` was the last event that took texts away or put
    something right: in these, blocks that are complete do not change.
    """

    changed: int
    unwritten: Unwritten
    columns: Columns = field(default_factory=Columns)


def first_hits(
    execute: Execute,
    backend: Backend,
    model_id: int,
    memory: Memory,
    where: EventFilter,
    names: Collection[str] | None,
    bounds: tuple[int, int],
    newest_first: bool,
) -> Iterator[int]:
    """Seqs of events that have what a filter asks for, in order; `bounds` are seqs.

    One of `names` has to be a parameter that an update counts for; None: any.
    """
    low, high = bounds
    wanted = clauses(where)
    touched = [parameter_term(name) for name in sorted(names or ())]
    if names is not None and not touched:
        return
    for numbers in _stretches(low // blocks.BLOCK, high // blocks.BLOCK, newest_first):
        ends = blocks_of(numbers[0] // columns.PAGE)[0], blocks_of(numbers[-1] // columns.PAGE)[-1]
        there = blocks.written(execute, model_id, *ends)
        written = WrittenBlocks(execute, backend, model_id, memory.columns, there)
        missing = [number for number in numbers if number not in there]
        hits = columns.every(sorted(set(numbers).difference(missing)) if missing else numbers)
        for terms in wanted:
            hits = written.having(terms, hits)
        if where.min_norm is not None:
            hits = written.at_least(where.min_norm, hits)
        # Parameters come last, where little is left: a glob may be hundreds of terms.
        left = columns.count(hits)
        look = bool(touched) and left * _LOOK <= len(touched) * min(left, len(numbers))
        if touched and not look:
            hits = written.having(touched, hits)
        clauses_of_all = [*wanted, touched] if touched else wanted
        fresh = columns.of_blocks(
            (number, _of_block(memory.unwritten.get(execute, number, high), where, clauses_of_all))
            for number in missing
        )
        seqs = columns.seqs(columns.either(hits, fresh), newest_first)
        within = (seq for seq in seqs if low <= seq <= high)
        yield from _touching(execute, model_id, within, set(names or ())) if look else within


def _stretches(first: int, last: int, newest_first: bool) -> Iterator[range]:
    """Ever longer runs of blocks from the end that is wanted, each ascending; the long ones end
    where pages do."""
    length = _FIRST
    while first <= last:
        if newest_first:
            start = last - length + 1
            start = max(first, start - start % columns.PAGE if length > columns.PAGE else start)
            yield range(start, last + 1)
            last = start - 1
        else:
            stop = first + length
            stop = min(last + 1, stop + -stop % columns.PAGE if length > columns.PAGE else stop)
            yield range(first, stop)
            first = stop
        length = min(length * _GROWTH, _MOST)


def _touching(
    execute: Execute, model_id: int, seqs: Iterable[int], names: set[str]
) -> Iterator[int]:
    """Of updates those that count for one of some parameters."""
    first = key_of(model_id, 0)
    for piece in pieces(seqs, _LOOKED_AT):
        sql = f"SELECT event_key, header FROM events WHERE event_key IN ({marks(len(piece))})"
        headers = dict(execute(sql, [first + seq for seq in piece]).fetchall())
        for seq in piece:
            facts = orjson.loads(headers[first + seq])["body"]
            if not names.isdisjoint(counted_parameters(facts)):
                yield seq


def _of_block(block: Block, where: EventFilter, wanted: Sequence[Sequence[int]]) -> int:
    hits = (1 << block.size) - 1
    for terms in wanted:
        any_of = 0
        for one in terms:
            any_of |= block.bits.get(one, 0)
        hits &= any_of
    if where.min_norm is not None and hits:
        hits &= blocks.at_least(block.norms, where.min_norm)
    return hits


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
