"""The guard of a manager's log: no way around it, and unknown is never good."""

import asyncio
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.planned import Planned
from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    Ledger,
    Plan,
    TorchEngine,
    Write,
)
from weightledger.ledger.writing.update_commands import batch_command

Make = Callable[..., DynamicModelManager]
Score = Callable[[bool], Any]


@pytest.fixture
def managed(tmp_path: Path) -> Iterator[Make]:
    made: list[DynamicModelManager] = []

    def make(evaluator: Any = None, **config: Any) -> DynamicModelManager:
        module = torch.nn.Linear(2, 2)
        torch.nn.init.zeros_(module.bias)
        made.append(
            DynamicModelManager(
                TorchEngine(module),
                "m",
                config=DynamicUpdateConfig(backup_dir=tmp_path, **config),
                evaluator=evaluator,
            )
        )
        return made[-1]

    yield make
    for manager in made:
        manager.close()


def scored(score: Score) -> Callable[[torch.nn.Module], Any]:
    """An evaluator that is told whether it sees the live state (whose bias is 0)."""
    return lambda module: score(not bool(module.bias.any()))


def accuracy(live: float, candidate: float) -> Callable[[torch.nn.Module], Any]:
    return scored(lambda is_live: {"accuracy": live if is_live else candidate})


def bias(value: float) -> IncrementalUpdateRequest:
    return IncrementalUpdateRequest("bias", value, 1.0)


WRITES = {
    "apply": lambda log: log.apply(bias(1.0)),
    "batch": lambda log: log.apply_batch([bias(1.0)]),
    "record": lambda log: log.record({"weight": log.state()["weight"], "bias": torch.ones(2)}),
    "learn": lambda log: log.execute(
        Planned(lambda staged: Plan({"operation": "x"}, {"bias": Write(torch.ones(2))}))
    ),
    "execute": lambda log: log.execute(batch_command([bias(1.0)], log.specs, {})),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_managers_log_has_the_managers_guard(managed: Make, write: Callable[..., Any]) -> None:
    manager = managed(accuracy(0.9, 0.1))
    event = write(manager.log)
    assert event.kind == "update_rejected"
    assert event.body["evidence"]["cause"] == "degraded"
    assert not manager.log.state()["bias"].any()


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_that_nobody_evaluated_says_so(
    managed: Make, tmp_path: Path, write: Callable[..., Any]
) -> None:
    manager = managed(accuracy(0.9, 0.9))
    event = asyncio.run(manager.update(bias(1.0)))
    assert event.body["evidence"] == {"policy": "specification"}
    with Ledger.open(manager.config.url) as ledger:
        log = ledger.model("m")  # beside the manager, past its evaluator
        event = write(log)
        assert event.kind == "updated"
        assert event.body["evidence"] == {"evaluated": False}


def fails(is_live: bool) -> dict[str, float]:
    if is_live:
        raise ValueError("no data")
    return {"accuracy": 0.1}


UNKNOWN: dict[str, tuple[Score, str]] = {
    "raises on the live state": (fails, "failed on the live state: ValueError"),
    "NaN on the live state": (
        lambda live: {"accuracy": math.nan if live else 0.1},
        "no accuracy of the live state that is a number",
    ),
    "infinite on the live state": (
        lambda live: {"accuracy": -math.inf if live else 0.1},
        "no accuracy of the live state that is a number",
    ),
    "no score of the live state": (
        lambda live: {} if live else {"accuracy": 0.1},
        "no accuracy of the live state that is a number",
    ),
    "no score of the candidate": (
        lambda live: {"accuracy": 0.9} if live else {"recall": 1.0},
        "no accuracy of the candidate",
    ),
    "another metric than the one that is watched": (
        lambda live: {"recall": 0.9},
        "gave none of accuracy",
    ),
    "nothing at all": (lambda live: {}, "gave none of accuracy"),
    "no mapping on the live state": (
        lambda live: None if live else {"accuracy": 0.1},
        "failed on the live state: InvalidRequest",
    ),
}


@pytest.mark.parametrize(("score", "why"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_unknown_refuses_the_candidate_and_is_recorded(
    managed: Make, score: Score, why: str
) -> None:
    manager = managed(scored(score))
    result = asyncio.run(manager.apply_incremental_update(bias(1.0)))
    assert result["success"] is False
    assert result["reason"].startswith("Automatic rollback") and why in result["reason"]
    head = manager.log.live.head
    assert head.kind == "update_rejected"
    assert head.body["evidence"] == {"cause": "unknown", "policy": "specification"}
    assert not manager.log.state()["bias"].any()


def test_a_candidate_that_is_not_a_number_is_worse_than_any(managed: Make) -> None:
    manager = managed(accuracy(0.9, math.nan))
    event = asyncio.run(manager.update(bias(1.0)))
    assert event.body["evidence"]["cause"] == "degraded"


def test_without_a_threshold_nothing_is_compared(managed: Make) -> None:
    manager = managed(scored(lambda live: {"accuracy": math.nan}), auto_rollback_threshold=0)
    assert asyncio.run(manager.update(bias(1.0))).kind == "updated"


def test_an_unknown_live_state_can_be_left_by_a_rollback(managed: Make) -> None:
    broken: list[int] = []
    manager = managed(
        lambda module: {"accuracy": math.nan if broken and bool(module.bias.any()) else 0.9}
    )
    asyncio.run(manager.update(bias(1.0)))
    broken.append(1)
    manager._guard._scored = None
    assert asyncio.run(manager.update(bias(1.0))).kind == "update_rejected"
    assert asyncio.run(manager.rollback("seq:0")).kind == "rolled_back"
    assert not manager.log.state()["bias"].any()
