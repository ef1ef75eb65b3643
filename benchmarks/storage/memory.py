"""Peak memory of recording one update, beside what the process held before, in a process a system.

    python -m benchmarks.storage.memory WORKLOAD SYSTEM FOLDER

The kernel's own high-water mark, reset after a first update, is what is read: nothing is sampled.
What a system holds all the time (the ledger its live copy, XOR + zstd the last state) was there
before and is not counted.
"""

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import Report
from benchmarks.storage.exact import copied
from benchmarks.storage.limits import deltas_between
from benchmarks.storage.ours import sqlite
from benchmarks.storage.peers import PEERS, peer
from benchmarks.storage.workloads import WORKLOADS, Workload
from weightledger import IncrementalUpdateRequest
from weightledger.ledger.tensors.memory import idle_bytes

MB = 1_000_000
COMPARING, INDICES = "ours, by comparing", "ours, 1 % of one tensor"


def peak_memory(report: Report, name: str, goal: float | None) -> None:
    """Add a row for every system where there is a goal, else for ours alone.

    Limit: the new values of the touched tensors.
    """
    for system in (COMPARING, INDICES, *PEERS) if goal else (COMPARING,):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.storage.memory", name, system, folder]
            printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        found = json.loads(printed)
        extra, touched = found["extra"], found["touched"]
        goal = goal if system in (COMPARING, INDICES) else None
        report.add(
            f"peak memory of recording beyond the model: {system}",
            extra / MB,
            "MB",
            goal=f"≤ {goal:g} × touched" if goal else "",
            ok=extra <= goal * touched if goal else None,
            limit=extra / touched,
            limit_of="touched tensors",
        )
        if found["idle"]:
            report.add("  kept idle for the next update", found["idle"] / MB, "MB")


def main() -> None:
    name, system, folder = sys.argv[1:]
    workload = WORKLOADS[name]()
    if system in (COMPARING, INDICES):
        with sqlite(Path(folder) / "ours", workload.state) as ours:
            if system == COMPARING:
                _measure(workload, lambda: ours.record(workload.state))
                return
            parameters = sorted(ours.log.specs)
            updates = iter([_one_percent(workload, p) for p in parameters[:2]])
            bits = workload.state[parameters[1]].nbytes
            ours.log.apply(next(updates))
            _tell(_extra(lambda: ours.log.apply(next(updates))), bits)
            return
    kept = peer(system, Path(folder) / "peer", workload.state)
    _measure(workload, lambda: kept.record(workload.state))


def _measure(workload: Workload, record: Callable[[], None]) -> None:
    workload.step()
    record()
    before = copied(workload.state)
    workload.step()
    pairs = zip(workload.state.values(), deltas_between(before, workload.state), strict=True)
    touched = sum(tensor.nbytes for tensor, delta in pairs if delta.changed)
    del before, pairs
    _tell(_extra(record), touched)


def _tell(extra: int, touched: int) -> None:
    print(json.dumps({"extra": extra, "touched": touched, "idle": idle_bytes()}))


def _extra(work: Callable[[], object]) -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _high_water()
    work()
    return _high_water() - before


def _high_water() -> int:
    """Most bytes this process has had in memory since the mark was reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("the kernel does not say how much memory was used at most")


def _one_percent(workload: Workload, parameter: str) -> IncrementalUpdateRequest:
    count = workload.state[parameter].numel()
    where = torch.randperm(count)[: count // 100].sort().values
    return IncrementalUpdateRequest(parameter, torch.randn(len(where)), 1e-3, indices=where)


if __name__ == "__main__":
    main()
