"""Every system records the same updates in the same rounds, then gives the newest state back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.measure import Report, interleaved
from benchmarks.storage import entropy
from benchmarks.storage.bare import Bare, filling
from benchmarks.storage.exact import copied, require_same
from benchmarks.storage.limits import Machine, deltas_between
from benchmarks.storage.ours import Ours
from benchmarks.storage.peers import WHOLE, XOR, Peer
from benchmarks.storage.workloads import State, Workload, size_of

MB = 1_000_000
_LONGEST = 16 * MB  # of an update


@dataclass
class Newest:
    """The step that was taken last: what the weights were before it."""

    before: State = field(default_factory=dict)


def record(
    report: Report,
    workload: Workload,
    ours: Mapping[str, Ours],
    alone: Mapping[str, Bare],
    peers: Mapping[str, Peer],
    machine: Machine,
) -> None:
    """Add the rows of recording: times, bytes, bytes per changed weight, and that all is exact."""
    newest, state = Newest(), workload.state
    random = filling(_LONGEST)

    def step(_: int) -> None:
        newest.before = copied(state)
        workload.step()
        machine.changes(deltas_between(newest.before, state))

    systems: dict[str, Ours | Peer] = {**ours, **peers}
    medians = interleaved(
        workload.rounds,
        step=step,
        **{name: _recording(system, state) for name, system in ours.items()},
        # Beside what they are the limit of: the disk is busy for a while after a whole model.
        **{f"bare {name}": _committing(ours[name], alone[name], random) for name in ours},
        **{name: _recording(system, state) for name, system in peers.items()},
        **machine.runs(),
        **_writes(machine, systems),
    )
    for name, system in systems.items():
        require_same(system.restore(), state, name)
    _machine(report, medians)
    _changes(report, newest.before, workload)
    _ours(report, workload, ours, newest.before, medians)
    _peers(report, workload, peers, medians, next(iter(ours)))
    count = len(systems)
    report.add("restored and compared bit for bit", count, "systems", goal="equal", ok=True)


def record_only(workload: Workload, ours: Mapping[str, Ours], machine: Machine) -> None:
    """Let the ledgers record the updates that `record` measures."""
    for left in reversed(range(workload.rounds)):
        before = copied(workload.state)
        workload.step()
        for system in ours.values():
            system.record(workload.state)
        if not left:
            machine.changes(deltas_between(before, workload.state))


def _recording(system: Ours | Peer, state: State) -> Callable[[int], None]:
    return lambda _: system.record(state)


def _committing(system: Ours, alone: Bare, data: memoryview) -> Callable[[int], None]:
    def run(_: int) -> None:
        assert system.written <= len(data)
        alone.commit(data[: system.written])

    return run


def _writes(
    machine: Machine, systems: Mapping[str, Ours | Peer]
) -> dict[str, Callable[[int], None]]:
    """Write and sync as many bytes as each kind of system did; all peers but one write as many."""
    first, *_ = systems
    return {
        "write delta": lambda _: machine.write(systems[first].written),
        "write xor": lambda _: machine.write(systems[XOR].written),
        "write model": lambda _: machine.write(systems[WHOLE].written),
    }


def _machine(report: Report, medians: Mapping[str, float]) -> None:
    for what, name in (
        ("limit: copy the model", "copy"),
        ("limit: hash it, one thread", "hash"),
        ("limit: hash it, all cores", "hash_all"),
        ("limit: scatter one update", "scatter"),
        ("limit: write and sync the model", "write model"),
    ):
        report.add(what, 1e3 * medians[name], "ms")


def _changes(report: Report, before: State, workload: Workload) -> None:
    deltas = deltas_between(before, workload.state)
    changed, count = sum(d.changed for d in deltas), sum(d.count for d in deltas)
    report.add("weights changed by an update", 100 * changed / count, "%")


def _ours(
    report: Report,
    workload: Workload,
    ours: Mapping[str, Ours],
    before: State,
    medians: Mapping[str, float],
) -> None:
    """Limit: read the model once, hash what was touched on all cores, write and sync."""
    size = size_of(workload.state)
    goals, hashed = workload.goals, medians["hash"]
    deltas = deltas_between(before, workload.state)
    changed = sum(delta.changed for delta in deltas)
    pairs = zip(workload.state.values(), deltas, strict=True)
    touched = sum(tensor.nbytes for tensor, delta in pairs if delta.changed) / size
    least = entropy.bytes_per_change(deltas)
    for name, system in ours.items():
        took, written = medians[name], system.written
        limit = medians["copy"] + touched * medians["hash_all"] + medians["write delta"]
        report.add(
            f"{name}: record by comparing",
            1e3 * took,
            "ms",
            ratio=took / hashed,
            of="hash",
            goal=f"≤ {goals.record:g} × hash",
            ok=took <= goals.record * hashed,
            limit=took / limit,
            limit_of="copy + hash + write",
        )
        report.add(
            "  limit: the driver alone commits as many bytes",
            1e3 * medians[f"bare {name}"],
            "ms",
            ratio=medians[f"bare {name}"] / hashed,
            of="hash",
        )
        report.add(
            "  bytes per changed weight",
            written / changed,
            "B",
            goal=f"≤ {goals.per_weight:g} × entropy",
            ok=written / changed <= goals.per_weight * least,
            limit=written / changed / least,
            limit_of="entropy",
        )
        report.add(
            "  bytes an update",
            written / MB,
            "MB",
            ratio=size / written,
            of="smaller than the model",
        )


def _peers(
    report: Report,
    workload: Workload,
    peers: Mapping[str, Peer],
    medians: Mapping[str, float],
    first: str,
) -> None:
    """Limit: write and sync what it writes, after reading the model where it compares."""
    size = size_of(workload.state)
    for name, peer in peers.items():
        took = medians[name]
        compares = name == XOR
        write = medians["write xor"] if compares else medians["write model"]
        limit = write + medians["copy"] if compares else write
        report.add(
            f"peer {name}: record",
            1e3 * took,
            "ms",
            ratio=took / medians[first],
            of=f"ours, {first}",
            goal="ours ahead" if compares else "",
            ok=medians[first] < took if compares else None,
            limit=took / limit,
            limit_of="copy + write" if compares else "write",
        )
        beyond = peer.disk() - size
        report.add("  bytes an update", peer.written / MB, "MB")
        report.add(
            f"  on disk after {workload.rounds} updates, beyond the first", beyond / MB, "MB"
        )
