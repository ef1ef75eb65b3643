"""Learning over HTTP and on the command line, with a real server, killed and started again."""

import contextlib
import io
import json
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import patient
from tests.serving import Server
from tests.waiting import PATIENCE_S
from weightledger.api import cli
from weightledger.api.server import digits

ENHANCED = "/v1/models/enhanced_update"
CLASSES, HIDDEN = 10, 64


def post(http: httpx2.Client, **sent: Any) -> httpx2.Response:
    headers = sent.pop("headers", {})
    return http.post(ENHANCED, json={"parameter_name": "2.weight", **sent}, headers=headers)


def samples(count: int = 20, seed: int = 1) -> dict[str, list[list[float]]]:
    drawn = np.random.default_rng(seed)
    labels = drawn.integers(CLASSES, size=count)
    return {
        "x": drawn.random((count, HIDDEN)).round(3).tolist(),
        "target": np.eye(CLASSES)[labels].tolist(),
    }


@dataclass
class Ran:
    returncode: int
    stdout: str
    stderr: str


def command(server: Server, *arguments: str) -> Ran:
    """The command, in this process: starting another for each would take most of the time."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setenv("WEIGHTLEDGER_DATA_DIR", str(server.folder))
        patch.setattr(sys, "argv", ["weightledger", *arguments])
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code
    return Ran(int(code or 0), out.getvalue(), err.getvalue())


def test_the_reply_has_the_form_of_every_update(http: httpx2.Client) -> None:
    reply = post(
        http,
        update_data=0.001,
        performance_context={"accuracy_change": 0.9, "latency_change": 0.0},
        metadata={"why": "test"},
    )
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert answer["success"] is True
    assert answer["message"] == "Successfully applied enhanced update to 2.weight"
    data = answer["data"]
    assert {"update_id", "update_count", "pre_metrics", "post_metrics"} <= data.keys()
    assert data["learning_algorithm"] == "hebbian"
    item = http.get(f"/v1/models/updates/{data['update_id']}").json()
    assert item["metadata"] == {"why": "test"}
    assert item["facts"]["rule"]["id"] == "hebbian-delta"
    assert item["facts"]["evidence"]["guards"]["norm"]["delta_norm"] > 0


def test_a_request_chooses_how_the_rule_is_selected(http: httpx2.Client) -> None:
    for selector, kind in (("bandit", "DiscountedUcb"), ("feedback", "FeedbackThresholds")):
        reply = post(http, update_data=0.0001, selector=selector)
        update = http.get(f"/v1/models/updates/{reply.json()['data']['update_id']}").json()
        assert update["facts"]["selector"]["config"]["kind"] == kind
        assert reply.headers["etag"] == f'"{update["state_seq"]}"'


def test_a_refused_step_is_200_and_says_why(http: httpx2.Client) -> None:
    before = http.get("/v1/models/status").json()["total_updates"]
    reply = post(http, update_data=100.0, learning_rate=1.0, rule="stdp-delta")
    assert reply.status_code == 200
    assert reply.json()["success"] is False
    data = reply.json()["data"]
    assert data["success"] is False
    assert data["reason"].startswith("Automatic rollback: norm:")
    assert http.get("/v1/models/status").json()["total_updates"] == before


def test_a_retry_gets_the_first_reply(http: httpx2.Client) -> None:
    key = {"idempotency-key": "enhanced-1"}
    tiny = {"x": [[0.0] * HIDDEN], "target": [[0.0] * CLASSES]}
    first = post(http, activities=tiny, rule="nlms", headers=key).json()
    again = post(http, activities=tiny, rule="nlms", headers=key).json()
    assert again == first
    other = post(http, activities=tiny, rule="lms", headers=key)
    assert other.status_code == 422


def test_a_reward_comes_later(http: httpx2.Client) -> None:
    action = {
        "x": [[0.01] * HIDDEN],
        "mean": [[0.1] * CLASSES],
        "action": [[1.0] + [0.0] * (CLASSES - 1)],
    }
    both = post(http, activities=action, request_id="q1", reward=1.0, rule="reinforce")
    assert (both.status_code, both.json()["error"]["param"]) == (400, "reward")
    waits = post(http, activities=action, request_id="q1", rule="reinforce", stream="shop")
    assert waits.json()["data"]["request_id"] == "q1"
    key = {"idempotency-key": "reward-q1"}
    rewarded = {
        "request_id": "q1",
        "reward": 1.0,
        "performance_context": {"accuracy_change": 0.25},
    }
    reply = http.post(ENHANCED, json=rewarded, headers=key)
    data = reply.json()["data"]
    assert data["learning_algorithm"] == "reinforce"
    facts = http.get(f"/v1/models/updates/{data['update_id']}").json()["facts"]
    assert (facts["stream"], facts["feedback"]) == ("shop", 0.25)
    again = http.post(ENHANCED, json=rewarded, headers=key)
    assert again.json() == reply.json()
    twice = http.post(ENHANCED, json={"request_id": "q1", "reward": 1.0})
    assert (twice.status_code, twice.json()["error"]["param"]) == (404, "request_id")


@pytest.mark.parametrize(
    ("sent", "status", "param"),
    [
        ({}, 400, "update_data"),
        ({"update_data": 1, "activities": {}}, 400, "update_data"),
        ({"update_data": 1, "parameter_name": None}, 400, "parameter_name"),
        ({"update_data": 1, "parameter_name": "nope"}, 404, "parameter_name"),
        ({"update_data": [1, 2, 3]}, 400, "update_data"),
        ({"update_data": "much"}, 400, "update_data"),
        ({"update_data": 1, "learning_rate": 1.5}, 400, "learning_rate"),
        ({"update_data": 1, "rule": "backprop"}, 404, "rule"),
        ({"update_data": 1, "rule": "oja"}, 400, "update_data"),
        ({"update_data": 1, "selector": "mine"}, 400, "selector"),
        ({"update_data": 1, "stream": "a/b"}, 400, "stream"),
        ({"update_data": 1, "performance_context": {"accuracy_change": "up"}}, 400, None),
        ({"update_data": 1, "surprise": 1}, 400, "surprise"),
        ({"activities": {"x": [[1.0]], "target": [[1.0]]}, "rule": "rls"}, 400, "x"),
        ({"activities": {"x": "abc"}, "rule": "hebb"}, 400, "x"),
        ({"activities": {"x": [[1.0]], "y": [[1.0]], "target": [[1.0]]}, "rule": "rls"}, 400, "x"),
        ({"activities": {**samples(), "y": [[1.0]] * 20}, "rule": "rls"}, 400, "y"),
        ({"activities": {**samples(), "target": [0] * 20}, "rule": "rls"}, 400, "target"),
        (
            {"activities": {**samples(), "target": [0] * 20}, "rule": "rls", "gated": True},
            *(400, "target"),
        ),
        ({"activities": samples(), "rule": "rls", "learning_rate": 0.5}, 400, "learning_rate"),
        ({"activities": samples(), "rule": "rls", "rule_config": {"b": 1}}, 400, "b"),
        ({"activities": samples(), "rule": "rls", "batch_size": 0}, 400, "batch_size"),
        ({"activities": samples(), "rule": "rls", "parameter_name": "2.bias"}, 400, None),
        ({"reward": 1.0}, 400, "request_id"),
        ({"reward": 1.0, "request_id": "never"}, 404, "request_id"),
        ({"activities": {}, "request_id": "q9", "rule": "reinforce"}, 400, "x"),
    ],
)
def test_bad_input_changes_nothing(
    http: httpx2.Client, sent: dict[str, Any], status: int, param: str | None
) -> None:
    before = http.get("/v1/models/updates", params={"limit": 1}).json()["first_id"]
    reply = post(http, **sent)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert param is None or error["param"] == param
    assert http.get("/v1/models/updates", params={"limit": 1}).json()["first_id"] == before


def test_nan_in_a_body_is_refused(http: httpx2.Client) -> None:
    body = '{"parameter_name": "2.weight", "update_data": NaN}'
    reply = http.post(ENHANCED, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400


def test_the_servers_evaluator_is_a_rules_shadow_score(server: Server, http: httpx2.Client) -> None:
    """A readout taught wrong answers passes the guards; the score on held-out images refuses it."""
    before = http.get("/v1/models/parameters").json()["data"]
    x, target = hidden(server, 100)
    wrong = {"x": x.tolist(), "target": target.roll(1, 1).tolist()}
    reply = post(http, activities=wrong, rule="rls")
    assert reply.status_code == 200
    data = reply.json()["data"]
    assert (reply.json()["success"], data["reason"][:48]) == (
        False,
        "Automatic rollback due to performance degradatio",
    )
    evidence = http.get(f"/v1/models/updates/{data['update_id']}").json()["facts"]["evidence"]
    assert evidence["cause"] == "degraded" and "guards" in evidence
    assert http.get("/v1/models/parameters").json()["data"] == before


# The command


def hidden(server: Server, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden activities of the served digits, and their labels as one-hot rows."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.data[:count], dtype=torch.float32) / 16
    state = load_file(digits.FILE)
    x = torch.relu(images @ state["0.weight"].mT + state["0.bias"])
    labels = torch.tensor(data.target[:count], dtype=torch.int64)
    return x, torch.nn.functional.one_hot(labels, CLASSES).float()


@pytest.mark.parametrize("suffix", [".npz", ".jsonl", ".safetensors"])
def test_learn_takes_a_stream_from_a_file(server: Server, tmp_path: Path, suffix: str) -> None:
    x, target = hidden(server, 60)
    file = tmp_path / f"stream{suffix}"
    if suffix == ".npz":
        np.savez(file, x=x.numpy(), target=target.numpy())
    elif suffix == ".safetensors":
        save_file({"x": x, "target": target}, file)
    else:
        rows = zip(x.tolist(), target.tolist(), strict=True)
        file.write_text("\n".join(json.dumps({"x": a, "target": t}) for a, t in rows))
    options = ("--rule", "nlms", "--lr", "0.01", "--window", "40", "--batch", "20")
    ran = command(server, "learn", "2.weight", str(file), *options, "--no-gate", "--json")
    assert ran.returncode == 0, ran.stderr
    facts = json.loads(ran.stdout)
    assert (facts["samples"], facts["windows_adopted"]) == (60, 2)


def test_learn_adopts_no_harm(server: Server, tmp_path: Path, http: httpx2.Client) -> None:
    x, target = hidden(server, 50)
    file = tmp_path / "stream.npz"
    np.savez(file, x=x.numpy(), target=target.numpy())
    before = http.get("/v1/models/status").json()["total_updates"]
    ran = command(server, "learn", "2.weight", str(file), "--rule", "hebb", "--lr", "0.0001")
    assert ran.returncode == 1
    assert "samples" in ran.stdout
    assert http.get("/v1/models/status").json()["total_updates"] == before


def test_learn_refuses_files_it_cannot_trust(server: Server, tmp_path: Path) -> None:
    pickled = tmp_path / "stream.npz"
    np.savez(pickled, x=np.array([{"a": 1}], dtype=object))
    uneven = tmp_path / "uneven.npz"
    np.savez(uneven, x=np.ones((3, 2)), y=np.ones((2, 2)))
    for file in (pickled, uneven, tmp_path / "none.npz", tmp_path / "stream.pkl"):
        ran = command(server, "learn", "2.weight", str(file))
        assert ran.returncode == 1
        assert "weightledger: " in ran.stderr and "Traceback" not in ran.stderr


def test_rules_are_listed_and_shown(server: Server) -> None:
    listed = command(server, "rules", "list", "--json")
    found = {item["id"]: item for item in json.loads(listed.stdout)}
    assert found["rls"]["config"] == {"alpha": 1.0, "forgetting": 1.0, "ceiling": 100.0}
    assert command(server, "rules", "list", "-q").stdout.split() == list(found)
    shown = command(server, "rules", "show", "bcm")
    assert "Bienenstock" in shown.stdout
    unknown = command(server, "rules", "show", "backprop")
    assert (unknown.returncode, unknown.stderr[:31]) == (1, "weightledger: there is no rule ")


# Crashes


class Learner(threading.Thread):
    """Learns sample by sample until the server is gone; notes what was acknowledged."""

    def __init__(self, url: str, started: threading.Event) -> None:
        super().__init__()
        self.url = url
        self.begun = started
        self.acknowledged: list[str] = []

    def run(self) -> None:
        with patient.Client(base_url=self.url) as http:
            for seed in range(10_000):
                try:
                    reply = post(http, activities=samples(4, seed), rule="rls", gated=False)
                except httpx2.HTTPError:
                    return
                if reply.json()["success"]:
                    self.acknowledged.append(reply.json()["data"]["update_id"])
                if seed == 15:
                    self.begun.set()


def test_kill_in_the_middle_of_learning(tmp_path: Path) -> None:
    """Weights and the rule's P are what the acknowledged steps made, and learning goes on."""
    options = ("--auto-rollback-threshold", "0")
    server = Server(tmp_path / "data", *options).start()
    begun = threading.Event()
    learner = Learner(server.url, begun)
    try:
        learner.start()
        assert begun.wait(PATIENCE_S)
        server.kill()
        learner.join()
        server.start()
        with server.client() as http:
            kept = http.get("/v1/models/updates", params={"kind": "updated", "limit": 100}).json()
            ids = [item["id"] for item in kept["data"]]
            assert set(learner.acknowledged) <= set(ids)
            assert len(ids) <= len(learner.acknowledged) + 1
            last = kept["data"][0]["facts"]["state"]["out"]
            reply = post(http, activities=samples(4, 99), rule="rls")
            assert reply.json()["success"] is True, reply.text
            update_id = reply.json()["data"]["update_id"]
            item = http.get(f"/v1/models/updates/{update_id}").json()
            assert item["facts"]["state"]["in"] == last
        verified = command(server, "verify", "--live", "--rules", "--json")
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert json.loads(verified.stdout)["rules_without_activities"] == len(ids) + 1
    finally:
        server.stop()
