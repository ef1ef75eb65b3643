"""Repair: what is kept beside the log derived from it anew, as an event of the log.

The log itself is never touched: where an event does not verify, a repair refuses, and a backup is
what helps. Otherwise every index is rebuilt, derived tables are made what the log says, and
snapshots that do not verify are written anew from what leads to their states.
"""

import time
from dataclasses import dataclass, field

from weightledger.ledger.audit import chain
from weightledger.ledger.audit.verify import registered_weights
from weightledger.ledger.errors import Conflict, CorruptLedger, KeyTaken, Pruned, SeqTaken
from weightledger.ledger.events import NO_WORDS, Annotation, Draft, Event, seal
from weightledger.ledger.events.bodies import Repair
from weightledger.ledger.history.anchor_repair import damaged_snapshots, rewrite_snapshot
from weightledger.ledger.history.reader import History
from weightledger.ledger.store import Repairs
from weightledger.ledger.store.attached import NOTHING, Append


@dataclass(slots=True)
class RepairReport:
    """What is wrong, in words, and what was done about it.

    `snapshots` are the nodes of those that do not verify; `event` is the `repaired` event, None for
    a dry run and where nothing was wrong.
    """

    model: str
    wrong: list[str] = field(default_factory=list)
    snapshots: tuple[int, ...] = ()
    event: Event | None = None


def repair(history: History, *, dry_run: bool, note: Annotation | None = None) -> RepairReport:
    """Find what is wrong beside one model's log and, unless `dry_run`, put it right.

    Raises CorruptLedger, and changes nothing, when the log itself is damaged; also for what nothing
    is left to derive from, such as a snapshot to whose state nothing else leads.
    """
    store, home = history.store, history.store.home
    try:
        chain.check(store, 0, store.head().seq + 1)
    except CorruptLedger as error:
        raise CorruptLedger(
            f"the log itself is damaged, which a repair cannot mend: {error}", seq=error.seq
        ) from error
    report = RepairReport(history.model, home.damage())
    if report.wrong and not dry_run:
        _rebuild_indexes(history)
    report.wrong += store.discrepancies(registered_weights(history))
    damaged = damaged_snapshots(history)
    report.wrong += damaged.values()
    report.snapshots = tuple(sorted(damaged))
    if dry_run or not report.wrong:
        return report
    for node in report.snapshots:
        try:
            rewrite_snapshot(history, node)
        except Pruned as error:
            raise CorruptLedger(
                f"nothing else leads to the state of the snapshot at event {node}: {error}",
                seq=node,
            ) from error

    def record(head: Event, rows: Repairs) -> Append:
        words = note or NO_WORDS
        draft = Draft(Repair(rows, report.snapshots), head.state_after)
        now = time.time_ns() // 1000
        return seal(draft, history.model, head, now, annotation=words), words, NOTHING

    report.event = store.repair(registered_weights(history), record)
    left = home.damage()
    if left:
        raise CorruptLedger(f"the database is still damaged: {'; '.join(left)}")
    return report


def _rebuild_indexes(history: History) -> None:
    try:
        history.store.home.rebuild_indexes()
    except (SeqTaken, KeyTaken, Conflict) as error:
        raise CorruptLedger(
            f"an index cannot be rebuilt, two events have what is one's alone: {error}"
        ) from error
