"""A driven server's own figures, read from its Prometheus page and kept with the ledger's.

The page counts since the server's start, so what happened is the difference of two pages. It is
observed at the states that were live between them. Histograms know a value no better than their
buckets do, and so do the quantiles that come of them; counts and sums are exact.
"""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import httpx2
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from weightledger import DynamicModelManager
from weightledger.ledger.http import client
from weightledger.ledger.monitoring.rollups import Rollup, rolled_up
from weightledger.ledger.monitoring.sketches import Sketch

logger = logging.getLogger(__name__)

INTERVAL_S = 10.0
_MOST_BYTES = 16 * 1024 * 1024

# By the names without the server's prefix; seconds become milliseconds. The second name of the
# latency between tokens is the one of older releases.
_HISTOGRAMS = {
    "time_to_first_token_seconds": "time_to_first_token_ms",
    "inter_token_latency_seconds": "inter_token_latency_ms",
    "time_per_output_token_seconds": "inter_token_latency_ms",
    "e2e_request_latency_seconds": "latency_ms",
    "request_queue_time_seconds": "queue_ms",
}
_COUNTERS = {"generation_tokens_total": "tokens_per_second", "request_success_total": "throughput"}
_GAUGES = {"kv_cache_usage_perc": "kv_cache_usage", "gpu_cache_usage_perc": "kv_cache_usage"}


class BadPage(Exception):
    """It is no Prometheus page of an inference server; says what is wrong with it."""


@dataclass(slots=True)
class Histogram:
    """Observations since the server's start: how many, their sum, how many up to each bound."""

    count: float = 0.0
    total: float = 0.0
    buckets: dict[float, float] = field(default_factory=dict)


@dataclass(slots=True)
class ScrapedPage:
    """What a page says, by the ledger's names; those it does not have are absent."""

    histograms: dict[str, Histogram] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)


def read(text: str) -> ScrapedPage:
    """A page, summed up over its engines and models; BadPage when it cannot be."""
    page = ScrapedPage()
    usages: dict[str, list[float]] = {}
    observed: dict[str, Histogram] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.partition(":")[2]
                if not math.isfinite(sample.value):
                    continue
                if name in _COUNTERS:
                    known = page.counters.get(_COUNTERS[name], 0.0)
                    page.counters[_COUNTERS[name]] = known + sample.value
                elif name in _GAUGES:
                    usages.setdefault(name, []).append(sample.value)
                else:
                    _observe(observed, name, sample.labels, sample.value)
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise BadPage(f"the page is no Prometheus page: {error!r:.200}") from error
    # Where a release has a figure under its old name too, it counts once.
    for name, metric in _HISTOGRAMS.items():
        if name in observed:
            page.histograms.setdefault(metric, observed[name])
    for name, metric in _GAUGES.items():
        if name in usages:
            page.gauges.setdefault(metric, sum(usages[name]) / len(usages[name]))
    if not (page.histograms or page.counters or page.gauges):
        raise BadPage(
            "the page has none of the figures that are looked for, such as"
            " vllm:e2e_request_latency_seconds"
        )
    return page


def _observe(
    observed: dict[str, Histogram], name: str, labels: Mapping[str, str], value: float
) -> None:
    """A line of a histogram, if it is of one of ours."""
    base, _, part = name.rpartition("_")
    if base not in _HISTOGRAMS or part not in ("count", "sum", "bucket"):
        return
    one = observed.setdefault(base, Histogram())
    if part == "count":
        one.count += value
    elif part == "sum":
        one.total += value
    else:
        bound = float(labels["le"])
        one.buckets[bound] = one.buckets.get(bound, 0.0) + value


@dataclass(frozen=True, slots=True)
class ScrapeSpan:
    """The time and the states between two pages."""

    start_us: int
    end_us: int
    first_seq: int
    last_seq: int


