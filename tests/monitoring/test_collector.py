"""What is measured gets to the database, by seq and time, and nobody waits for it."""

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.waiting import until
from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    InvalidRequest,
    Ledger,
    TorchEngine,
)
from weightledger.ledger.errors import StorageError
from weightledger.ledger.monitoring import intake, outbox, spans
from weightledger.ledger.monitoring.collector import Collector
from weightledger.ledger.monitoring.condensing import MOST_RANGES, SECOND_US, SPAN_US, WIDER
from weightledger.ledger.monitoring.rollups import Where, rolled_up
from weightledger.ledger.monitoring.samples import Inferences, Measuring, Sample
from weightledger.ledger.monitoring.stored import StoredMetrics

NOW = 1_800_000_000 * SECOND_US


@pytest.fixture
def stored(database_url: str) -> Iterator[StoredMetrics]:
    with Ledger.open(database_url) as ledger:
        log = ledger.model("m", base={"w": torch.zeros(3)})
        yield StoredMetrics(log.history.store.metrics)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[DynamicModelManager]:
    config = DynamicUpdateConfig(backup_dir=tmp_path)
    made = DynamicModelManager(TorchEngine(nn.Linear(2, 2)), "m", config=config)
    with contextlib.closing(made):
        yield made


def collected(stored: StoredMetrics) -> Collector:
    """One whose threads do not run: a test looks when it wants to."""
    made = Collector()
    made.store_in(stored, 1e6)
    made._stop.set()
    return made


def infer(manager: DynamicModelManager, measuring: Measuring | None = None) -> int:
    with manager.lease(measuring=measuring) as live:
        live.module(torch.ones(1, 2))
        return live.seq


def update(manager: DynamicModelManager) -> None:
    asyncio.run(manager.apply_incremental_update(IncrementalUpdateRequest("bias", 1.0)))


def test_every_inference_is_counted_at_the_state_it_ran_on(manager: DynamicModelManager) -> None:
    for count in (3, 5):
        for _ in range(count):
            seq = infer(manager, Measuring(arrived=time.perf_counter(), items=2))
        told = manager.collector.summary("latency_ms", Where(min_seq=seq, max_seq=seq))
        assert told is not None
        assert (told.count, told.first_seq, told.last_seq) == (count, seq, seq)
        assert 0 < told.least <= told.mean <= told.most
        update(manager)
    rollups = manager.collector.rollups(Where(metrics=["items", "queue_ms", "failed"]))
    assert sum(one.count for one in rollups if one.metric == "items") == 8
    assert sum(one.total for one in rollups if one.metric == "items") == 16
    assert sum(one.count for one in rollups if one.metric == "queue_ms") == 8
    assert sum(one.total for one in rollups if one.metric == "failed") == 0


def test_what_was_measured_is_read_by_the_next_process(tmp_path: Path) -> None:
    config = DynamicUpdateConfig(backup_dir=tmp_path)
    module = nn.Linear(2, 2)
    for count in (3, 6):
        manager = DynamicModelManager(TorchEngine(module), "m", config=config)
        with contextlib.closing(manager):
            for _ in range(3):
                infer(manager)
        with Ledger.open(config.url) as ledger:
            stored = StoredMetrics(ledger.history("m").store.metrics)
            told = stored.summary("latency_ms", Where())
        assert told is not None
        assert told.count == count


def test_a_model_that_raises_or_gives_nan_is_counted_as_failed(
    manager: DynamicModelManager,
) -> None:
    with pytest.raises(RuntimeError), manager.lease() as live:
        live.module(torch.ones(1, 3))
    with pytest.raises(InvalidRequest), manager.lease():
        raise InvalidRequest("the caller's own fault")
    with pytest.raises(KeyboardInterrupt), manager.lease():
        raise KeyboardInterrupt
    with manager.lease(measuring=Measuring(counts=False)):
        pass
    with manager.lease(measuring=Measuring(outcome="not_finite")):
        pass
    infer(manager)
    failed = manager.collector.summary("failed", Where())
    assert failed is not None
    assert (failed.count, failed.total) == (3, 2.0)
    latency = manager.collector.summary("latency_ms", Where())
    assert latency is not None
    assert latency.count == 1  # how soon it fails is not how fast it is


