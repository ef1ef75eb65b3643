"""What questions about a history cost: diff, blame, and how soon a listener hears of a commit.

    python -m benchmarks.debugging_diff [--rounds N] [--events N] [--commits N] [--peers VENV]

Two states of 100 MB are compared where all changed, where an update moved 1 % scattered over all
tensors, and where it moved 1 % of all in one tensor; beside it what reading both states costs, and
what `reminis diff` takes, which compares two models that were put into SQLite files of their own:
changed elements, L2 norm and largest change of each tensor, as ours does beside the rest. Its
`blame` lists what an optimizer wrapper noted down, and has no values to rebuild.
"""

import argparse
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx2
import torch
from safetensors.torch import save_file

from benchmarks import replayable_log
from benchmarks.measure import Report
from tests.in_process import listening
from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    Ledger,
    Log,
    TorchEngine,
)
from weightledger.ledger.debug.diff import diff
from weightledger.ledger.debug.measured import Memo
from weightledger.ledger.debug.walking import Walker
from weightledger.ledger.history.replay import split
from weightledger.ledger.history.steps import apply_step
from weightledger.ledger.store.payloads import Portion
from weightledger.ledger.tensors.lanes import tensor_digest

TENSORS, ELEMENTS = 25, 1 << 20  # 100 MB of float32


