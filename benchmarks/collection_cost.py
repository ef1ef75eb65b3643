"""What measuring every inference costs: the same requests with and without it, turn about.

    python -m benchmarks.collection_cost [--json FILE]

Small rounds of leases and forwards, alternating between a manager that measures and one that leases
from its engine and says nothing to anybody; then the same through `/invocations`, without sockets.
What counts is the processor time of the whole process, the collecting threads included, so that
other programs on the machine do not.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path

import torch
from fastapi import FastAPI
from torch import nn

from weightledger import DynamicModelManager, DynamicUpdateConfig, TorchEngine
from weightledger.api import router

ROUNDS, SECONDS = 20, 0.2


def model(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)).eval()


@contextlib.contextmanager
def managing(folder: Path, width: int, *, measures: bool) -> Iterator[DynamicModelManager]:
    torch.manual_seed(0)
    config = DynamicUpdateConfig(backup_dir=folder, policy="off")
    manager = DynamicModelManager(TorchEngine(model(width)), "m", config=config)
    if not measures:
        manager.lease = lambda *_, **__: manager.supervision.lease(None)  # type: ignore[method-assign]
    with contextlib.closing(manager):
        yield manager


Work = Callable[[DynamicModelManager], None]
"""Twenty requests to a manager."""


def called(inputs: torch.Tensor) -> Work:
    """By the program that the model is in."""

    def work(manager: DynamicModelManager) -> None:
        with torch.inference_mode():
            for _ in range(20):
                with manager.lease() as live:
                    live.module(inputs)

    return work


def posted(loop: asyncio.AbstractEventLoop) -> Work:
    """As a server has them posted, from the bytes of a body to those of a reply."""
    body = json.dumps({"inputs": [[0.0] * 64]}).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/invocations",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    apps: dict[int, FastAPI] = {}

    async def once(app: FastAPI) -> None:
        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: MutableMapping[str, object]) -> None:
            assert message.get("status", 200) == 200, message

        await app(dict(scope), receive, send)

    async def requests(app: FastAPI) -> None:
        for _ in range(20):
            await once(app)

    def work(manager: DynamicModelManager) -> None:
        if id(manager) not in apps:
            apps[id(manager)] = FastAPI()
            apps[id(manager)].include_router(router(manager))
        loop.run_until_complete(requests(apps[id(manager)]))

    return work


def spent(manager: DynamicModelManager, work: Work) -> float:
    """Processor seconds of one request, the collecting of it included."""
    count, began = 0, time.process_time()
    while time.process_time() - began < SECONDS:
        work(manager)
        count += 20
    manager.collector.tick()
    return (time.process_time() - began) / count


def cost(width: int, work: Work) -> dict[str, float]:
    """Processor time of a request with and without, in microseconds, and how much more it is."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        measured, plain = (
            stack.enter_context(managing(Path(folder) / str(measures), width, measures=measures))
            for measures in (True, False)
        )
        for manager in (measured, plain):
            spent(manager, work)
        times: list[tuple[float, float]] = []
        for number in range(ROUNDS):
            if number % 2:
                times.append((spent(measured, work), spent(plain, work)))
            else:
                without = spent(plain, work)
                times.append((spent(measured, work), without))
    measured_us = 1e6 * statistics.median(one for one, _ in times)
    plain_us = 1e6 * statistics.median(other for _, other in times)
    cost_percent = 100 * statistics.median(one / other - 1 for one, other in times)
    return {"measured_us": measured_us, "plain_us": plain_us, "cost_percent": cost_percent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    file = parser.parse_args().json
    torch.set_num_threads(1)
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        figures = {
            "digits (64-64-10), one image": cost(64, called(torch.zeros(1, 64))),
            "MLP 64-2048-10, 32 rows": cost(2048, called(torch.zeros(32, 64))),
            "digits, through /invocations": cost(64, posted(loop)),
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
