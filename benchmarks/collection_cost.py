"""What measuring every inference costs: the same requests with and without it, turn about.

    python -m benchmarks.collection_cost [--json FILE]

Small rounds of leases and forwards, alternating between a manager that measures and one whose
collector takes nothing in, so that a machine that gets slower in between slows both. The second
number is what a manager can serve at most when a forward costs nothing.
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

ROUNDS, SECONDS = 60, 0.25


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
    """Requests a second."""
    count, began = 0, time.perf_counter()
    with torch.inference_mode():
        while (now := time.perf_counter()) - began < SECONDS:
            for _ in range(20):
                with manager.lease() as live:
                    live.module(inputs)
            count += 20
    return count / (now - began)


def cost(width: int, batch: int) -> dict[str, float]:
    """Requests a second with and without, and the share of them that measuring takes."""
    inputs = torch.zeros(batch, 64)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        measured, plain = (
            stack.enter_context(managing(Path(folder) / str(measures), width, measures=measures))
            for measures in (True, False)
        )
        for manager in (measured, plain):
            served(manager, inputs)
        rates: list[tuple[float, float]] = []
        for number in range(ROUNDS):
            if number % 2:
                rates.append((served(measured, inputs), served(plain, inputs)))
            else:
                without = served(plain, inputs)
                rates.append((served(measured, inputs), without))
    shares = [1 - one / other for one, other in rates]
    return {
        "measured_per_s": statistics.median(one for one, _ in rates),
        "plain_per_s": statistics.median(other for _, other in rates),
        "cost_percent": 100 * statistics.median(shares),
    }


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
            f"{name:32} {one['measured_per_s']:9.0f}/s measured {one['plain_per_s']:9.0f}/s not"
            f" {one['cost_percent']:6.2f} %"
        )
    if file is not None:
        file.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
