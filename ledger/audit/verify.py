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
from weightledger.ledger.errors import CorruptLedger, Pruned
from weightledger.ledger.history.reader import History
from weightledger.ledger.tensors.spec import WEIGHTS


def verify(
    history: History,
    progress: Progress | None = None,
    *,
    states: bool = True,
    processes: int = 1,
) -> Report:
    """Check one model's whole log; never raises for what it finds, reports it instead.

    Without `states` no payload is read and no state rebuilt: hashes, order, rows and annotations
    only. `processes` share the work of that part. Starts over when gc drops something meanwhile.
    """
    told = progress or (lambda done, total: None)
    while True:
        report, runs = Report(history.model), _gc_runs(history)
        try:
            _verify(history, report, told, states, processes)
        except CorruptLedger as error:
            if _gc_runs(history) != runs:
                continue
            report.problem, report.bad_seq = str(error), error.seq
        return report


def _gc_runs(history: History) -> int | None:
    """How often gc dropped something; None where the log is too damaged to say."""
    try:
        return history.pruned.runs
    except CorruptLedger:
        return None


def _verify(
    history: History, report: Report, progress: Progress, states: bool, processes: int
) -> None:
    total = sound = history.head().seq + 1
    broken: CorruptLedger | None = None
    try:
        watch = None if states else progress
        parallel.check(history.store, total, processes, watch)
    except CorruptLedger as error:
        broken, sound = error, error.seq or 0
    if states:
        from weightledger.ledger.audit.states import rebuild  # needs torch, the chain does not

        rebuild(history, report, progress, sound, total)
    else:
        report.events = sound
    if broken is not None:
        raise broken
    head = history.require(total - 1)
    report.head_seq, report.head_digest, report.head_hash = head.seq, head.state_after, head.hash
    report.tree_root = tree.check(history.store, total)
    wrong = history.store.discrepancies(registered_weights(history))
    if wrong:
        raise CorruptLedger(f"{'; '.join(wrong)}: `weightledger repair` derives them anew")
    if states:
        from weightledger.ledger.audit.states import check_snapshots

        check_snapshots(history, report)
    weak = history.store.home.weaknesses()
    if weak:
        raise CorruptLedger(f"the database is not append-only: {'; '.join(weak)}")
    damage = history.store.home.damage()
    if damage:
        raise CorruptLedger(f"the database is damaged: {'; '.join(damage)}")


def registered_weights(history: History) -> list[str] | None:
    """The full names of the weights, which a model keeps; None where no snapshot tells them."""
    with contextlib.suppress(CorruptLedger, Pruned):
        return [name for name in history.head_state().specs if name.startswith(WEIGHTS)]
    return None
