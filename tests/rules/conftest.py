"""One thread for small tensors, and a live model that learns through rules."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.rules.bridge import Integrate, manager_in
from weightledger import DynamicModelManager
from weightledger.rules import DTESNDynamicIntegration, DTESNLearningConfig, registry


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of steps on small tensors: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[DynamicModelManager]:
    made = manager_in(tmp_path)
    yield made
    made.close()


@pytest.fixture
def integrate(manager: DynamicModelManager) -> Integrate:
    """Makes an integration: fields of the config, then `selector`, `guards`, `clock`."""

    def make(**fields: Any) -> DTESNDynamicIntegration:
        ours = {k: fields.pop(k) for k in ("selector", "guards", "clock") if k in fields}
        return DTESNDynamicIntegration(
            dynamic_manager=manager, dtesn_config=DTESNLearningConfig(**fields), **ours
        )

    return make


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages, seen by the registry."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    registry._installed.cache_clear()
    yield tmp_path
    registry._installed.cache_clear()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
