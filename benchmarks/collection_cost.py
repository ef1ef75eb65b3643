"""What measuring every inference costs: the same requests with and without it, turn about.

    python -m benchmarks.collection_cost [--json FILE]

Small rounds of leases and forwards, alternating between a manager that measures and one whose
collector takes nothing in. What counts is the processor time of the whole process, the collecting
threads included, so that other programs on the machine do not.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from weightledger import DynamicModelManager, DynamicUpdateConfig, TorchEngine

ROUNDS, SECONDS = 20, 0.2


def model(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)).eval()


@contextlib.contextmanager
def managing(folder: Path, width: int, *, measures: bool) -> Iterator[DynamicModelManager]:
    torch.manual_seed(0)
    config = DynamicUpdateConfig(backup_dir=folder, policy="off")
    manager = DynamicModelManager(TorchEngine(model(width)), "m", config=config)
    if not measures:
        manager.collector.record = lambda *_, **__: None  # type: ignore[method-assign]
    with contextlib.closing(manager):
        yield manager


def served(manager: DynamicModelManager, inputs: torch.Tensor) -> float:
    """Processor seconds of one request, the collecting of it included."""
    count, began = 0, time.process_time()
    with torch.inference_mode():
        while (spent := time.process_time() - began) < SECONDS:
            for _ in range(20):
                with manager.lease() as live:
                    live.module(inputs)
            count += 20
    manager.collector.tick()
    return max(spent, time.process_time() - began) / count


def cost(width: int, batch: int) -> dict[str, float]:
    """Processor time of a request with and without, in microseconds, and how much more it is."""
    inputs = torch.zeros(batch, 64)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        measured, plain = (
            stack.enter_context(managing(Path(folder) / str(measures), width, measures=measures))
            for measures in (True, False)
        )
        for manager in (measured, plain):
            served(manager, inputs)
        times: list[tuple[float, float]] = []
        for number in range(ROUNDS):
            if number % 2:
                times.append((served(measured, inputs), served(plain, inputs)))
            else:
                without = served(plain, inputs)
                times.append((served(measured, inputs), without))
    measured_us = 1e6 * statistics.median(one for one, _ in times)
    plain_us = 1e6 * statistics.median(other for _, other in times)
    cost_percent = 100 * statistics.median(one / other - 1 for one, other in times)
    return {"measured_us": measured_us, "plain_us": plain_us, "cost_percent": cost_percent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    file = parser.parse_args().json
    torch.set_num_threads(1)
    figures = {
        "digits (64-64-10), one image": cost(64, 1),
        "MLP 64-2048-10, 32 rows": cost(2048, 32),
    }
    for name, one in figures.items():
        print(
            f"{name:32} {one['measured_us']:8.1f} µs measured {one['plain_us']:8.1f} µs not"
            f" {one['cost_percent']:+6.2f} %"
        )
    if file is not None:
        file.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