def test_current_metrics_are_those_of_the_live_state(manager: DynamicModelManager) -> None:
    assert not {"latency_ms", "throughput"} & manager.metrics().keys()
    infer(manager)
    told = manager.metrics()
    assert told["latency_ms"] > 0
    assert told["throughput"] > 0
    update(manager)
    assert not {"latency_ms", "throughput"} & manager.metrics().keys()


def test_listeners_are_told_every_inference_once_and_in_order(
    manager: DynamicModelManager,
) -> None:
    told: list[Inferences] = []

    def breaks(_: Any) -> None:
        raise ValueError("a listener's own fault")

    manager.collector.subscribe(breaks)
    manager.collector.subscribe(told.append)
    for number in range(20):
        infer(manager, Measuring(items=number))
    until(lambda: sum(map(len, told)) >= 20, "listeners were not told")
    assert [items for batch in told for items in batch.items] == list(range(20))


def test_scores_of_an_update_are_samples_at_its_seq(tmp_path: Path) -> None:
    config = DynamicUpdateConfig(backup_dir=tmp_path)
    made = DynamicModelManager(
        TorchEngine(nn.Linear(2, 2)), "m", config=config, evaluator=lambda _: {"accuracy": 0.75}
    )
    with contextlib.closing(made):
        update(made)
        told = made.collector.summary("accuracy", Where())
        assert told is not None
        assert (told.mean, told.source, told.first_seq) == (0.75, "evaluator", 1)


def test_states_next_to_each_other_share_rows_where_there_are_too_many(
    stored: StoredMetrics,
) -> None:
    collector = collected(stored)
    for seq in range(1000):
        for _ in range(3):
            collector.intake.record(seq, float(seq + 1))
    collector.close()
    latency = stored.rollups(Where(metrics=["latency_ms"]))
    spans = {one.start_us for one in latency}
    assert len(latency) <= MOST_RANGES * len(spans)
    assert sum(one.count for one in latency) == 3000
    assert sum(one.total for one in latency) == 3 * sum(range(1, 1001))
    for one in latency:
        assert (one.least, one.most) == (one.first_seq + 1, one.last_seq + 1)
    edge = latency[0].last_seq
    assert stored.rollups(Where(metrics=["latency_ms"], max_seq=edge)) != []


def test_a_flood_within_one_span_is_summed_up_as_it_comes(
    stored: StoredMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "MOST_VALUES", 100)
    collector = collected(stored)
    values = np.random.default_rng(1).lognormal(0, 1, 950)
    collector.add([Sample("custom.x", value, NOW, 4, "pushed") for value in values])
    told = collector.summary("custom.x", Where())
    assert told is not None
    assert told.count == 950
    assert told.total == pytest.approx(values.sum())
    exact = np.quantile(values, 0.9, method="lower")
    assert told.quantile(0.9) == pytest.approx(exact, rel=0.0101)


class Away:
    """A database that is away for as long as `away` says."""

    def __init__(self, stored: StoredMetrics) -> None:
        self._stored = stored
        self.away = True

    def write(self, rollups: Any) -> None:
        if self.away:
            raise StorageError("the database does not answer")
        self._stored.write(rollups)

    def rollups(self, where: Where) -> Any:
        return self._stored.rollups(where)


def test_what_a_lost_database_misses_is_kept_within_bounds_and_told(
    stored: StoredMetrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "MOST_ROLLUPS", 5)
    collector = collected(stored)
    away: Any = Away(stored)
    collector._outbox.stored = away
    for span in range(8):
        collector.add([Sample("custom.x", 1.0, NOW + span * SPAN_US, 4, "pushed")])
        with caplog.at_level(logging.WARNING):
            collector.flush()
    assert (collector.health.waiting, collector.health.lost) == (5, 3)
    assert "does not answer" in (collector.health.fault or "")
    assert "3 values were lost" in caplog.text
    told = collector.summary("custom.x", Where())
    assert told is not None
    assert told.count == 5
    away.away = False
    collector.flush()
    assert (collector.health.waiting, collector.health.fault) == (0, None)
    assert len(stored.rollups(Where())) == 5
    assert "written again" in caplog.text


