"""Streams that are no longer what they were: an alert and an event, and nothing is undone."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.api.test_command import inside
from tests.in_process import listening
from tests.monitoring.models import Users, decided, manager, update
from weightledger import DynamicModelManager
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.monitoring import drift
from weightledger.ledger.monitoring.drift import DETECTORS, MetricStream, detector_of
from weightledger.ledger.monitoring.journal import is_alert
from weightledger.ledger.monitoring.samples import Inference, Inferences


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DynamicModelManager]:
    """Under a policy that acts, with streams of requests and of what is pushed."""
    one = manager(
        tmp_path_factory.mktemp("drift"),
        auto_rollback_metrics=("accuracy", "latency_ms"),
        drift_metrics=("items", "custom.age"),
    )
    yield one
    one.close()


def ask(one: DynamicModelManager, items: list[int]) -> None:
    """Requests of so many rows each, in looks of fifty."""
    seq = one.log.live.head.state_seq
    for start in range(0, len(items), 50):
        told = [Inference(seq, 20.0, items=count) for count in items[start : start + 50]]
        for listener in one.collector._listeners:
            listener(Inferences.of(told))


def test_inputs_that_change_are_an_alert_and_no_reason_to_undo(
    watched: DynamicModelManager, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(1)
    event = update(watched, "weight", 1.0)
    ask(watched, rng.poisson(8, 1000).tolist())
    decided(watched)
    assert watched.log.live.head.seq == event.seq
    with caplog.at_level(logging.WARNING):
        ask(watched, rng.poisson(16, 400).tolist())
        decided(watched)
    head = watched.log.live.head
    assert (head.kind, head.body["verdict"], head.body["of"]) == ("observed", "drift", event.seq)
    assert head.body["evidence"]["metric"] == "items" and "nothing is undone" in head.body["reason"]
    assert head.body["evidence"]["before"] == pytest.approx(8, abs=1)
    assert head.state_seq == event.seq and is_alert(head) and "items drifted" in caplog.text
    ask(watched, rng.poisson(40, 400).tolist() + rng.poisson(2, 400).tolist())
    decided(watched)
    assert watched.log.live.head.seq == head.seq, "said once in a while"


def test_every_face_shows_the_streams(watched: DynamicModelManager) -> None:
    Users(watched).tell("custom.age", [30.0] * 50)
    with listening(watched) as url:
        status, out, _ = inside("metrics", "drift", "--csv", "--url", url)
    assert status == 0
    rows = [line.split(",") for line in out.splitlines()]
    assert [row[:2] for row in rows[1:]] == [["items", "adwin"], ["custom.age", "adwin"]]
    items, age = watched.drift()
    assert items.drifts >= 1 and items.last_at is not None
    assert (age.values, age.usual, age.drifts) == (50, None, 0)


@pytest.mark.parametrize("detector", DETECTORS)
def test_what_stays_as_it_is_is_no_drift_whatever_its_tails(detector: str) -> None:
    make = detector_of(detector)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        stream = MetricStream("custom.x", detector, make)
        values = 1e9 * rng.pareto(1.2, 4000)
        assert stream.take(values) is None, seed
        shift = stream.take(2 * values)
        assert shift is not None and shift.detector == detector


def test_of_many_requests_a_few_are_looked_at(watched: DynamicModelManager) -> None:
    (items, _), seq = watched.drift(), watched.log.live.head.state_seq
    told = Inferences.of([Inference(seq, 1.0, items=3)] * 4990 + [Inference(seq, 1.0)] * 10)
    for listener in watched.collector._listeners:
        listener(told)
    assert watched.drift()[0].values - items.values <= drift.MOST_AT_A_TIME


def test_what_there_is_not_is_refused_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidRequest, match="drift_metrics may be accuracy"):
        manager(tmp_path, drift_metrics=("beauty",))
    with pytest.raises(InvalidRequest, match="drift_detector must be adwin, page-hinkley"):
        manager(tmp_path, drift_metrics=("items",), drift_detector="ouija")
    monkeypatch.setitem(sys.modules, "river", None)
    with pytest.raises(InvalidRequest, match=r"weightledger\[monitoring\]"):
        manager(tmp_path, drift_metrics=("items",))
