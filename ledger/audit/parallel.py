"""The chain checked by several processes: each takes a stretch of the log, then the next."""

import multiprocessing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from weightledger.ledger.audit import chain
from weightledger.ledger.audit.chain import Progress
from weightledger.ledger.errors import CorruptLedger, LedgerError
from weightledger.ledger.store import EventStore
from weightledger.ledger.store.sql_store import SqlStore

_STRETCH = 1 << 14  # events that one process checks at a time: whole tiles of the hash tree


@dataclass(slots=True)
class _Share:
    """What one process checked: the tiles of each stretch by its start, and what is wrong."""

    tiles: dict[int, list[bytes]] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)


def check(
    store: EventStore,
    start: int,
    stop: int,
    processes: int,
    progress: Progress | None = None,
) -> list[bytes]:
    """Check a log by several processes, this one included; see `ledger.audit.chain.check`.

    Each takes the next stretch when it is done with the last, so that this one is well on its way
    while the others, which take some tenths of a second to start, begin. LedgerError when one of
    them dies.
    """
    if processes < 2 or stop - start <= _STRETCH:
        return chain.check(store, start, stop, progress)
    context = multiprocessing.get_context("spawn")
    # The end of what was taken so far, and how many stretches each process took.
    taken = context.Array("q", 1 + processes)
    taken[0] = start
    helpers = []
    for number in range(2, processes + 1):
        ours, theirs = context.Pipe(duplex=False)
        work = (store.home.url, store.model, stop, taken, number, theirs)
        helper = context.Process(target=_help, args=work, daemon=True)
        helper.start()
        theirs.close()
        helpers.append((number, helper, ours))
    try:
        whole = _share(store, stop, taken, 1, progress)
        for number, helper, ours in helpers:
            if not taken[number]:  # it came too late, so there is nothing to wait for
                continue
            try:
                share = ours.recv()
            except EOFError:
                helper.join()
                raise LedgerError(
                    f"a process that checked events died (exit code {helper.exitcode})"
                ) from None
            whole.tiles |= share.tiles
            whole.problems += share.problems
    finally:
        for _, helper, ours in helpers:
            helper.terminate()
            helper.join()
            ours.close()
    if progress is not None:
        progress(stop, stop)
    if whole.problems:
        seq, text = min(whole.problems)
        raise CorruptLedger(text, seq=seq)
    return [tile for _, tiles in sorted(whole.tiles.items()) for tile in tiles]


def _share(
    store: EventStore, stop: int, taken: Any, number: int, progress: Progress | None
) -> _Share:
    """What came of the stretches that this process came to take."""
    share = _Share()
    while True:
        with taken.get_lock():
            start = taken[0]
            if start >= stop:
                return share
            taken[0] = end = min(start + _STRETCH, stop)
            taken[number] += 1
        try:
            share.tiles[start] = chain.check(store, start, end)
        except CorruptLedger as error:
            share.problems.append((start if error.seq is None else error.seq, str(error)))
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
