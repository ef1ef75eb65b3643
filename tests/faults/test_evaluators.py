"""Evaluators that do what they should not: what is served stays the committed state."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    TorchEngine,
)
from weightledger.ledger.audit.verify import verify

GIVEN = torch.sin(torch.arange(20.0)).reshape(5, 4)
SCORE = {"accuracy": 0.5}


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)
    ).eval()


def runs_in_train_mode(module: Any) -> None:
    module.train()
    module(GIVEN)
    module.eval()


def forgets_eval(module: Any) -> None:
    module.train()
    module(GIVEN)


def writes_in_place(module: Any) -> None:
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.add_(1)


def writes_uncounted(module: Any) -> None:
    module[0].weight.data.add_(1)
    module[3].bias.detach().numpy()[:] = 7
    module[1].running_mean.data.fill_(3)


def loads_a_state(module: Any) -> None:
    module.load_state_dict({name: t + 1 for name, t in module.state_dict().items()})


def takes_an_optimizer_step(module: Any) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    module(GIVEN).sum().backward()
    optimizer.step()


def registers_hooks(module: Any) -> None:
    for part in module.modules():
        part.register_forward_hook(lambda *_: torch.zeros(5, 3))
        part.register_forward_pre_hook(lambda *_: (torch.zeros(5, 4),))


def changes_requires_grad(module: Any) -> None:
    module.requires_grad_(False)


def moves_to_another_dtype(module: Any) -> None:
    module.half()


def gives_parameters_other_data(module: Any) -> None:
    module[0].weight.data = torch.zeros(1, 1)


def replaces_parts(module: Any) -> None:
    module[0] = nn.Linear(4, 6)
    module[3].bias = nn.Parameter(torch.zeros(3))
    del module[1].running_mean


def keeps_things_on_the_module(module: Any) -> None:
    module.seen = module(GIVEN)
    module[0].forward = lambda x: torch.zeros(5, 6)


def prunes(module: Any) -> None:
    prune.random_unstructured(module[0], "weight", amount=0.5)


ACTS = [
    runs_in_train_mode,
    forgets_eval,
    writes_in_place,
    writes_uncounted,
    loads_a_state,
    takes_an_optimizer_step,
    registers_hooks,
    changes_requires_grad,
    moves_to_another_dtype,
    gives_parameters_other_data,
    replaces_parts,
    keeps_things_on_the_module,
    prunes,
]

acting = pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
bare_or_versions = pytest.mark.parametrize("bare", [True, False], ids=["bare", "versions"])


@contextlib.contextmanager
def managing(
    folder: Path, bare: bool, evaluator: Callable[[nn.Module], dict[str, float]]
) -> Iterator[DynamicModelManager]:
    module = model()
    config = DynamicUpdateConfig(backup_dir=folder)
    made = DynamicModelManager(
        module if bare else TorchEngine(module), "judged", config=config, evaluator=evaluator
    )
    try:
        yield made
    finally:
        made.close()


def update(manager: DynamicModelManager, value: float) -> dict[str, Any]:
    request = IncrementalUpdateRequest("3.bias", value)
    return asyncio.run(manager.apply_incremental_update(request))


def assert_committed_state_is_served(manager: DynamicModelManager) -> None:
    """Every bit of what a lease gives is the head's, and the module is as it was handed over."""
    head = manager.log.history.head()
    live, hashed = manager.log.verify_live()
    assert hashed.value == live.state.value == head.state_after
    asyncio.run(manager.catch_up())
    assert manager.fault is None
    expected = model()
    expected.load_state_dict(manager.log.state())
    with manager.lease() as lease, torch.no_grad():
        assert lease.digest == head.state_after
        assert lease.module(GIVEN).equal(expected(GIVEN))
        assert not any(part.training for part in lease.module.modules())
        for (name, one), (other, tensor) in zip(
            lease.module.named_parameters(), expected.named_parameters(), strict=True
        ):
            assert (name, one.dtype, one.requires_grad, one.shape) == (
                other,
                tensor.dtype,
                tensor.requires_grad,
                tensor.shape,
            )
        assert not any(p._forward_hooks or p._forward_pre_hooks for p in lease.module.modules())
        assert vars(lease.module).keys() == vars(expected).keys()
    assert verify(manager.log.history).problem is None


@acting
@bare_or_versions
def test_whatever_an_evaluator_does_to_its_module_is_not_served(
    tmp_path: Path, act: Callable[[nn.Module], None], bare: bool
) -> None:
    def evaluator(module: nn.Module) -> dict[str, float]:
        act(module)
        return SCORE

    with managing(tmp_path, bare, evaluator) as manager:
        manager.metrics()
        assert_committed_state_is_served(manager)
        for number in range(3):
            assert update(manager, number + 1.0)["success"]
            assert_committed_state_is_served(manager)
        asyncio.run(manager.rollback_to_version("seq:1"))
        assert_committed_state_is_served(manager)
        assert update(manager, 9.0)["success"]


@acting
@bare_or_versions
def test_one_that_raises_half_way_refuses_the_update_and_changes_nothing(
    tmp_path: Path, act: Callable[[nn.Module], None], bare: bool
) -> None:
    failing = False

    def evaluator(module: nn.Module) -> dict[str, float]:
        if failing:
            act(module)
            raise RuntimeError("out of data")
        return SCORE

    with managing(tmp_path, bare, evaluator) as manager:
        assert update(manager, 1.0)["success"]
        failing = True
        reply = update(manager, 2.0)
        assert not reply["success"]
        assert "out of data" in reply["reason"]
        assert_committed_state_is_served(manager)
        failing = False
        assert update(manager, 3.0)["success"]
        assert_committed_state_is_served(manager)


@acting
@bare_or_versions
def test_one_that_keeps_its_module_and_writes_later_writes_to_nobody_elses(
    tmp_path: Path, act: Callable[[nn.Module], None], bare: bool
) -> None:
    kept: list[nn.Module] = []

    def evaluator(module: nn.Module) -> dict[str, float]:
        kept.append(module)
        return SCORE

    with managing(tmp_path, bare, evaluator) as manager:
        for number in range(3):
            assert update(manager, number + 1.0)["success"]
            for module in kept:
                act(module)
            kept.clear()
            assert_committed_state_is_served(manager)


@bare_or_versions
def test_it_judges_the_very_bits_of_the_candidate_and_of_the_live_state(
    tmp_path: Path, bare: bool
) -> None:
    seen: list[dict[str, Tensor]] = []

    def evaluator(module: nn.Module) -> dict[str, float]:
        seen.append({name: t.clone() for name, t in module.state_dict().items()})
        writes_in_place(module)
        return SCORE

    with managing(tmp_path, bare, evaluator) as manager:
        before = manager.log.state()
        assert update(manager, 1.0)["success"]
        after = manager.log.state()
    assert len(seen) == 2
    for judged, state in zip(seen, (before, after), strict=True):
        assert all(judged[name].equal(tensor) for name, tensor in state.items())