def changed(state: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    after = {name: tensor.clone() for name, tensor in state.items()}
    if kind == "all":
        return {name: tensor * 1.001 for name, tensor in after.items()}
    chosen = after if kind == "scattered" else {"layers.7.weight": after["layers.7.weight"]}
    each = TENSORS * ELEMENTS // 100 // len(chosen)
    for tensor in chosen.values():
        at = torch.randperm(tensor.numel(), generator=random)[:each]
        tensor.view(-1)[at] += 0.01
    return after


REMINIS = """
import statistics, sys, time
from reminis.diff import diff_models
from reminis.safetensors_io import safetensors_to_sqlite
before, after, rounds = sys.argv[1:]
files = [safetensors_to_sqlite(one, one + ".db", verbose=False) for one in (before, after)]
taken = []
for _ in range(int(rounds)):
    started = time.perf_counter()
    diff_models(*files, verbose=False)
    taken.append(time.perf_counter() - started)
print(statistics.median(taken))
"""


def peer(python: Path, states: Sequence[dict[str, torch.Tensor]], rounds: int) -> float:
    """Seconds that reminis takes to compare two states, in its own environment."""
    with tempfile.TemporaryDirectory() as name:
        files = [str(Path(name) / f"{number}.safetensors") for number in range(2)]
        for state, file in zip(states, files, strict=True):
            save_file(state, file)
        command = [str(python), "-c", REMINIS, *files, str(rounds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def diffs(report: Report, log: Log, rounds: int, peers: Path) -> None:
    """Add what comparing costs, beside reading both states and the peer."""
    python = peers / "bin/python"
    has_peer = (
        python.exists()
        and not subprocess.run(
            [str(python), "-c", "import reminis"], capture_output=True, check=False
        ).returncode
    )
    base = log.state()
    for kind, what in (
        ("all", "all of 100 MB changed"),
        ("scattered", "1 % changed, over all tensors"),
        ("one", "1 % of all changed, in one tensor"),
    ):
        log.rollback("0")
        after = log.record(changed(base, kind)).seq
        position = f"seq:{after}"
        ends = [log.history.resolve(one) for one in ("0", position)]

        def read(ends: list = ends) -> None:  # type: ignore[type-arg]
            for end in ends:
                log.history.rebuild(end.node, end.state)

        memo = Memo()

        def compare(position: str = position, kept: Memo | None = None) -> None:
            diff(log.history, "0", position, memo=kept)

        reading = median(read, rounds)
        fresh = median(compare, rounds)
        compare(kept=memo)
        again = median(lambda: compare(kept=memo), rounds)  # noqa: B023
        ratio = fresh / reading
        report.add(f"diff, {what}", 1000 * fresh, "ms", ratio=ratio, of="reading both",
                   goal="≤ 2 × reading both", ok=ratio <= 2)  # fmt: skip
        if has_peer:
            theirs = peer(python, (base, log.state(position)), rounds)
            report.add("  reminis diff", 1000 * theirs, "ms", ratio=theirs / reading,
                       of="reading both")  # fmt: skip
        goal = "≤ 50 ms" if kind != "all" else ""
        report.add("  asked again of the same process", 1000 * again, "ms",
                   goal=goal, ok=again <= 0.05 if goal else None)  # fmt: skip


def steps(report: Report, log: Log, rounds: int) -> None:
    """Add what a walk pays for one event, beside decoding it, applying it and checking the bits."""
    log.rollback("0")
    name = "layers.7.weight"
    random = torch.Generator().manual_seed(3)
    for _ in range(20):
        at = torch.randperm(ELEMENTS, generator=random)[: ELEMENTS // 100]
        by = torch.randn(len(at), generator=random) * 0.01
        log.apply(IncrementalUpdateRequest(name, by, 1.0, indices=at))
    events = log.history.events(limit=20)[::-1]
    payloads = log.history.store.payloads(events)

    def walk() -> None:
        walker = Walker(log.history)
        walker.to(events[0].seq)
        started = time.process_time()
        for event in events[1:]:
            walker.to(event.seq)
        walked.append((time.process_time() - started) / (len(events) - 1))

    def apply() -> None:
        state = Walker(log.history).to(0)
        tensor, last = state.tensors[f"weights/{name}"].clone(), {}
        started = time.process_time()
        for event, payload in zip(events, payloads, strict=True):
            for step in split(event, False, Portion.whole(payload), state.digest, last):
                last[step.change.name] = step
                apply_step(tensor, step)
                assert tensor_digest(tensor) == step.digest
        applied.append((time.process_time() - started) / len(events))

    walked: list[float] = []
    applied: list[float] = []
    for _ in range(rounds):
        walk()
        apply()
    step, least = statistics.median(walked), statistics.median(applied)
    report.add("stepping one event, 1 % of 4 MB, processor time", 1000 * step, "ms",
               ratio=step / least, of="applying and checking it", goal="≤ 3 ×",
               ok=step <= 3 * least)  # fmt: skip


def blames(report: Report, folder: Path, events: int, rounds: int) -> None:
    """Add what the last 50 touches of a parameter cost at the end of a long log."""
    url = f"sqlite:///{folder}/long.db"
    replayable_log.load(url, events, folder)
    with Ledger.open(url) as ledger:
        log = ledger.model(replayable_log.MODEL)
        for index, what in ((None, "norms"), ("3,1", "one element")):
            name = replayable_log.NAMES[2]
            taken = median(lambda: log.blame(name, index, limit=50), rounds)  # noqa: B023
            report.add(f"blame, last 50 touches of {events:,} events, {what}", 1000 * taken, "ms",
                       goal="≤ 50 ms", ok=taken <= 0.05)  # fmt: skip


def streams(report: Report, folder: Path, commits: int) -> None:
    """Add how long after its commit an event is with a listener."""
    config = DynamicUpdateConfig(backup_dir=folder / "served", checkpoint_interval=10**9)
    manager = DynamicModelManager(TorchEngine(torch.nn.Linear(64, 64)), "m", config=config)
    got: dict[int, float] = {}
    ready = threading.Event()

    def listen(url: str) -> None:
        with httpx2.stream("GET", f"{url}/v1/models/events", timeout=60) as reply:
            ready.set()
            for line in reply.iter_lines():
                if line.startswith("id: "):
                    got[int(line[4:])] = time.perf_counter()
                if len(got) > commits:
                    return

    with listening(manager, data_dir=folder / "served") as url:
        thread = threading.Thread(target=listen, args=(url,))
        thread.start()
        ready.wait()
        committed = {}
        for _ in range(commits):
            seq = manager.log.apply(IncrementalUpdateRequest("bias", 0.1)).seq
            committed[seq] = time.perf_counter()
        thread.join()
    manager.close()
    late = [1000 * max(0.0, got[seq] - at) for seq, at in committed.items()]
    p99 = statistics.quantiles(late, n=100)[98]
    report.add("commit → listener", p99, "ms p99",
               goal=f"≤ 50 ms, p50 {statistics.median(late):.1f} ms", ok=p99 <= 50)  # fmt: skip


def median(work: Callable[[], object], rounds: int) -> float:
    """Seconds."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--commits", type=int, default=500)
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers"))
    options = parser.parse_args()
    report = Report("Questions about a history")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random = torch.Generator().manual_seed(1)
        state = {
            f"layers.{n}.weight": torch.randn(1024, 1024, generator=random) for n in range(TENSORS)
        }
        with Ledger.open(f"sqlite:///{folder}/states.db") as ledger:
            log = ledger.model("m", base=state)
            diffs(report, log, options.rounds, options.peers)
            steps(report, log, options.rounds)
        blames(report, folder, options.events, options.rounds)
        streams(report, folder, options.commits)
    report.finish("debugging_diff")


if __name__ == "__main__":
    main()
