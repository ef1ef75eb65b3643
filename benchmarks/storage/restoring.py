"""Going back: rollback over several updates, any version rebuilt, a version named."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Report, clock, interleaved
from benchmarks.storage.bare import Bare, read_by
from benchmarks.storage.exact import copied, require_same
from benchmarks.storage.files import forget
from benchmarks.storage.limits import Machine
from benchmarks.storage.ours import Ours
from benchmarks.storage.peers import Peer
from benchmarks.storage.workloads import State, Workload, size_of
from weightledger.ledger.tensors.digest import chunk_digests
from weightledger.ledger.tensors.lanes import lanes

MB = 1_000_000
_ROUNDS = 6
_NAMES = 11
_ENDS = ("few", "many")


@dataclass(frozen=True)
class Span:
    """Two versions that are `moves` updates apart, their weights, and how many deltas lie between
    each and the first state, which is the only one kept whole."""

    first: str
    last: str
    before: State
    after: State
    few: int
    many: int


def restore(
    report: Report,
    workload: Workload,
    ours: Mapping[str, Ours],
    alone: Mapping[str, Bare],
    peers: Mapping[str, Peer],
    machine: Machine,
    folder: Path,
) -> None:
    """Add the rows of rollback, of restoring and of naming a version."""
    before = copied(workload.state)
    firsts = {name: system.log.create_version("before").name for name, system in ours.items()}
    for _ in range(workload.moves):
        workload.step()
        for system in ours.values():
            system.record(workload.state)
    _disk(report, workload, ours)
    lasts = {name: system.log.create_version("after").name for name, system in ours.items()}
    few, many = workload.rounds, workload.rounds + workload.moves
    spans = {
        name: Span(firsts[name], lasts[name], before, workload.state, few, many) for name in ours
    }
    rounds = min(_ROUNDS, workload.rounds)
    _rollback(report, workload, ours, spans, machine, rounds)
    _versions(report, workload, ours, alone, peers, machine, spans, rounds)
    _cold(report, workload, ours, peers, spans, folder, rounds)
    _naming(report, ours, machine)


def _disk(report: Report, workload: Workload, ours: Mapping[str, Ours]) -> None:
    """Beyond the model itself, everything counted: rows, indexes, snapshots, write-ahead log."""
    for name, system in ours.items():
        beyond = system.disk() - size_of(workload.state)
        deltas = sum(event.payload_size for event in system.log.events())
        report.add(
            f"{name}: on disk after {workload.rounds + workload.moves} updates, beyond the first",
            beyond / MB,
            "MB",
            ratio=beyond / deltas,
            of="sum of deltas",
            goal="≤ 2 ×",
            ok=beyond <= 2 * deltas,
            limit=beyond / deltas,
            limit_of="deltas",
        )


def _rollback(
    report: Report,
    workload: Workload,
    ours: Mapping[str, Ours],
    spans: Mapping[str, Span],
    machine: Machine,
    rounds: int,
) -> None:
    """There and back in turns; each is compared. Limit: copy, scatter each update, hash."""
    taken: dict[str, list[float]] = {name: [] for name in ours}
    least: list[float] = []
    for _ in range(max(1, rounds // 2)):
        for name, system in ours.items():
            span = spans[name]
            for position, state in ((span.first, span.before), (span.last, span.after)):
                with clock() as took:
                    system.log.rollback(position)
                taken[name].append(took())
                live = {n: system.log.projector.engine.tensor(n) for n in state}
                require_same(live, state, f"{name}, rolled back,")
        limits = machine.read(interleaved(1, **machine.runs()))
        least.append(limits.copy + workload.moves * limits.scatter + limits.hash)
    goal, limit = workload.goals.rollback, statistics.median(least)
    for name, times in taken.items():
        median = statistics.median(times)
        report.add(
            f"{name}: roll back {workload.moves} updates, verified",
            1e3 * median,
            "ms",
            goal=f"≤ {goal:g} × limit",
            ok=median <= goal * limit,
            limit=median / limit,
            limit_of=f"copy + {workload.moves} scatters + hash, one thread",
        )
        report.add("  fastest", 1e3 * min(times), "ms")
        report.add("  slowest", 1e3 * max(times), "ms")


def _versions(
    report: Report,
    workload: Workload,
    ours: Mapping[str, Ours],
    alone: Mapping[str, Bare],
    peers: Mapping[str, Peer],
    machine: Machine,
    spans: Mapping[str, Span],
    rounds: int,
) -> None:
    """Page cache warm; peers give their newest state, which is hashed as ours is verified."""
    restored = {end: dict[str, State]() for end in _ENDS}

    def load(peer: Peer) -> Callable[[int], None]:
        return lambda _: _hash(peer.restore())

    medians = interleaved(
        rounds,
        **{
            f"{name} {end}": _asking(system, spans[name], end, restored[end])
            for name, system in ours.items()
            for end in _ENDS
        },
        **{
            f"bare {name} {end}": _fetching(alone[name], read_by(system, getattr(spans[name], end)))
            for name, system in ours.items()
            for end in _ENDS
        },
        **{name: load(peer) for name, peer in peers.items()},
        **machine.runs(),
    )
    limits = machine.read(medians)
    goals = {"few": workload.goals.restore_few, "many": workload.goals.restore_many}
    loaded = medians["safetensors"]
    for name, span in spans.items():
        require_same(restored["few"][name], span.before, name)
        require_same(restored["many"][name], span.after, name)
        for end in _ENDS:
            took = medians[f"{name} {end}"]
            report.add(
                f"{name}: restore a version, {getattr(span, end)} deltas",
                1e3 * took,
                "ms",
                ratio=took / loaded,
                of="load + hash safetensors",
                goal=f"≤ {goals[end]:g} ×",
                ok=took <= goals[end] * loaded,
                limit=took / (limits.copy + limits.hash_all),
                limit_of="copy + hash",
            )
        for end in _ENDS:
            fetched = medians[f"bare {name} {end}"]
            report.add(
                "  limit: the driver alone fetches what is stored of it,"
                f" {getattr(span, end)} deltas",
                1e3 * fetched,
                "ms",
                ratio=fetched / loaded,
                of="load + hash safetensors",
            )
    for name in peers:
        report.add(
            f"peer {name}: load the newest and hash it",
            1e3 * medians[name],
            "ms",
            limit=medians[name] / (limits.copy + limits.hash_all),
            limit_of="copy + hash",
        )


def _fetching(alone: Bare, digests: Sequence[bytes]) -> Callable[[int], None]:
    return lambda _: alone.fetch(digests)


def _asking(
    system: Ours, span: Span, end: str, restored: dict[str, State]
) -> Callable[[int], None]:
    """One of the two versions of a span, by how many deltas it is away."""
    version = span.first if end == "few" else span.last

    def run(_: int) -> None:
        restored[system.name] = system.log.state(version)

    return run


def _cold(
    report: Report,
    workload: Workload,
    ours: Mapping[str, Ours],
    peers: Mapping[str, Peer],
    spans: Mapping[str, Span],
    folder: Path,
    rounds: int,
) -> None:
    """The same from the disk, for databases that are files of ours."""
    goal = workload.goals.restore_cold
    for name, system in ours.items():
        if system.folder is None:
            continue
        span = spans[name]
        medians = interleaved(
            rounds,
            before_few=lambda _: forget(folder),
            few=_asking(system, span, "few", {}),
            before_many=lambda _: forget(folder),
            many=_asking(system, span, "many", {}),
            before_safetensors=lambda _: forget(folder),
            safetensors=lambda _: _hash(peers["safetensors"].restore()),
        )
        loaded = medians["safetensors"]
        for end in _ENDS:
            report.add(
                f"{name}: restore a version, {getattr(span, end)} deltas, page cache dropped",
                1e3 * medians[end],
                "ms",
                ratio=medians[end] / loaded,
                of="load + hash safetensors, cold",
                goal=f"≤ {goal:g} ×",
                ok=medians[end] <= goal * loaded,
            )


def _naming(report: Report, ours: Mapping[str, Ours], machine: Machine) -> None:
    def name_version(system: Ours) -> Callable[[int], None]:
        def run(n: int) -> None:
            system.log.create_version(f"v{n}")

        return run

    medians = interleaved(
        _NAMES,
        **{name: name_version(system) for name, system in ours.items()},
        write=lambda _: machine.write(4096),
    )
    for name in ours:
        took = medians[name]
        report.add(
            f"{name}: create_version",
            1e3 * took,
            "ms",
            goal="≤ 1.5 ms",
            ok=took <= 0.0015,
            limit=took / medians["write"],
            limit_of="write 4 KB",
        )


def _hash(state: State) -> None:
    for tensor in state.values():
        chunk_digests(lanes(tensor))
