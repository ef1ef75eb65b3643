"""Records read as far as they are intact, for whoever has to go on without one that is damaged.

A start needs the way to the head and nothing else, so a record beside it that is damaged stops
nothing: it is logged with what follows, which is the strictest that it could have said. What is
damaged stays so, and `verify` names it.
"""

import logging
from collections.abc import Iterator, Sequence

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import Event
from weightledger.ledger.history.reader import History
from weightledger.ledger.store import EventFilter

logger = logging.getLogger("weightledger.ledger.manager")


def newest(
    history: History,
    kinds: Sequence[str],
    most: int,
    instead: str,
    *,
    min_seq: int | None = None,
) -> Iterator[Event | int]:
    """The last events of some kinds, newest first; of one that is damaged its seq.

    `instead` says in the log what is done where one is damaged.
    """
    last: int | None = None
    while most > 0:
        try:
            where = EventFilter(kinds=kinds, min_seq=min_seq, max_seq=last)
            intact = history.events(where, limit=most)
        except CorruptLedger as error:
            if error.seq is None:
                raise
            skipped(error, instead)
            damaged = error.seq
        else:
            yield from intact
            return
        newer = EventFilter(kinds=kinds, min_seq=damaged + 1, max_seq=last)
        intact = history.events(newer, limit=most)
        yield from intact
        yield damaged
        last, most = damaged - 1, most - len(intact) - 1


def skipped(error: CorruptLedger, instead: str) -> None:
    """Log that a record is damaged, and what is done without it."""
    logger.error("%s; %s. `weightledger verify` tells more", error, instead)