def between(before: ScrapedPage, after: ScrapedPage, span: ScrapeSpan) -> list[Rollup]:
    """What happened between two pages; nothing of what was counted anew, after a restart."""
    elapsed_s = (span.end_us - span.start_us) / 1e6
    moments = dict(after.gauges)
    for metric, count in after.counters.items():
        gained = count - before.counters.get(metric, math.inf)
        if gained > 0 and elapsed_s > 0:
            moments[metric] = gained / elapsed_s
    told = [_rollup(metric, span, [value]) for metric, value in moments.items()]
    for metric, one in after.histograms.items():
        earlier = before.histograms.get(metric)
        if earlier is not None and one.count > earlier.count:
            told.extend(_difference(metric, earlier, one, span))
    return told


def _rollup(metric: str, span: ScrapeSpan, values: list[float]) -> Rollup:
    one = rolled_up(metric, "server", span.first_seq, span.start_us, span.end_us, values)
    return replace(one, last_seq=span.last_seq)


def _difference(
    metric: str, before: Histogram, after: Histogram, span: ScrapeSpan
) -> Iterator[Rollup]:
    bounds = sorted(after.buckets)
    gained, below, lower = [], 0.0, 0.0
    for bound in bounds:
        up_to = after.buckets[bound] - before.buckets.get(bound, 0.0)
        count = round(up_to - below)
        if count < 0:
            return  # counted anew
        if count:
            gained.append((lower, bound if math.isfinite(bound) else lower, count))
        below, lower = up_to, bound
    count = sum(one for _, _, one in gained)
    if count != round(after.count - before.count) or not count:
        return  # a page that contradicts itself, or was read while it changed
    middles = np.repeat([500 * (low + high) for low, high, _ in gained], [n for _, _, n in gained])
    yield Rollup(
        metric,
        "server",
        span.first_seq,
        span.last_seq,
        span.start_us,
        span.end_us,
        count,
        1000 * (after.total - before.total),
        float(np.square(middles).sum()),
        1000 * gained[0][0],
        1000 * gained[-1][1],
        Sketch.of(middles),
    )


class Scraper:
    """Reads a server's page again and again. `look` reads it once."""

    def __init__(
        self,
        manager: DynamicModelManager,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = INTERVAL_S,
    ) -> None:
        self._collector = manager.collector
        self._log = manager.log
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = client(url, param="engine_url", headers=headers, timeout=timeout_s)
        self._last: tuple[ScrapedPage, int, int] | None = None

    def close(self) -> None:
        self._http.close()

    def look(self) -> None:
        """Read the page and keep what happened since the last one; what is wrong with it is told
        once, in the log and in `collector.health`, until it is right again."""
        seq, now_us = self._log.live.head.state_seq, time.time_ns() // 1000
        try:
            page = read(self._text())
        except (BadPage, httpx2.HTTPError) as error:
            self._last = None  # what happened meanwhile belongs to no span
            if self._collector.server_fault is None:
                logger.error("the engine's figures cannot be read: %s", error)
            self._collector.server_fault = str(error) or repr(error)
            return
        if self._collector.server_fault is not None:
            self._collector.server_fault = None
            logger.warning("the engine's figures can be read again")
        if self._last is not None:
            before, then_us, earlier = self._last
            if now_us > then_us:  # else a clock was set back
                span = ScrapeSpan(then_us, now_us, min(earlier, seq), max(earlier, seq))
                self._collector.add_rollups(between(before, page, span))
        self._last = page, now_us, seq

    def _text(self) -> str:
        with self._http.stream("GET", "/metrics") as reply:
            if reply.status_code != 200:
                raise BadPage(f"{reply.url} answered {reply.status_code}")
            parts, size = [], 0
            for part in reply.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > _MOST_BYTES:
                    raise BadPage(f"{reply.url} is larger than {_MOST_BYTES >> 20} MiB")
        try:
            return b"".join(parts).decode()
        except UnicodeDecodeError as error:
            raise BadPage(f"the page is no text in UTF-8: {error}") from error


@contextlib.contextmanager
def scraping(scraper: Scraper) -> Iterator[None]:
    """While the block runs, the page is read every ten seconds, on a thread of its own."""
    ending = threading.Event()

    def run() -> None:
        while True:
            try:
                scraper.look()
            except Exception:
                logger.exception("the engine's figures are read again in a moment")
            if ending.wait(INTERVAL_S):
                return

    thread = threading.Thread(target=run, name="ledger-scraper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
        scraper.close()
