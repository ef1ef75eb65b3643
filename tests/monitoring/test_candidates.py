"""An evaluator's word on a candidate: paired item by item, in time, and before anybody sees it."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.serving import serving
from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    InvalidRequest,
    TorchEngine,
)
from weightledger.ledger.monitoring.evaluators.held_out import HeldOut

INPUTS = torch.eye(4)[torch.arange(200) % 4]
LABELS = torch.arange(200) % 4


def classifier() -> nn.Module:
    module = nn.Linear(4, 4)
    with torch.no_grad():
        module.weight.copy_(torch.eye(4))
        module.bias.zero_()
    return module


@contextlib.contextmanager
def managing(folder: Path, evaluator: Any, **config: Any) -> Iterator[DynamicModelManager]:
    made = DynamicModelManager(
        TorchEngine(classifier()),
        "m",
        config=DynamicUpdateConfig(backup_dir=folder, **config),
        evaluator=evaluator,
    )
    with contextlib.closing(made):
        yield made


def bias(manager: DynamicModelManager, *values: float) -> Any:
    request = IncrementalUpdateRequest("bias", list(values), 1.0, "replace")
    return asyncio.run(manager.update(request))


class Spoilt(HeldOut):
    """Gets the first `wrong` of the items wrong as soon as the bias is not zero."""

    def __init__(self, wrong: int) -> None:
        super().__init__(INPUTS, LABELS)
        self._wrong = wrong

    def __call__(self, module: nn.Module) -> Any:
        told = super().__call__(module)
        items = told.items["accuracy"].clone()
        if float(module.bias.detach().abs().sum()):  # type: ignore[union-attr, operator]
            items[: self._wrong] = 0
        return type(told)({"accuracy": float(items.mean())}, {"accuracy": items})


def test_what_the_paired_test_says_is_in_every_event(tmp_path: Path) -> None:
    with managing(tmp_path, Spoilt(3)) as manager:
        applied = bias(manager, 0.1, 0, 0, 0)
        assert applied.kind == "updated"
        (pair,) = applied.body["evidence"]["paired"]
        assert (pair["metric"], pair["items"], pair["better"], pair["worse"]) == (
            *("accuracy", 200),
            *(0, 3),
        )
        assert pair["p_worse"] == 1 / 8


@pytest.mark.parametrize(("wrong", "kind"), [(4, "updated"), (10, "update_rejected")])
def test_with_a_level_what_got_worse_by_more_than_chance_is_refused(
    tmp_path: Path, wrong: int, kind: str
) -> None:
    """5 % worse is within the threshold of 10 %, and no chance: p = 2^-10."""
    with managing(tmp_path, Spoilt(wrong), evaluator_alpha=0.01) as manager:
        event = bias(manager, 0.1, 0, 0, 0)
        assert event.kind == kind
        if kind == "update_rejected":
            assert event.body["evidence"]["cause"] == "worse"
            assert "10 got worse and 0 better" in event.body["reason"]
            with manager.lease() as live:
                assert live.module.bias.tolist() == [0, 0, 0, 0]
    with managing(tmp_path / "other", Spoilt(wrong)) as manager:
        assert bias(manager, 0.1, 0, 0, 0).kind == "updated"


def test_metrics_that_only_evaluators_give_are_watched_unasked(tmp_path: Path) -> None:
    def perplexity(module: nn.Module) -> dict[str, float]:
        return {"perplexity": 10.0 + float(module.bias.detach()[0])}  # type: ignore[index, operator]

    with managing(tmp_path, perplexity) as manager:
        assert bias(manager, 0.9, 0, 0, 0).kind == "updated"
        refused = bias(manager, 5.0, 0, 0, 0)
        assert refused.kind == "update_rejected"
        assert refused.body["evidence"]["metric"] == "perplexity"


def test_a_candidate_that_is_not_scored_in_time_is_refused(tmp_path: Path) -> None:
    go_on = threading.Event()

    def hangs(module: nn.Module) -> dict[str, float]:
        if float(module.bias.detach().abs().sum()):  # type: ignore[union-attr, operator]
            go_on.wait()
        return {"accuracy": 1.0}

    with managing(tmp_path, hangs, evaluator_timeout_s=5.0) as manager:
        manager.metrics()  # scores the live state, for which it has as long
        try:
            for why in ("did not answer within 5 s", "at an earlier state"):
                event = bias(manager, 1.0, 0, 0, 0)
                assert event.kind == "update_rejected"
                assert why in event.body["reason"]
                assert event.body["evidence"]["cause"] == "evaluator_failed"
        finally:
            go_on.set()
    for name, value in (("evaluator_timeout_s", 0), ("evaluator_alpha", 1.0)):
        with pytest.raises(InvalidRequest, match=name):
            DynamicUpdateConfig(**{name: value})


FACTORY = """
import torch
from torch import nn

def model():
    module = nn.Linear(4, 4)
    with torch.no_grad():
        module.weight.copy_(torch.eye(4))
        module.bias.zero_()
    return module
"""


def test_a_server_refuses_what_its_evaluators_do_and_nobody_ever_sees_it(tmp_path: Path) -> None:
    (tmp_path / "poisoned.py").write_text(FACTORY)
    data = tmp_path / "held_out.safetensors"
    save_file({"inputs": INPUTS, "labels": LABELS}, data)
    script = tmp_path / "norm.py"
    script.write_text(
        "import json, sys\n"
        "from safetensors.numpy import load_file\n"
        "state = load_file(sys.argv[1])\n"
        "print(json.dumps({'error': 1 + float(abs(state['bias']).sum())}))\n"
    )
    evaluators = f'["held-out:{data}", "command:{sys.executable} {script}"]'
    options = ("--model", "poisoned:model", "--evaluator", evaluators)
    env = {"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"}
    with serving(tmp_path / "data", *options, env=env) as server, server.client() as http:
        asked = {"inputs": INPUTS[:4].tolist()}

        def served() -> tuple[Any, str]:
            reply = http.post("/invocations", json=asked)
            return reply.json()["predictions"], reply.headers["x-weights-digest"]

        before = served()
        seen: list[Any] = []
        done = threading.Event()

        def look() -> None:
            while not done.is_set():
                seen.append(served())

        thread = threading.Thread(target=look)
        thread.start()
        try:
            for values, metric in (([9.0, 0, 0, 0], "accuracy"), ([0.3, 0, 0, 0], "error")):
                body = {
                    "parameter_name": "bias",
                    "update_data": values,
                    "learning_rate": 1.0,
                    "update_type": "replace",
                }
                reply = http.post("/v1/models/incremental_update", json=body).json()
                assert not reply["success"]
                assert f"{metric} went from" in reply["data"]["reason"]
            body["update_data"] = [0.01, 0, 0, 0]
            reply = http.post("/v1/models/incremental_update", json=body).json()
            assert reply["success"], reply
            assert reply["data"]["post_metrics"]["accuracy"] == 1.0
        finally:
            done.set()
            thread.join()
        after = served()
        assert after != before
        assert all(one in (before, after) for one in seen)
        measured = http.get("/v1/models/metrics", params={"source": "evaluator", "by": "seq"})
        assert {one["metric"] for one in measured.json()["data"]} == {"accuracy", "error"}
