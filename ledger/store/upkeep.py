"""What is kept beside the log: compared with it, put right, and texts taken away from it.

The two changes that are no append; each is one transaction with the event that tells of it.
"""

from collections.abc import Callable, Collection, Sequence

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import Event
from weightledger.ledger.store import Append, Repairs, blocks, derived, erasing
from weightledger.ledger.store.append import Appender
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
    return item.event


def redact(
    of: ModelRows,
    appender: Appender,
    seqs: Sequence[int],
    texts: Sequence[str],
    record: Callable[[Event], Append],
) -> Event:
    """See `Redactable.redact`; called in a turn."""
    backend = of.database.backend
    keys = list(map(of.key, seqs))
    with of.database.write() as execute:
        item = record(of.event(execute(LAST, of.span()).fetchone()))
        backend.unprotect(execute, erasing.PROTECTED)
        erasing.erase(execute, keys, texts)
        backend.protect(execute, erasing.PROTECTED)
        blocks.forget(execute, of.model_id, {seq // blocks.BLOCK for seq in seqs})
        appender.append_within(execute, item)
    return item.event
