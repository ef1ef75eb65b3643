"""Models of monitoring's tests: how they serve is in their weights, so that updates can change it.

Time does not pass in them: a request takes as long as the clock of the test says.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    TorchEngine,
)
from weightledger.ledger.events import Event
from weightledger.ledger.monitoring.samples import Inference, Inferences, Sample


class Serving(torch.nn.Module):
    """Slower by `delay` per cent, failing in `fails` per cent; `weight` is what it has learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8))
        self.delay = torch.nn.Parameter(torch.zeros(1))
        self.fails = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight.sum()


class Users:
    """Requests to a manager, told to what listens in batches, as the collecting thread would.

    What a request took is drawn from the state that it leased, by a fixed seed.
    """

    def __init__(self, manager: DynamicModelManager, seed: int = 0) -> None:
        self.manager = manager
        self.rng = np.random.default_rng(seed)
        self.seqs: list[int] = []

    def ask(self, requests: int, *, keys: Iterator[str] | None = None, batch: int = 50) -> None:
        """So many requests, one after the other."""
        for start in range(0, requests, batch):
            told = [
                self._one(None if keys is None else next(keys))
                for _ in range(min(batch, requests - start))
            ]
            for listener in self.manager.collector._listeners:
                listener(Inferences.of(told))

    def tell(self, metric: str, values: list[float], seq: int | None = None) -> None:
        """Values from outside, of what is live unless it is said of what."""
        at = self.manager.log.live.head.state_seq if seq is None else seq
        source = "engine" if metric == "memory_usage_mb" else "pushed"
        for listener in self.manager.collector._sample_listeners:
            listener([Sample(metric, one, 0, at, source) for one in values])

    def _one(self, key: str | None) -> Inference:
        with self.manager.supervision.lease(key) as live:
            module: Any = live.module
            slower = 1 + module.delay.item() / 100
            failed = self.rng.random() < module.fails.item() / 100
            self.seqs.append(live.seq)
            latency_ms = 20 * self.rng.lognormal(0, 0.3) * slower
            unit = None if key is None else hash(key)
            outcome = "failed" if failed else "ok"
            return Inference(live.seq, latency_ms, outcome, items=1, unit=unit)


def manager(folder: Path, **config: Any) -> DynamicModelManager:
    """A manager of a fresh `Serving`, with v0 named."""
    mismatch = config.pop("on_mismatch", "refuse")
    settings = DynamicUpdateConfig(backup_dir=folder, **config)
    engine = TorchEngine(Serving())
    one = DynamicModelManager(engine, "m", config=settings, on_mismatch=mismatch)
    asyncio.run(one.create_initial_version())
    return one


def update(one: DynamicModelManager, parameter: str, value: float) -> Event:
    """Make a parameter this value."""
    size = one.log.specs[parameter].numel
    request = IncrementalUpdateRequest(parameter, [value] * size, update_type="replace")
    return asyncio.run(one.update(request))


def decided(one: DynamicModelManager) -> None:
    """Wait until what was ruled is carried out."""
    one.supervision._acting.soon(lambda: None).result()


def heads(one: DynamicModelManager, most: int = 5) -> list[str]:
    """The newest kinds of the log."""
    return [event.kind for event in one.log.events(limit=most)]
