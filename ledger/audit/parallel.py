"""A verification shared out: the chain by stretches of the log, the states by tensors.

What several found is put together to what one would have said. Where something does not hold, one
process looks at that event again, so that the words are its words.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from weightledger.ledger.audit import chain
from weightledger.ledger.audit.chain import Progress
from weightledger.ledger.audit.report import Report
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.reading import reading
from weightledger.ledger.parallel import Executor, Task, Told, in_order
from weightledger.ledger.parallel.shares import Share, shares, worth
from weightledger.ledger.store import TILE, EventStore

_HERE = "weightledger.ledger.audit.parallel"

_STRETCH = 64 * TILE
"""Fewest events of a task: whole tiles of the hash tree."""

# Bytes that are decoded and hashed in a second.
_BYTES_A_SECOND = 1 << 30

# What every share says the same of, and what is added up.
_SAME, _ADDED = ("events", "states", "pruned"), ("tensors", "payload_bytes")


def check_chain(
    store: EventStore, start: int, stop: int, executor: Executor, progress: Progress
) -> list[bytes]:
    """Check a log's chain; see `ledger.audit.chain.check`."""
    tiles = (stop - start) // (4 * executor.jobs) // TILE * TILE
    stretches = list(_stretches(start, stop, max(_STRETCH, tiles)))
    if executor.jobs == 1 or len(stretches) == 1:
        return chain.check(store, start, stop, progress)
    where = {"url": store.home.url, "model": store.model}
    tasks = [
        Task(f"{_HERE}:chain_stretch", {**where, "start": first, "stop": end})
        for first, end in stretches
    ]

    def told(done: int, total: int) -> None:
        progress(start + done * (stop - start) // max(total, 1), stop)

    results = in_order(executor.run(tasks, told), len(tasks))
    _raise_first([one["problem"] for one in results if one["problem"]])
    return [bytes.fromhex(tile) for one in results for tile in one["tiles"]]


def chain_stretch(told: Told, url: str, model: str, start: int, stop: int) -> dict[str, Any]:
    """The tiles of a stretch of the log, and what is wrong with it."""
    with reading(url, model) as history:
        try:
            tiles = chain.check(
                history.store, start, stop, lambda done, _: told(done - start, stop - start)
            )
        except CorruptLedger as error:
            return {"tiles": [], "problem": [start if error.seq is None else error.seq, str(error)]}
    return {"tiles": [tile.hex() for tile in tiles], "problem": None}


def rebuild(
    history: History,
    report: Report,
    progress: Progress,
    stop: int,
    total: int,
    executor: Executor,
) -> None:
    """Rebuild every state; see `ledger.audit.states.rebuild`."""
    from weightledger.ledger.audit import states  # needs torch, the chain does not
    from weightledger.ledger.audit.split_payloads import Chunks, check_together

    parts = _shares(history, executor)
    if len(parts) == 1:
        states.rebuild(history, report, progress, stop, total)
        return
    data = {"since": report.since, "stop": stop, "total": total}
    results = _each(history, executor, "states_share", parts, data, progress)
    problems = [one["problem"] for one in results if one["problem"]]
    if not problems:
        try:
            check_together(Chunks.from_json(told) for one in results for told in one["chunks"])
        except CorruptLedger as error:
            problems.append([error.seq, str(error)])
    _add(report, [one["report"] for one in results])
    if problems:
        seq, _ = min(map(tuple, problems))
        report.events = seq - report.since
        if seq > 0:
            states.rebuild(history, Report(history.model, seq), lambda *_: None, seq + 1, total)
        _raise_first(problems)


def states_share(
    told: Told,
    url: str,
    model: str,
    share: Mapping[str, Any],
    since: int,
    stop: int,
    total: int,
) -> dict[str, Any]:
    """Every state of a share's tensors rebuilt: what was covered, and what is wrong."""
    from weightledger.ledger.audit import states

    problem = None
    with reading(url, model) as history:
        report, chunks = Report(model, since), []
        try:
            chunks = states.rebuild(history, report, told, stop, total, Share(**share))
        except CorruptLedger as error:
            problem = [report.since + report.events if error.seq is None else error.seq, str(error)]
    return {
        "report": _counts(report),
        "chunks": [one.to_json() for one in chunks],
        "problem": problem,
    }


def check_snapshots(history: History, report: Report, executor: Executor) -> None:
    """Restore every snapshot; see `ledger.audit.states.check_snapshots`."""
    from weightledger.ledger.audit import states

    size = sum(snapshot.size for snapshot in history.store.snapshots())
    count = worth(size / _BYTES_A_SECOND, executor)
    parts = _by_size(history, count) if count > 1 else []
    if len(parts) < 2:
        states.check_snapshots(history, report)
        return
    results = _each(history, executor, "snapshots_share", parts, {}, lambda *_: None)
    _raise_first([one["problem"] for one in results if one["problem"]])
    report.snapshots += results[0]["snapshots"]


def snapshots_share(told: Told, url: str, model: str, share: Mapping[str, Any]) -> dict[str, Any]:
    """A share's tensors of every snapshot restored: how many there were, and what is wrong."""
    from weightledger.ledger.audit import states

    with reading(url, model) as history:
        report = Report(model)
        try:
            states.check_snapshots(history, report, Share(**share))
        except CorruptLedger as error:
            return {"snapshots": report.snapshots, "problem": [error.seq or 0, str(error)]}
    return {"snapshots": report.snapshots, "problem": None}


def _each(
    history: History,
    executor: Executor,
    function: str,
    parts: Sequence[Share],
    data: Mapping[str, Any],
    progress: Progress,
) -> list[Any]:
    """What a function comes to for each share."""
    where = {"url": history.store.home.url, "model": history.model}
    tasks = [
        Task(f"{_HERE}:{function}", {**where, **data, "share": share.to_json()}) for share in parts
    ]
    return in_order(executor.run(tasks, progress), len(tasks))


def _shares(history: History, executor: Executor) -> list[Share]:
    """Shares that are worth a task each. There is one a job, since each reads every event."""
    work = _work(history) if executor.jobs > 1 else {}
    return shares(work, worth(sum(work.values()) / _BYTES_A_SECOND, executor))


def _by_size(history: History, count: int) -> list[Share]:
    specs = history.head_state().specs
    return shares({name: spec.nbytes for name, spec in specs.items()}, count)


def _work(history: History) -> dict[str, int]:
    """About how many bytes a verification goes through for each tensor; none where the log is too
    damaged to say."""
    try:
        specs = history.head_state().specs
    except CorruptLedger:
        return {}
    counts = history.store.update_counts()
    return {name: spec.nbytes * (1 + counts.get(name, 0)) for name, spec in specs.items()}


def _counts(report: Report) -> dict[str, int]:
    return {name: getattr(report, name) for name in (*_SAME, *_ADDED)}


def _add(report: Report, parts: Sequence[Mapping[str, int]]) -> None:
    for name in _SAME:
        setattr(report, name, getattr(report, name) + min(part[name] for part in parts))
    for name in _ADDED:
        setattr(report, name, getattr(report, name) + sum(part[name] for part in parts))


def _raise_first(problems: Sequence[Sequence[Any]]) -> None:
    if problems:
        seq, text = min(map(tuple, problems))
        raise CorruptLedger(text, seq=seq)


def _stretches(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Stretches that begin with a tile, but for the first."""
    while start < stop:
        end = min((start // size + 1) * size, stop)
        yield start, end
        start = end
