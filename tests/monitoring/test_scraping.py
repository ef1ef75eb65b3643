"""A driven server's Prometheus page: what is made of it, and what is said of one that is none."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    TorchEngine,
)
from weightledger.api.server.scraping import BadPage, Scraper, read
from weightledger.ledger.monitoring.rollups import Where

LABELS = ("model_name", "engine")


class Vllm:
    """The metrics of a vLLM server, by its names, as prometheus_client writes them."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.latency = Histogram(
            "vllm:e2e_request_latency_seconds", "x", LABELS, registry=registry, buckets=(0.5, 1, 2)
        )
        self.first = Histogram(
            "vllm:time_to_first_token_seconds", "x", LABELS, registry=registry, buckets=(0.1, 1)
        )
        self.between = Histogram(
            "vllm:inter_token_latency_seconds", "x", LABELS, registry=registry, buckets=(0.01, 0.1)
        )
        self.tokens = Counter("vllm:generation_tokens", "x", LABELS, registry=registry)
        self.usage = Gauge("vllm:kv_cache_usage_perc", "x", LABELS, registry=registry)
        for engine in ("0", "1"):
            for one in (self.latency, self.first, self.between, self.tokens, self.usage):
                one.labels("m", engine)

    def serve(self, latency_s: float, engine: str = "0") -> None:
        self.latency.labels("m", engine).observe(latency_s)
        self.tokens.labels("m", engine).inc(10)

    def page(self) -> bytes:
        return generate_latest(self.registry)


class Served:
    """What the page's server answers."""

    def __init__(self) -> None:
        self.status, self.body = 200, b""
        self.url = ""


@pytest.fixture
def served() -> Iterator[Served]:
    answer = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer.status)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    answer.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield answer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[DynamicModelManager]:
    config = DynamicUpdateConfig(backup_dir=tmp_path)
    made = DynamicModelManager(TorchEngine(torch.nn.Linear(2, 2)), "m", config=config)
    with contextlib.closing(made):
        yield made


def known(manager: DynamicModelManager, metric: str) -> Any:
    return manager.collector.summary(metric, Where(sources=["server"]))


def test_what_happened_between_two_pages_is_kept(
    manager: DynamicModelManager, served: Served
) -> None:
    vllm = Vllm()
    vllm.serve(1.5)  # before anybody looked
    scraper = Scraper(manager, served.url)
    with contextlib.closing(scraper):
        served.body = vllm.page()
        scraper.look()
        assert known(manager, "latency_ms") is None
        for latency_s, engine in ((0.2, "0"), (0.3, "1"), (0.7, "0"), (5.0, "0")):
            vllm.serve(latency_s, engine)
        vllm.usage.labels("m", "0").set(0.5)
        served.body = vllm.page()
        scraper.look()
        latency = known(manager, "latency_ms")
        assert (latency.count, latency.total) == (4, pytest.approx(6200))
        assert (latency.least, latency.most) == (0, 2000)  # as far as the buckets say
        assert latency.quantile(0.3) == pytest.approx(250, rel=0.011)
        assert known(manager, "tokens_per_second").mean > 0
        assert known(manager, "kv_cache_usage").most == 0.25  # the mean of two engines
        assert known(manager, "time_to_first_token_ms") is None  # nothing new, and no zero
        vllm.first.labels("m", "0").observe(0.05)
        request = IncrementalUpdateRequest("bias", 1.0)
        asyncio.run(manager.apply_incremental_update(request))
        served.body = vllm.page()
        scraper.look()
        first = known(manager, "time_to_first_token_ms")
        assert (first.count, first.first_seq, first.last_seq) == (1, 0, 1)


def test_after_a_restart_it_begins_anew(manager: DynamicModelManager, served: Served) -> None:
    scraper, vllm = Scraper(manager, served.url), Vllm()
    with contextlib.closing(scraper):
        for count in (5, 1, 2):  # the second page is of another process
            vllm = Vllm()
            for _ in range(count):
                vllm.serve(0.2)
            served.body = vllm.page()
            scraper.look()
        assert known(manager, "latency_ms").count == 1


def test_a_clock_that_is_set_back_leaves_that_span_out(
    manager: DynamicModelManager, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm = Vllm()
    now = time.time_ns()
    with contextlib.closing(Scraper(manager, served.url)) as scraper:
        for seconds in (0, -3600, -3590):
            vllm.serve(0.2)
            served.body = vllm.page()
            monkeypatch.setattr(time, "time_ns", lambda at=seconds: now + at * 10**9)
            scraper.look()
        assert known(manager, "latency_ms").count == 1
        assert known(manager, "tokens_per_second").least >= 0


BAD = {
    "gone": (404, b"no", "answered 404"),
    "html": (200, b"<html><body>Sign in</body></html>", "no Prometheus page"),
    "another's": (200, b"python_info 1.0\n", "none of the figures"),
    "empty": (200, b"", "none of the figures"),
    "no text": (200, b"\xff\xfe\x00", "UTF-8"),
    "cut off": (200, b'vllm:generation_tokens_total{model_name="m', "no Prometheus page"),
    "a word for a number": (200, b"vllm:generation_tokens_total many\n", "no Prometheus page"),
}


@pytest.mark.parametrize(("status", "body", "problem"), BAD.values(), ids=BAD)
def test_a_page_that_is_none_is_told_once_and_leaves_nothing(
    manager: DynamicModelManager,
    served: Served,
    caplog: pytest.LogCaptureFixture,
    status: int,
    body: bytes,
    problem: str,
) -> None:
    vllm = Vllm()
    with contextlib.closing(Scraper(manager, served.url)) as scraper:
        served.body = vllm.page()
        scraper.look()
        good, served.status, served.body = served.body, status, body
        for _ in range(3):
            scraper.look()
        assert problem in (manager.collector.health.server_fault or "")
        assert caplog.text.count("cannot be read") == 1
        served.status, served.body = 200, good
        scraper.look()
        assert manager.collector.health.server_fault is None
        assert "can be read again" in caplog.text
        assert manager.collector.rollups(Where(sources=["server"], metrics=["latency_ms"])) == []


def test_a_server_that_is_gone_is_told(manager: DynamicModelManager, served: Served) -> None:
    with contextlib.closing(Scraper(manager, "http://127.0.0.1:9")) as scraper:
        scraper.look()
        assert manager.collector.health.server_fault


def test_a_figure_that_has_its_old_name_too_counts_once() -> None:
    lines = [
        f"vllm:{name}_seconds_{part} 2.0\n"
        for name in ("inter_token_latency", "time_per_output_token")
        for part in ("count", "sum")
    ]
    page = read("".join(lines) + "vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.5\n")
    assert (page.histograms["inter_token_latency_ms"].count, page.gauges) == (
        2.0,
        {"kv_cache_usage": 0.5},
    )


def test_values_that_are_no_numbers_are_left_out() -> None:
    page = read("vllm:kv_cache_usage_perc NaN\nvllm:generation_tokens_total 5\n")
    assert (page.gauges, page.counters) == ({}, {"tokens_per_second": 5.0})
    with pytest.raises(BadPage):
        read("vllm:kv_cache_usage_perc NaN\n")
