"""Events that pass a filter, by indexes where these know what it asks for, else by blocks.

Blocks that are complete are written down on the way (`blocks`); what that costs is paid once.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from weightledger.ledger.errors import CorruptLedger, InvalidRequest, StorageError
from weightledger.ledger.events import Annotation, Event
from weightledger.ledger.sql.backend import Execute
from weightledger.ledger.sql.bulk import marks, pieces
from weightledger.ledger.sql.layout import SEQ_MASK
from weightledger.ledger.sql.turns import Turn
from weightledger.ledger.store import (
    DayCount,
    EventFilter,
    blocks,
    blockwise,
    rows,
    search,
    terms,
)
from weightledger.ledger.store.blockwise import Memory, Unwritten
from weightledger.ledger.store.lookup import ANNOTATIONS
from weightledger.ledger.store.model_rows import ModelRows

logger = logging.getLogger(__name__)

_PAGE = 100  # events that are looked at together
_BLOCKS_AT_A_TIME = 4  # that a writer writes, after the event that completed one


class Filtering:
    """Filters over one model's events; knows which blocks are written, and those that are not."""

    def __init__(self, of: ModelRows, turn: Callable[[], AbstractContextManager[Turn]]) -> None:
        self._of = of
        self._turn = turn
        self.forget()

    def forget(self) -> None:
        """Take nothing for granted of blocks: events may have lost texts."""
        self._memory = self._empty(-1)
        self._written = 0

    def _empty(self, changed: int) -> Memory:
        return Memory(changed, Unwritten(self._of.model_id))

    def _remembered(self, execute: Execute) -> Memory:
        """What holds of the state of the log that is read, whoever changed it."""
        changed = search.last_change(execute, self._of.model_id)
        memory = self._memory
        if memory.changed == changed:
            return memory
        fresh = self._empty(changed)
        if memory.changed < changed:
            self._memory = fresh
            self._written = 0
        return fresh

    def select(self, where: EventFilter, limit: int, newest_first: bool) -> list[Event]:
        """See `EventLookup.select`."""
        limit = min(limit, SEQ_MASK + 1)  # no log has more, and no database takes any number
        if where.blockwise:
            return self._blockwise(where, limit, newest_first)
        of = self._of
        with of.database.read() as execute:
            passing = search.select(
                execute, of.database.backend, of.model_id, where, limit, newest_first
            )
        return list(of.events(passing))

    def activity(self, where: EventFilter) -> list[DayCount]:
        """See `EventLookup.activity`."""
        if where.blockwise or where.parameter is not None:
            raise InvalidRequest("activity is asked for by kinds, actors, times and seqs")
        # Writing them all takes a minute after an import; counting in the database seconds.
        self.index()
        of = self._of
        with of.database.read() as execute:
            low, high = search.span(execute, of.model_id, where)
            last = search.last_seq(execute, of.model_id)
            bounds = low, min(high, last)
            backend = of.database.backend
            counted = blockwise.counted(
                execute, backend, of.model_id, self._remembered(execute).unwritten, bounds, last
            )
        return sorted(
            (
                DayCount(*key, count)
                for key, count in counted.items()
                if (not where.kinds or key[1] in where.kinds)
                and (not where.actors or key[2] in where.actors)
            ),
            key=lambda one: (-one.day, one.kind, one.actor or ""),
        )

    def index(self) -> None:
        """See `EventLookup.index`."""
        self._write_blocks(_BLOCKS_AT_A_TIME)

    def _blockwise(self, where: EventFilter, limit: int, newest_first: bool) -> list[Event]:
        if limit < 1:
            return []
        self._write_blocks(sys.maxsize)
        of = self._of
        chosen: list[Event] = []
        with of.database.read() as execute:
            memory = self._remembered(execute)
            low, high = search.span(execute, of.model_id, where)
            bounds = low, min(high, search.last_seq(execute, of.model_id))
            names = self._names(execute, where.parameter)
            backend = of.database.backend
            hits = blockwise.first_hits(
                execute, backend, of.model_id, memory, where, names, bounds, newest_first
            )
            for seqs in pieces(hits, min(limit, _PAGE)):
                chosen += _passing(of, execute, where, seqs, names)
                if len(chosen) >= limit:
                    break
        return chosen[:limit]

    def _names(self, execute: Execute, pattern: str | None) -> set[str] | None:
        """The parameters that a glob stands for; None for whichever an update counts for."""
        if pattern is None:
            return None
        names = set(search.matching(execute, self._of.model_id, pattern).values())
        return (
            None if names and len(names) == search.parameters(execute, self._of.model_id) else names
        )

    def _write_blocks(self, most: int) -> None:
        """Write complete blocks that are not written; where that cannot be, they are read anew."""
        of = self._of
        with of.database.look() as execute:
            self._remembered(execute)
            complete = (search.last_seq(execute, of.model_id) + 1) // blocks.BLOCK
            if complete <= self._written:
                return
            there = blocks.written(execute, of.model_id, 0, complete)
        missing = sorted(set(range(complete)).difference(there))
        for number in missing[:most]:
            try:
                # In a turn, so that nothing is redacted between the reading and the writing.
                with self._turn(), of.database.write() as execute:
                    last = (number + 1) * blocks.BLOCK - 1
                    block = blocks.read_block(execute, of.model_id, number, last)
                    blocks.write_block(execute, block, of.model_id)
            except (StorageError, CorruptLedger) as error:
                logger.info("blocks of the search are not written: %s", error)
                break
        else:
            if len(missing) <= most:
                self._written = complete


def _passing(
    of: ModelRows, execute: Execute, where: EventFilter, seqs: Sequence[int], names: set[str] | None
) -> list[Event]:
    """Of the events with these seqs those that pass a filter, in the same order."""
    passing = []
    for piece in pieces(map(of.key, seqs)):
        keys = marks(len(piece))
        read = execute(f"{rows.SELECT} WHERE event_key IN ({keys})", piece).fetchall()
        events = {of.key(event.seq): event for event in of.events(read)}
        texts = execute(f"{ANNOTATIONS} WHERE event_key IN ({keys})", piece).fetchall()
        notes = {seq: Annotation(*rest) for seq, *rest in texts}
        for key in piece:
            event = events.get(key)
            if event is None:  # its block says that it is there
                raise rows.missing(key)
            if terms.passes(where, event, notes.get(event.seq), names):
                passing.append(event)
    return passing
