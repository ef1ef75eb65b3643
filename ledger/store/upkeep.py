"""What is kept beside the log: compared with it, and put right.

The change that is no append; it is one transaction with the event that tells of it.
"""

from collections.abc import Callable, Collection

from weightledger.ledger import interrupts
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import Event
from weightledger.ledger.store import Repairs, derived
from weightledger.ledger.store.append import Appender
from weightledger.ledger.store.attached import Append
from weightledger.ledger.store.lookup import LAST
from weightledger.ledger.store.model_rows import ModelRows


def discrepancies(of: ModelRows, weights: Collection[str] | None, *, tree: bool) -> list[str]:
    """See `Upkeep.discrepancies`."""
    with of.database.read() as execute:
        wanted = derived.derive(execute, of.model_id, weights)
        return derived.differences(execute, wanted, tree=tree).described()


def repair(
    of: ModelRows,
    appender: Appender,
    weights: Collection[str] | None,
    record: Callable[[Event, Repairs], Append],
) -> Event:
    """See `Upkeep.repair`."""
    backend = of.database.backend
    with of.database.write() as execute:
        with interrupts.let_through():  # nothing is written yet, and the log may be long
            wanted = derived.derive(execute, of.model_id, weights)
            differing = derived.differences(execute, wanted)
        backend.unprotect(execute, derived.PROTECTED)
        derived.repair(execute, wanted, differing)
        backend.protect(execute, derived.PROTECTED)
        left = derived.differences(execute, wanted).described()
        if left:
            raise CorruptLedger(f"it could not be put right: {'; '.join(left)}")
        head = of.event(execute(LAST, of.span()).fetchone())
        item = record(head, differing.counts())
        appender.append_within(execute, item)
    return item[0]
