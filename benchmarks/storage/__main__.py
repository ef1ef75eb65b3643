"""The whole run: every workload in turn, one table, one JSON file."""

import argparse
import contextlib
import gc
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import storage
from benchmarks.measure import Report
from benchmarks.storage.bare import bare
from benchmarks.storage.commands import record_by_commands
from benchmarks.storage.indices import with_indices
from benchmarks.storage.limits import Machine
from benchmarks.storage.memory import peak_memory
from benchmarks.storage.ours import postgresql, server, sqlite
from benchmarks.storage.peers import PEERS, peer
from benchmarks.storage.recording import record, record_only
from benchmarks.storage.restoring import restore
from benchmarks.storage.workloads import WORKLOADS


def measure(
    report: Report,
    name: str,
    database: Any,
    folder: Path,
    peers_venv: Path | None,
    rounds: int | None,
    part: str | None,
) -> None:
    """Add all rows of one workload, or those of a part of it."""
    workload = WORKLOADS[name]()
    workload.rounds = rounds or workload.rounds
    report.group = workload.title
    print(workload.title, flush=True)
    with contextlib.ExitStack() as stack:
        ours = {
            "SQLite": stack.enter_context(sqlite(folder / "sqlite", workload.state)),
            "PostgreSQL": stack.enter_context(
                postgresql(database, f"bench_{name.lower()}", workload.state)
            ),
        }
        alone = {
            kind: stack.enter_context(contextlib.closing(bare(system, database, folder)))
            for kind, system in ours.items()
        }
        peers = {other: peer(other, folder / other, workload.state) for other in PEERS}
        machine = Machine(workload.state, folder)
        stack.callback(machine.close)
        if part == "restoring":
            record_only(workload, ours, machine)
        else:
            record(report, workload, ours, alone, peers, machine)
        if part != "recording":
            restore(report, workload, ours, alone, peers, machine, folder)
        if name == "L" and part is None:
            with_indices(report, ours, machine, workload.rounds)
            if peers_venv is not None:
                record_by_commands(report, workload, machine, folder, peers_venv)
    if part is None:
        peak_memory(report, name, workload.goals.memory)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.storage", description=storage.__doc__)
    parser.add_argument("--only", choices=WORKLOADS, help="one workload; no JSON is written")
    parser.add_argument("--peers", type=Path, help="environment with the peers that are commands")
    parser.add_argument("--rounds", type=int, help="instead of each workload's own")
    parser.add_argument("--part", choices=("recording", "restoring"), help="a part of one workload")
    options = parser.parse_args()
    if options.part and not options.only:
        parser.error("--part is of one workload: say which with --only")
    gc.freeze()  # what was imported is not looked through again before each measurement
    report = Report("Recording and restoring weights")
    with tempfile.TemporaryDirectory() as place, server(Path(place)) as database:
        for name in [options.only] if options.only else WORKLOADS:
            with tempfile.TemporaryDirectory(dir=place) as folder:
                measure(
                    report,
                    name,
                    database,
                    Path(folder),
                    options.peers,
                    options.rounds,
                    options.part,
                )
    if options.only:
        report.show()
    else:
        report.finish("storage")


if __name__ == "__main__":
    main()
