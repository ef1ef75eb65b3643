"""Verification: every event checked, every state rebuilt, every digest recomputed.

Works on the database alone. The chain of events is checked first (`ledger.audit.chain`); then their
payloads are applied to a rebuilt state, and each resulting tensor and state must have the digest
the event recorded. What is kept beside the log, to find events by, is derived from it again and
compared, and the database checks its indexes and itself. The first thing that does not hold is
reported.
"""

import contextlib

from weightledger.ledger.audit import parallel, tree
from weightledger.ledger.audit.chain import Progress
from weightledger.ledger.audit.report import Report
from weightledger.ledger.errors import CorruptLedger, InvalidRequest, Pruned
from weightledger.ledger.history.reader import History
from weightledger.ledger.parallel import Executor, untold
from weightledger.ledger.parallel.local import ALONE
from weightledger.ledger.store import TILE
from weightledger.ledger.tensors.spec import WEIGHTS

# What a value of another type than its column's leads to, wherever it is used.
_UNREADABLE = (TypeError, ValueError, AttributeError, OverflowError, MemoryError)


def verify(
    history: History,
    progress: Progress | None = None,
    *,
    states: bool = True,
    executor: Executor = ALONE,
    since: int = 0,
) -> Report:
    """Check one model's whole log; never raises for what it finds, reports it instead.

    Without `states` no payload is read and no state rebuilt: hashes, the tree over them, order,
    rows and annotations only. The work is shared out to `executor`. With `since` events before
    that seq are taken as they are, but for the tree, and snapshots and what is kept beside the log
    are left to a whole verification. Starts over when gc drops something meanwhile. Raises
    InvalidRequest when the log has no event `since`.
    """
    told = progress or untold
    while True:
        report, runs = Report(history.model, since), _gc_runs(history)
        try:
            _verify(history, report, told, states, executor)
        except CorruptLedger as error:
            if _gc_runs(history) != runs:
                continue
            report.problem, report.bad_seq = str(error), error.seq
        except _UNREADABLE as error:
            damage = history.store.home.damage()
            if not damage:
                raise
            report.problem = f"the database is damaged: {'; '.join(damage)} ({error!r})"
        return report


def _gc_runs(history: History) -> int | None:
    """How often gc dropped something; None where the log is too damaged to say."""
    try:
        return history.pruned.runs
    except CorruptLedger:
        return None


def _verify(
    history: History, report: Report, progress: Progress, states: bool, executor: Executor
) -> None:
    store = history.store
    total = sound = history.head().seq + 1
    if not 0 <= report.since <= total:
        raise InvalidRequest(
            f"the log has {total} events: there is none from {report.since} on", param="since"
        )
    broken: CorruptLedger | None = None
    tiles: list[bytes] = []
    try:
        watch = untold if states else progress
        # Up to the tile that event `since` is in the hashes are taken as they are.
        start = report.since // TILE * TILE
        tiles = tree.tiles_of(store, start)
        tiles += parallel.check_chain(store, start, total, executor, watch)
    except CorruptLedger as error:
        broken, sound = error, error.seq or 0
    if states:
        parallel.rebuild(history, report, progress, sound, total, executor)
    else:
        report.events = max(sound - report.since, 0)
    if broken is not None:
        raise broken
    head = history.require(total - 1)
    report.head_seq, report.head_digest, report.head_hash = head.seq, head.state_after, head.hash
    report.tree_root = tree.check(store, total, tiles)
    if report.since == 0:
        _check_beside(history, report, states, executor)
    weak = store.home.weaknesses()
    if weak:
        raise CorruptLedger(f"the database is not append-only: {'; '.join(weak)}")
    damage = store.home.damage()
    if damage:
        raise CorruptLedger(f"the database is damaged: {'; '.join(damage)}")


def _check_beside(history: History, report: Report, states: bool, executor: Executor) -> None:
    """What is kept beside the log so that it can be searched and states be restored."""
    wrong = history.store.discrepancies(registered_weights(history), tree=False)
    if wrong:
        raise CorruptLedger(f"{'; '.join(wrong)}: `weightledger repair` derives them anew")
    if states:
        parallel.check_snapshots(history, report, executor)


def registered_weights(history: History) -> list[str] | None:
    """The full names of the weights, which a model keeps; None where no snapshot tells them."""
    with contextlib.suppress(CorruptLedger, Pruned):
        return [name for name in history.head_state().specs if name.startswith(WEIGHTS)]
    return None
