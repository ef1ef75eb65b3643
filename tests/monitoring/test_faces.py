"""Measurements over REST and the command: the same answers, and the same refusals."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from torch import nn

from tests import patient
from tests.api.test_command import inside
from tests.in_process import listening
from weightledger import DynamicModelManager, DynamicUpdateConfig, InvalidRequest, TorchEngine
from weightledger.api.cli.remote import Remote

ROUTE = "/v1/models/metrics"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx2.Client, Path]]:
    folder = tmp_path_factory.mktemp("measured")
    config = DynamicUpdateConfig(backup_dir=folder)
    made = DynamicModelManager(TorchEngine(nn.Linear(2, 2)), "m", config=config)
    with (
        contextlib.closing(made),
        listening(made) as url,
        patient.Client(base_url=url) as http,
    ):
        yield http, folder


@pytest.fixture
def http(served: tuple[httpx2.Client, Path]) -> httpx2.Client:
    return served[0]


def push(http: httpx2.Client, *samples: dict[str, Any]) -> httpx2.Response:
    return http.post(ROUTE, json={"samples": list(samples)})


def read(http: httpx2.Client, **query: Any) -> dict[str, Any]:
    reply = http.get(ROUTE, params=query)
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()
    return told


def test_requests_are_measured(http: httpx2.Client) -> None:
    for _ in range(4):
        assert http.post("/invocations", json={"inputs": [[1.0, 2.0]] * 3}).status_code == 200
    assert http.post("/invocations", json={"inputs": [[1.0]]}).status_code == 400
    told = {one["metric"]: one for one in read(http, by="all", source="engine")["data"]}
    assert told["latency_ms"]["count"] == told["queue_ms"]["count"] == 4
    assert told["items"]["mean"] == 3
    assert (told["failed"]["count"], told["failed"]["max"]) == (5, 1.0)
    assert told["latency_ms"]["min"] <= told["latency_ms"]["p50"] <= told["latency_ms"]["p99"]
    assert told["latency_ms"]["unit"] == "ms"


def test_samples_are_pushed_once_and_read_by_state(http: httpx2.Client) -> None:
    update = {"parameter_name": "bias", "update_data": 1.0}
    assert http.post("/v1/models/incremental_update", json=update).json()["success"]
    at = int(time.time()) - 60 + 0.1234375  # finer than a millisecond
    sent = [
        {"metric": "accuracy", "value": 0.5, "seq": 0, "time": at, "id": "a"},
        {"metric": "accuracy", "value": 1, "seq": 1, "time": at - 5000},  # out of order
        {"metric": "custom.ndcg", "value": -3.0},
    ]
    reply = push(http, *sent).json()
    assert reply["data"] == {"accepted": 3, "duplicates": 0}
    assert push(http, *sent[:2]).json()["data"] == {"accepted": 0, "duplicates": 2}
    request = [{"metric": f"custom.{name}", "value": 1.0, "id": "a"} for name in ("one", "other")]
    assert push(http, *request, *request).json()["data"] == {"accepted": 2, "duplicates": 2}
    told = read(http, metric="accuracy", by="seq")["data"]
    assert {(one["first_seq"], one["mean"], one["source"]) for one in told} == {
        (0, 0.5, "pushed"),
        (1, 1.0, "pushed"),
    }
    assert all(one["stddev"] is None for one in told)
    (own,) = read(http, metric="custom.ndcg")["data"]
    assert (own["first_seq"], own["mean"]) == (1, -3.0)
    assert [one["first_seq"] for one in read(http, metric="accuracy", max_seq=0)["data"]] == [0]
    performance = http.get("/v1/models/status").json()["recent_performance"]
    assert performance[0]["accuracy"] == 1.0


def test_equal_samples_of_one_request_are_as_many_as_there_are(http: httpx2.Client) -> None:
    """Nineteen right answers of twenty: what has neither id nor time is never a duplicate."""
    samples = [{"metric": "custom.right", "value": float(n > 0)} for n in range(20)]
    for _ in range(2):
        assert push(http, *samples).json()["data"] == {"accepted": 20, "duplicates": 0}
    (told,) = read(http, by="all", metric="custom.right")["data"]
    assert (told["count"], told["mean"]) == (40, 0.95)


@pytest.mark.parametrize("unit", [1, 1000])
def test_a_time_of_whole_milliseconds_makes_no_sample_a_duplicate(
    http: httpx2.Client, unit: int
) -> None:
    """Of a hundred requests of one second ninety failed: it was one of each that counted, so that
    nobody saw the failures of one state among those of the other."""
    name, at = f"custom.failed_{unit}", (int(time.time()) - 60) + 1 / unit
    samples = [{"metric": name, "value": float(n < 90), "time": at} for n in range(100)]
    assert push(http, *samples[:50]).json()["data"] == {"accepted": 50, "duplicates": 0}
    for one in samples[50:]:  # each by itself, as a gateway does that forwards requests
        assert push(http, one).json()["data"] == {"accepted": 1, "duplicates": 0}
    (told,) = read(http, by="all", metric=name)["data"]
    assert (told["count"], told["mean"]) == (100, 0.9)


def test_equal_samples_of_one_push_all_count_and_once_if_it_is_sent_again(
    http: httpx2.Client,
) -> None:
    at = int(time.time()) - 60 + 0.1234375
    samples = [{"metric": "custom.batch", "value": float(n > 0), "time": at} for n in range(10)]
    assert push(http, *samples).json()["data"] == {"accepted": 10, "duplicates": 0}
    assert push(http, *samples).json()["data"] == {"accepted": 0, "duplicates": 10}
    assert push(http, *samples, samples[-1]).json()["data"] == {"accepted": 1, "duplicates": 10}
    (told,) = read(http, by="all", metric="custom.batch")["data"]
    assert (told["count"], told["mean"]) == (11, 10 / 11)


def test_pages_follow_each_other(http: httpx2.Client) -> None:
    now = time.time()
    push(http, *({"metric": "custom.page", "value": n, "time": now - 20 * n} for n in range(7)))
    whole = read(http, metric="custom.page")["data"]
    assert [one["mean"] for one in whole] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    first = read(http, metric="custom.page", limit=3)
    assert first["has_more"]
    second = read(http, metric="custom.page", limit=3, after=first["last_id"])
    assert second["has_more"]
    third = read(http, metric="custom.page", limit=3, after=second["last_id"])
    assert not third["has_more"]
    assert first["data"] + second["data"] + third["data"] == whole
    back = read(http, metric="custom.page", limit=3, before=third["first_id"])
    assert (back["data"], back["has_more"]) == (second["data"], True)
    assert http.get(ROUTE, params={"after": "no such"}).status_code == 404


BAD: list[tuple[dict[str, Any], str]] = [
    ({"metric": "acuracy", "value": 0.9}, "samples[1].metric"),
    ({"metric": "custom.Upper", "value": 0.9}, "samples[1].metric"),
    ({"metric": "accuracy", "value": 97.0}, "samples[1].value"),
    ({"metric": "latency_ms", "value": -1.0}, "samples[1].value"),
    ({"metric": "custom.x", "value": 1e200}, "samples[1].value"),
    ({"metric": "accuracy", "value": 0.9, "seq": 10**6}, "samples[1].seq"),
    ({"metric": "accuracy", "value": 0.9, "seq": -1}, "samples[1].seq"),
    ({"metric": "accuracy", "value": 0.9, "time": "yesterday"}, "samples[1].time"),
    ({"metric": "accuracy", "value": 0.9, "time": 1e300}, "samples[1].time"),
    ({"metric": "accuracy", "value": 0.9, "time": 4e9}, "samples[1].time"),
    ({"metric": "accuracy", "value": 0.9, "time": 0}, "samples[1].time"),
    ({"metric": "accuracy", "value": 0.9, "time": "2001-01-01T00:00:00Z"}, "samples[1].time"),
    ({"metric": "accuracy", "value": 0.9, "id": ""}, "samples[1].id"),
    ({"metric": "accuracy", "value": 0.9, "id": "x" * 256}, "samples[1].id"),
    ({"metric": "accuracy", "value": True}, "samples.1.value"),
    ({"metric": "accuracy", "value": "0.9"}, "samples.1.value"),
    ({"metric": "accuracy", "value": None}, "samples.1.value"),
    ({"metric": "accuracy"}, "samples.1.value"),
    ({"metric": "accuracy", "value": 0.9, "model": "m"}, "samples.1.model"),
    ({"metric": "accuracy", "value": 0.9, "seq": 1.0}, "samples.1.seq"),
]


@pytest.mark.parametrize(("sample", "param"), BAD, ids=[str(sample) for sample, _ in BAD])
def test_of_samples_of_which_one_is_wrong_none_is_taken(
    http: httpx2.Client, sample: dict[str, Any], param: str
) -> None:
    good = {"metric": "custom.refused", "value": 1.0}
    reply = push(http, good, sample)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"].startswith(param)
    assert read(http, metric="custom.refused")["data"] == []


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_number_is_refused(http: httpx2.Client, value: str) -> None:
    raw = f'{{"samples": [{{"metric": "custom.refused", "value": {value}}}]}}'
    reply = http.post(ROUTE, content=raw, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert read(http, metric="custom.refused")["data"] == []


def test_a_method_that_is_not_there_is_told_which_are(http: httpx2.Client) -> None:
    reply = http.delete(ROUTE)
    assert (reply.status_code, reply.headers["allow"]) == (405, "GET, HEAD, POST")


def test_none_and_too_many_are_refused(http: httpx2.Client) -> None:
    assert push(http).status_code == 400
    one = {"metric": "custom.refused", "value": 1.0}
    reply = push(http, *[one] * 1001)
    assert reply.status_code == 400
    assert "several pushes" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "query", [{"metric": "nonsense"}, {"by": "day"}, {"source": "me"}, {"limit": 0}, {"since": "x"}]
)
def test_queries_that_cannot_be_are_refused(http: httpx2.Client, query: dict[str, Any]) -> None:
    assert http.get(ROUTE, params=query).status_code == 400


def test_the_command_reads_and_pushes_through_a_server_and_without(
    served: tuple[httpx2.Client, Path], tmp_path: Path
) -> None:
    http, folder = served
    url, where = ["--url", str(http.base_url)], ["--data-dir", str(folder)]
    status, out, err = inside("metrics", "push", "custom.cli=1.5", "--json", *url)
    assert (status, json.loads(out)) == (0, {"accepted": 1, "duplicates": 0}), err
    lines = tmp_path / "samples.jsonl"
    lines.write_text('{"metric": "custom.cli", "value": 2.5, "id": "one"}\n\n')
    for fresh in (1, 0):
        status, out, err = inside(
            "metrics", "push", "-f", str(lines), "--offline", "--json", *where
        )
        assert (status, json.loads(out)["accepted"]) == (0, fresh), err
    for place in (url, where):
        status, out, err = inside("metrics", "--metric", "custom.cli", "--json", *place)
        assert status == 0, err
        (item,) = json.loads(out)
        assert (item["count"], item["mean"]) == (2, 2.0)
    status, out, _ = inside("metrics", "--metric", "custom.cli", *url)
    assert (status, "custom.cli" in out) == (0, True)
    status, out, _ = inside("metrics", "--metric", "custom.cli", "--csv", *url)
    assert out.splitlines()[0].startswith("start,metric,source")


@pytest.mark.parametrize(
    ("words", "status", "problem"),
    [
        (["push"], 2, "NAME=VALUE"),
        (["push", "accuracy"], 2, "NAME=VALUE"),
        (["push", "accuracy=high"], 2, "NAME=VALUE"),
        (["push", "accuracy=nan"], 1, "samples[0].value"),
        (["push", "acuracy=0.5"], 1, "samples[0].metric"),
        (["push", "accuracy=0.5", "latency_ms=1", "--id", "x"], 2, "--id"),
        (["push", "-f", "/no/such/file"], 1, "cannot read"),
        (["--metric", "acuracy"], 2, "acuracy"),
        (["--by", "day"], 2, "--by takes"),
    ],
)
def test_the_command_says_what_is_wrong(
    served: tuple[httpx2.Client, Path], words: list[str], status: int, problem: str
) -> None:
    """In the same words with a server and without."""
    offline = ["--offline"] if words[0] == "push" else []
    for where in ([*offline, "--data-dir", str(served[1])], ["--url", str(served[0].base_url)]):
        got, _, err = inside("metrics", *words, *where)
        assert (got, problem in err) == (status, True), err


def test_a_body_that_is_no_json_is_refused_before_it_is_sent(http: httpx2.Client) -> None:
    with pytest.raises(InvalidRequest, match="cannot be sent"):
        Remote(str(http.base_url), None).push_metrics(
            [{"metric": "accuracy", "value": float("nan")}]
        )