def test_more_inferences_than_can_wait_are_counted(
    stored: StoredMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MOST_ARRIVED", 10)
    collector = collected(stored)
    for _ in range(15):
        collector.intake.record(0, 1.0)
    assert collector.health.lost == 5
    collector.close()
    told = stored.summary("latency_ms", Where())
    assert told is not None
    assert told.count == 10


def test_rows_of_many_threads_arrive_whole_while_they_are_taken_out() -> None:
    """No lock is taken on either side: each row is one append, and taken out by one slice."""
    rows = intake.Intake(lambda: None)
    taken: list[Inferences] = []

    def asked(number: int) -> None:
        for count in range(3000):
            if count % 2:
                rows.answered(number, float(count))
            else:
                rows.record(number, float(count), "failed", 0.5, number, number)

    threads = [threading.Thread(target=asked, args=(number,)) for number in range(6)]
    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            taken += [batch] if (batch := rows.take()) is not None else []
    finally:
        sys.setswitchinterval(switching)
    taken += [batch] if (batch := rows.take()) is not None else []
    by_thread: dict[int, list[float]] = {number: [] for number in range(6)}
    for batch in taken:
        for seq, part in batch.by_seq():
            by_thread[seq] += part.latency_ms.tolist()
            failed = part.where(~part.ok)
            assert (failed.items == seq).all() and (failed.latency_ms % 2 == 0).all()
    assert list(by_thread.values()) == [[float(n) for n in range(3000)]] * 6 and not rows.lost


def test_a_clock_that_is_set_back_keeps_nothing_from_the_database(stored: StoredMetrics) -> None:
    collector = collected(stored)
    future = time.time_ns() // 1000 + 3600 * SECOND_US
    collector.add([Sample("custom.x", 1.0, future, 4, "pushed")])
    collector.flush()
    assert len(stored.rollups(Where())) == 1


def test_memory_and_throughput_are_measured_while_there_is_traffic(stored: StoredMetrics) -> None:
    collector = collected(stored)
    collector.gauge(1.0)
    assert collector.rollups(Where()) == []
    for seq in (3, 3, 3):
        collector.intake.record(seq, 1.0)
    collector.tick()
    collector.gauge(0.5)
    throughput = collector.summary("throughput", Where())
    assert throughput is not None
    assert (throughput.mean, throughput.first_seq) == (6.0, 3)
    memory = collector.summary("memory_usage_mb", Where())
    assert memory is not None
    assert memory.mean > 10
    collector.intake.record(3, 1.0)
    collector.intake.record(4, 1.0)  # which of the two gave how many in that second is not known
    collector.tick()
    collector.gauge(0.5)
    again = collector.summary("throughput", Where())
    assert again is not None
    assert again.count == 1


def test_pushed_samples_count_once(stored: StoredMetrics) -> None:
    """Sent again, that is: two that are equal in one push are two."""
    sample = Sample("accuracy", 0.9, NOW, 0, "pushed")
    other = Sample("accuracy", 0.8, NOW + 1, 0, "pushed")
    assert stored.push([(sample, None), (sample, None), (other, "a")]) == [True, True, True]
    assert stored.push([(sample, None), (sample, None), (sample, "b")]) == [False, False, True]
    assert stored.push([(other, "a"), (other, "a")]) == [False, False]
    told = stored.summary("accuracy", Where())
    assert told is not None
    assert (told.count, told.total) == (4, pytest.approx(3.5))


def test_what_two_push_at_once_counts_once(database_url: str) -> None:
    with Ledger.open(database_url) as one, Ledger.open(database_url) as other:
        one.model("m", base={"w": torch.zeros(3)})
        samples = [(Sample("accuracy", n / 100, NOW + n, 0, "pushed"), None) for n in range(100)]
        both = [StoredMetrics(ledger.history("m").store.metrics) for ledger in (one, other)]
        fresh: list[bool] = []
        threads = [
            threading.Thread(target=lambda stored=stored: fresh.extend(stored.push(samples)))
            for stored in both
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told = both[0].summary("accuracy", Where())
        assert told is not None
        assert (told.count, sum(fresh), len(fresh)) == (100, 100, 200)


def test_old_spans_get_wider_and_lose_no_value(stored: StoredMetrics) -> None:
    values = np.random.default_rng(2).lognormal(2, 0.5, 360)
    stored.write(
        rolled_up("latency_ms", "engine", n // 90, NOW + n * SPAN_US, NOW + (n + 1) * SPAN_US, [v])
        for n, v in enumerate(values)
    )
    now, rows = NOW + 360 * SPAN_US, [360]
    for width_us, age_us in WIDER:
        later = now + age_us + width_us
        stored.tidy(later, 10**15)
        assert stored.tidy(later, 10**15) == 0  # there is nothing left to do
        rollups = stored.rollups(Where())
        rows.append(len(rollups))
        assert {one.end_us - one.start_us for one in rollups} == {width_us}
        assert sum(one.count for one in rollups) == 360
        assert {one.first_seq for one in rollups} == {0, 1, 2, 3}
        told = stored.summary("latency_ms", Where())
        assert told is not None
        assert told.total == pytest.approx(values.sum())
    assert rows[0] > 5 * rows[1] > 5 * rows[2]


def test_what_is_older_than_the_retention_is_dropped(stored: StoredMetrics) -> None:
    for days in range(4):
        at_us = NOW + days * 86_400 * SECOND_US
        stored.push([(Sample("accuracy", 0.9, at_us, 0, "pushed"), "same id")] * 1)
        stored.write([rolled_up("latency_ms", "engine", 0, at_us, at_us + SPAN_US, [1.0])])
    stored.tidy(NOW + 3 * 86_400 * SECOND_US + SPAN_US, int(1.5 * 86_400) * SECOND_US)
    latency = stored.rollups(Where(metrics=["latency_ms"]))
    assert [one.start_us - NOW for one in latency] == [
        2 * 86_400 * SECOND_US,
        3 * 86_400 * SECOND_US,
    ]
    # The id is forgotten with its time, and a sample that old is not taken any more.
    assert stored.push([(Sample("accuracy", 0.9, NOW, 0, "pushed"), "same id")]) == [True]


def test_two_processes_may_add_to_the_same_span_and_tidy_it(database_url: str) -> None:
    with Ledger.open(database_url) as one, Ledger.open(database_url) as other:
        one.model("m", base={"w": torch.zeros(3)})
        both = [StoredMetrics(ledger.history("m").store.metrics) for ledger in (one, other)]
        for stored in both:
            stored.write([rolled_up("latency_ms", "engine", 0, NOW, NOW + SPAN_US, [1.0, 2.0])])
        later = NOW + 24 * 3600 * SECOND_US
        threads = [threading.Thread(target=stored.tidy, args=(later, 10**15)) for stored in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told = both[0].summary("latency_ms", Where())
        assert told is not None
        assert told.count == 4
        assert len(both[0].rollups(Where())) == 1


def test_nothing_is_written_without_retention(tmp_path: Path) -> None:
    config = DynamicUpdateConfig(backup_dir=tmp_path, metrics_retention_days=0)
    made = DynamicModelManager(TorchEngine(nn.Linear(2, 2)), "m", config=config)
    infer(made)
    assert made.collector.summary("latency_ms", Where()) is not None
    made.close()
    with Ledger.open(config.url) as ledger:
        assert StoredMetrics(ledger.history("m").store.metrics).rollups(Where()) == []
    with pytest.raises(InvalidRequest, match="metrics_retention_days"):
        DynamicUpdateConfig(metrics_retention_days=-1)
