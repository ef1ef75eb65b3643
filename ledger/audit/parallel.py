"""The chain checked by several processes: each takes a stretch of the log, then the next."""

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

from weightledger.ledger.audit import chain
from weightledger.ledger.audit.chain import Progress
from weightledger.ledger.errors import CorruptLedger, LedgerError
from weightledger.ledger.store import EventStore
from weightledger.ledger.store.sql_store import SqlStore

_STRETCH = 1 << 14  # events that one process checks at a time


def check(store: EventStore, stop: int, processes: int, progress: Progress | None = None) -> None:
    """Check the whole log by several processes, this one included; see `ledger.audit.chain.check`.

    Each takes the next stretch when it is done with the last, so that this one is well on its way
    while the others, which take seconds to start, begin. LedgerError when one of them dies.
    """
    if processes < 2 or stop <= _STRETCH:
        chain.check(store, 0, stop, progress)
        return
    context = multiprocessing.get_context("spawn")
    # The end of what was taken so far, and how many stretches each process took.
    taken = context.Array("q", 1 + processes)
    helpers = []
    for number in range(2, processes + 1):
        ours, theirs = context.Pipe(duplex=False)
        work = (store.home.url, store.model, stop, taken, number, theirs)
        helper = context.Process(target=_help, args=work, daemon=True)
        helper.start()
        theirs.close()
        helpers.append((number, helper, ours))
    try:
        found = _share(store, stop, taken, 1, progress)
        for number, helper, ours in helpers:
            if not taken[number]:  # it came too late, so there is nothing to wait for
                continue
            try:
                found += ours.recv()
            except EOFError:
                helper.join()
                raise LedgerError(
                    f"a process that checked events died (exit code {helper.exitcode})"
                ) from None
    finally:
        for _, helper, ours in helpers:
            helper.terminate()
            helper.join()
            ours.close()
    if progress is not None:
        progress(stop, stop)
    if found:
        seq, text = min(found)
        raise CorruptLedger(text, seq=seq)


def _share(
    store: EventStore, stop: int, taken: Any, number: int, progress: Progress | None
) -> list[tuple[int, str]]:
    """What is wrong in the stretches that this process came to take."""
    found: list[tuple[int, str]] = []
    while True:
        with taken.get_lock():
            start = taken[0]
            if start >= stop:
                return found
            taken[0] = end = min(start + _STRETCH, stop)
            taken[number] += 1
        problem = _checked(store, start, end)
        if problem is not None:
            found.append(problem)
        if progress is not None:
            progress(end, stop)


def _help(url: str, model: str, stop: int, taken: Any, number: int, results: Connection) -> None:
    if taken[0] >= stop:
        return
    store = SqlStore.open(url, upgrade=False, guarded=False)
    try:
        results.send(_share(store.model(model), stop, taken, number, None))
    finally:
        store.close()


def _checked(store: EventStore, start: int, stop: int) -> tuple[int, str] | None:
    try:
        chain.check(store, start, stop)
    except CorruptLedger as error:
        return (start if error.seq is None else error.seq), str(error)
    return None
