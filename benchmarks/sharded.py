"""What recording a sharded model costs: two ranks beside one process with the whole model.

    python -m benchmarks.sharded [--mib N] [--rounds N]

128 MiB of float32 in 32 tensors, 1 % of it changed, found by comparing; FSDP2 over gloo. Beside the
time by the clock stands the processor time of all ranks. One process uses every core that there is,
so on two cores two ranks can gain nothing by the clock: it stands there held to one core as well,
as if each rank had a core and the one process had one, and so does what one core takes to hash half
of the model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import Report
from weightledger import Ledger
from weightledger.ledger.tensors.digest import chunk_digests
from weightledger.ledger.tensors.lanes import lanes

TENSORS, ROWS, GOAL, RANKS = 32, 1024, 0.4, 2


class Stack(torch.nn.Module):
    """Tensors of the same size."""

    def __init__(self, mib: int) -> None:
        super().__init__()
        columns = mib * (1 << 20) // 4 // TENSORS // ROWS
        random = torch.Generator().manual_seed(5)
        self.layers = torch.nn.ParameterList(
            torch.nn.Parameter(torch.randn(ROWS, columns, generator=random)) for _ in range(TENSORS)
        )


def change(tensor: torch.Tensor, seed: int) -> None:
    """Change 1 % of a tensor's elements."""
    with torch.no_grad():
        flat = tensor.view(-1)
        random = torch.Generator().manual_seed(seed)
        flat[torch.randint(len(flat), (len(flat) // 100,), generator=random)] += 0.01


def alone(mib: int, rounds: int, folder: Path) -> list[float]:
    """Wall and processor seconds of one process, best of the rounds."""
    module = Stack(mib)
    with Ledger.open(f"sqlite:///{folder}/alone.db", blob_url=str(folder / "alone")) as ledger:
        log = ledger.model("whole", base=module, alpha=1e9)
        best = [1e9, 1e9]
        for number in range(rounds + 1):  # the first one compiles
            for place, tensor in enumerate(module.parameters()):
                change(tensor, 1000 * number + place)
            started, used = time.perf_counter(), time.process_time()
            log.record(module)
            if number:
                took = [time.perf_counter() - started, time.process_time() - used]
                best = list(map(min, best, took))
    return best


def hashing(mib: int, rounds: int) -> list[float]:
    """The same of nothing but hashing half of the model, which a rank cannot do without."""
    tensors = [each.detach()[: ROWS // 2] for each in Stack(mib).parameters()]
    best = [1e9, 1e9]
    for number in range(rounds + 1):
        started, used = time.perf_counter(), time.process_time()
        for tensor in tensors:
            chunk_digests(lanes(tensor))
        if number:
            took = [time.perf_counter() - started, time.process_time() - used]
            best = list(map(min, best, took))
    return best


def rank(mib: int, rounds: int, folder: Path, number: int, world: int) -> list[float]:
    """The same of one of several ranks."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=world
    )
    module = fully_shard(Stack(mib), mesh=init_device_mesh("cpu", (world,)))
    with Ledger.open(f"sqlite:///{folder}/ranks.db", blob_url=str(folder / "ranks")) as ledger:
        log = ledger.sharded("cut", module)
        best = [1e9, 1e9]
        for step in range(rounds + 1):
            for place, tensor in enumerate(module.parameters()):
                change(tensor.to_local(), 1000 * step + place + 100 * number)  # type: ignore[attr-defined]
            dist.barrier()
            started, used = time.perf_counter(), time.process_time()
            log.record_sharded(module)
            if step:
                took = [time.perf_counter() - started, time.process_time() - used]
                best = list(map(min, best, took))
        log.close()
    dist.destroy_process_group()
    return best


def start(args: argparse.Namespace, folder: str, *role: str) -> "subprocess.Popen[str]":
    """One of those that are measured, as a process of its own."""
    command = [sys.executable, "-m", "benchmarks.sharded", "--mib", str(args.mib)]
    command += ["--rounds", str(args.rounds), "--folder", folder, *role]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def told(process: "subprocess.Popen[str]") -> list[float]:
    """What it measured."""
    seconds: list[float] = json.loads(process.communicate()[0])
    return seconds


def work(args: argparse.Namespace) -> list[float]:
    """What one of those does."""
    if args.rank is not None:
        return rank(args.mib, args.rounds, args.folder, args.rank, RANKS)
    if args.role != "alone":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if args.role == "hashing":
        return hashing(args.mib, args.rounds)
    return alone(args.mib, args.rounds, args.folder)


def main() -> None:
    """Measure and print; with --role be one of those that are measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--role", choices=("alone", "one core", "hashing", "rank"))
    parser.add_argument("--rank", type=int)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.role is not None:
        print(json.dumps(work(args)))
        sys.stdout.flush()
        os._exit(0)
    report = Report("Recording a sharded model")
    report.group = f"{args.mib} MiB, 1 % changed, found by comparing"
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name, part) for part in ("whole", "held")]
        for folder in folders:
            folder.mkdir()
        whole = told(start(args, str(folders[0]), "--role", "alone"))
        held = told(start(args, str(folders[1]), "--role", "one core"))
        floor = told(start(args, name, "--role", "hashing"))
        ranks = [start(args, name, "--role", "rank", "--rank", str(one)) for one in range(RANKS)]
        each = [told(one) for one in ranks]
    wall, cpu = max(one[0] for one in each), sum(one[1] for one in each)
    report.add("one process, all cores", 1000 * whole[0], "ms")
    report.add("two ranks", 1000 * wall, "ms", ratio=wall / whole[0], of="one process",
               goal=f"≤ {GOAL} ×", ok=wall <= GOAL * whole[0])  # fmt: skip
    report.add("one process held to one core", 1000 * held[0], "ms")
    report.add("  two ranks beside that", 1000 * wall, "ms", ratio=wall / held[0],
               of="one process on one core")  # fmt: skip
    report.add("  hashing half of it on one core", 1000 * floor[0], "ms",
               ratio=floor[0] / whole[0], of="one process")  # fmt: skip
    report.add("processor time, one process", 1000 * whole[1], "ms")
    report.add("processor time, both ranks", 1000 * cpu, "ms", ratio=cpu / whole[1],
               of="one process")  # fmt: skip
    report.finish("sharded")


if __name__ == "__main__":
    main()
