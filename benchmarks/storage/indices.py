"""Updates that say which weights they change: 1 % of every tensor, and 25 % of one."""

from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.measure import Report, interleaved
from benchmarks.storage.limits import Machine
from benchmarks.storage.ours import Ours
from weightledger import IncrementalUpdateRequest

_SHARES = {"1 % of every tensor": (0.01, None), "25 % of one tensor": (0.25, 1)}
_GOAL_HASHES, _GOAL_ONE_S = 2.8, 0.012


def with_indices(report: Report, ours: Mapping[str, Ours], machine: Machine, rounds: int) -> None:
    """Add the rows; two sets of updates take turns, so that each changes what it writes."""
    generator = torch.Generator().manual_seed(3)
    runs: dict[str, Callable[[int], None]] = {}
    sizes: dict[str, int] = {}

    def apply(key: str, system: Ours, sets: Sequence[list[IncrementalUpdateRequest]]) -> None:
        def run(n: int) -> None:
            sizes[key] = system.log.apply_batch(sets[n % 2]).payload_size

        runs[key] = run
        runs[f"write {key}"] = lambda _: machine.write(sizes[key])

    for name, system in ours.items():
        for what, (share, most) in _SHARES.items():
            parameters = sorted(system.log.specs)[:most]
            apply(
                f"{name}: {what}",
                system,
                [[_update(system, p, share, generator) for p in parameters] for _ in range(2)],
            )
    medians = interleaved(rounds, **runs, **machine.runs())
    limits = machine.read(medians)
    for name, system in ours.items():
        for what, (_, most) in _SHARES.items():
            key = f"{name}: {what}"
            took = medians[key]
            hashed = limits.hash_all * (most or len(system.log.specs)) / len(system.log.specs)
            goal = took <= _GOAL_ONE_S if most else took <= _GOAL_HASHES * limits.hash
            report.add(
                f"{name}: record, indices given, {what}",
                1e3 * took,
                "ms",
                ratio=None if most else took / limits.hash,
                of="" if most else "hash",
                goal=f"≤ {1e3 * _GOAL_ONE_S:g} ms" if most else f"≤ {_GOAL_HASHES:g} × hash",
                ok=goal,
                limit=took / (hashed + medians[f"write {key}"]),
                limit_of="hash + write",
            )


def _update(
    system: Ours, parameter: str, share: float, generator: torch.Generator
) -> IncrementalUpdateRequest:
    count = system.log.specs[parameter].numel
    where = torch.randperm(count, generator=generator)[: int(share * count)].sort().values
    values = torch.randn(len(where), generator=generator)
    return IncrementalUpdateRequest(parameter, values, 1e-3, indices=where)
