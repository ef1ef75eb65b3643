"""A live model that learns through rules, and what to teach it; fixtures are in `conftest`."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    TorchEngine,
)
from weightledger.rules import (
    DTESNDynamicIntegration,
)

OUT, IN = 3, 5
Integrate = Callable[..., DTESNDynamicIntegration]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, IN), torch.nn.Tanh(), torch.nn.Linear(IN, OUT))


def manager_in(folder: Path, **more: Any) -> DynamicModelManager:
    config = DynamicUpdateConfig(backup_dir=folder)
    return DynamicModelManager(TorchEngine(network()), "net", config=config, **more)


def run(work: Any) -> Any:
    return asyncio.run(work)


def weight(of: DTESNDynamicIntegration, position: str = "head") -> torch.Tensor:
    return of.dynamic_manager.log.state(position)["2.weight"]


def samples(count: int = 40, seed: int = 1) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(count, IN, generator=drawn)
    target = x @ torch.randn(OUT, IN, generator=drawn).mT
    return {"x": x, "target": target}


def observed(count: int = 40, seed: int = 1) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {
        "x": torch.rand(count, IN, generator=drawn),
        "y": torch.rand(count, OUT, generator=drawn),
    }


def last(of: DTESNDynamicIntegration) -> dict[str, Any]:
    return dict(of.dynamic_manager.log.events(limit=1)[0].body)


def side(of: DTESNDynamicIntegration) -> dict[str, torch.Tensor]:
    return dict(of.dynamic_manager.log.live.auxiliary)


def classes(count: int, seed: int) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    labels = torch.randint(OUT, (count,), generator=drawn)
    noise = 0.3 * torch.randn(count, IN, generator=drawn)
    target = torch.nn.functional.one_hot(labels, OUT).float()
    return {"x": torch.nn.functional.pad(target, (0, IN - OUT)) + noise, "target": target}
