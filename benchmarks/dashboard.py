"""The dashboard over a million events, on both databases, in a real Chromium.

    python -m benchmarks.dashboard [--events N] [--rounds N] [--folder FOLDER] [--only BACKEND]
        [--pictures FOLDER]

How long the server takes for each page and each filter, when it is painted, how soon a committed
event is on the screen, what fifty open pages cost writers, and whether ten thousand rows scroll.
With `--folder` the logs are kept there, and taken up again if they are there already. With
`--pictures` it makes a picture of each page of a small history instead, for the documentation.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import httpx2
import psutil
import torch
from selenium import webdriver

from benchmarks import dashboard_pictures, replayable_log
from benchmarks.audit import databases, warm
from benchmarks.chromium import chromium, sized
from benchmarks.measure import Report
from tests.serving import Server, serving
from tests.waiting import until
from weightledger.ledger.store.sql_store import SqlStore

PAGES = {
    "now": "/",
    "timeline": "/ui/timeline",
    "event": "/ui/events/seq:{middle}",
    "compare": "/ui/compare?from=seq:{middle}",
    "parameters": "/ui/parameters",
    "parameter": "/ui/parameters/a",
    "versions": "/ui/versions",
    "rollback": "/ui/rollback?to=seq:{middle}",
    "metrics": "/ui/metrics",
    "trials": "/ui/trials",
    "learning": "/ui/learning",
    "audit": "/ui/audit",
    "keys": "/ui/keys",
}
FILTERS = (
    *("actor=cy", "actor=anna&kind=updated", "text=incident", "parameter=b&actor=bo"),
    *("kind=update_rejected", "outcome=rejected&actor=tuner", "min_norm=1000", "metadata.run=7"),
    *("since={since}", "text=nightly&parameter=a", "kind=rolled_back"),
)
PAGE_MS, FILTER_MS, PAINT_MS, LIVE_MS, SHARE, FRAME_MS = 300, 200, 1000, 500, 0.95, 1000 / 60
PAGES_OPEN = 50
ROWS = 10_000


class Tiny(torch.nn.Module):
    """The model of `replayable_log`."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in replayable_log.base().items():
            self.register_parameter(name, torch.nn.Parameter(value))


def model() -> torch.nn.Module:
    """What the server is to serve."""
    return Tiny()


def pages(report: Report, server: Server, count: int, rounds: int) -> None:
    """Add what the server takes for each page and for each filter of the timeline."""
    middle, since = count // 2, time.strftime("%Y-%m-%d", time.gmtime(time.time() - 9 * 86_400))
    addresses = {name: path.format(middle=middle) for name, path in PAGES.items()}
    filters = [f"/ui/timeline?{query.format(since=since)}" for query in FILTERS]
    with server.client() as http:
        of: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, path in addresses.items():
                of.setdefault(name, []).append(_ms(lambda path=path: _got(http, path)))
        for name, taken in of.items():
            _add(report, f"{name}: the server's answer", taken, PAGE_MS)
        _add(report, "any page", [one for taken in of.values() for one in taken], PAGE_MS)
        taken = [_ms(lambda path=path: _got(http, path)) for _ in range(rounds) for path in filters]
        _add(report, "the timeline under a filter", taken, FILTER_MS)


def painted(report: Report, browser: webdriver.Chrome, server: Server, count: int) -> None:
    """Add when Chromium has painted each page, counted from when it was asked for."""
    of = {}
    for name, path in PAGES.items():
        taken = []
        for _ in range(3):
            browser.get(server.url + path.format(middle=count // 2))
            paint = until(lambda: browser.execute_script(_PAINT), "the page is painted")
            taken.append(float(paint))
        of[name] = statistics.median(taken)
    slowest = max(of, key=lambda name: of[name])
    goal, ok = f"≤ {PAINT_MS} ms, the slowest: {slowest}", of[slowest] <= PAINT_MS
    report.add("painted", of[slowest], "ms", goal=goal, ok=ok)


_PAINT = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def live(report: Report, browser: webdriver.Chrome, server: Server, rounds: int) -> None:
    """Add how long after its commit an event is on the screen."""
    browser.get(server.url + "/ui/timeline")
    browser.execute_script(_WATCH)
    until(lambda: browser.execute_script("return document.querySelector('#connection.on')"))
    taken = []
    with server.client() as http:
        for number in range(rounds):
            _update(http, number)
            item = http.get("/v1/models/updates?limit=1").json()["data"][0]
            shown = until(lambda seq=item["seq"]: browser.execute_script(_SHOWN, seq))
            committed = 1000 * datetime.fromisoformat(item["recorded_at"]).timestamp()
            taken.append(float(shown) - committed)
            time.sleep(0.3)
    _add(report, "an event on the screen after it was recorded", taken, LIVE_MS)


_WATCH = """
window.shown = {};
new MutationObserver(() => requestAnimationFrame(() => {
  const now = Date.now();
  const rows = document.querySelectorAll("#events tr[data-seq]");
  for (const row of rows) shown[row.dataset.seq] ??= now;
})).observe(document.getElementById("events"), { childList: true, subtree: true });
"""
_SHOWN = "return shown[arguments[0]]"


def open_pages(report: Report, server: Server, rounds: int, seconds: float = 4.0) -> None:
    """Add what fifty open pages cost a writer, in turns with none."""
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    rates: dict[bool, list[float]] = {True: [], False: []}
    costs: dict[bool, list[float]] = {True: [], False: []}
    with server.client() as http:
        for _ in range(rounds):
            for watched in (False, True):
                with watching(server.url) if watched else contextlib.nullcontext():
                    rate, cost = _writing(http, process, seconds)
                    rates[watched].append(rate)
                    costs[watched].append(cost)
    share = statistics.median(rates[True]) / statistics.median(rates[False])
    report.add(
        f"updates while {PAGES_OPEN} pages are open",
        statistics.median(rates[True]),
        "1/s",
        ratio=share,
        of="none open",
        goal=f"≥ {SHARE} ×",
        ok=share >= SHARE,
    )
    dearer = statistics.median(costs[True]) - statistics.median(costs[False])
    taken = max(0.0, dearer * statistics.median(rates[True]))
    report.add(
        f"processor time that {PAGES_OPEN} open pages take",
        100 * taken,
        "% of a core",
        goal=f"≤ {100 * (1 - SHARE):.0f} %",
        ok=taken <= 1 - SHARE,
    )


def _writing(http: httpx2.Client, process: psutil.Process, seconds: float) -> tuple[float, float]:
    """Updates in a second, and the server's processor time of each."""
    count, began, used = 0, time.perf_counter(), _cpu_s(process)
    while (elapsed := time.perf_counter() - began) < seconds:
        _update(http, count)
        count += 1
    return count / elapsed, (_cpu_s(process) - used) / count


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@contextlib.contextmanager
def watching(url: str) -> Iterator[None]:
    """Streams as so many open timelines keep them, read by a process of its own."""
    context = multiprocessing.get_context("spawn")
    ready, ended = context.Event(), context.Event()
    reader = context.Process(target=_read, args=(url, ready, ended))
    reader.start()
    ready.wait()
    try:
        yield
    finally:
        ended.set()
        reader.join()


def _read(url: str, ready: Event, ended: Event) -> None:
    async def one(started: asyncio.Semaphore) -> None:
        async with (
            httpx2.AsyncClient(base_url=url, timeout=None) as http,
            http.stream("GET", "/ui/part/live?rows=&tree=true") as reply,
        ):
            async for _ in reply.aiter_raw():
                started.release()

    async def every() -> None:
        started = asyncio.Semaphore(0)
        tasks = [asyncio.create_task(one(started)) for _ in range(PAGES_OPEN)]
        for _ in tasks:
            await started.acquire()
        ready.set()
        await asyncio.to_thread(ended.wait)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(every())


def scrolled(report: Report, browser: webdriver.Chrome, server: Server) -> None:
    """Add how long frames take while ten thousand rows are scrolled through."""
    browser.get(server.url + "/ui/timeline?flat=true")
    until(lambda: browser.execute_script(_LOAD, ROWS), "the rows are there", cpu_s=1000)
    idle = browser.execute_async_script(_FRAMES, 0)
    frames = browser.execute_async_script(_FRAMES, 40)
    for what, taken in (("at rest", idle), (f"scrolling {ROWS:,} rows", frames)):
        p50, p95 = statistics.median(taken), statistics.quantiles(taken, n=20)[18]
        goal = f"p95 ≤ {FRAME_MS:.1f} ms, p50 {p50:.1f} ms"
        report.add(f"a frame {what}", p95, "ms p95", goal=goal, ok=p95 <= FRAME_MS + 0.5)


_LOAD = """
const rows = document.querySelectorAll("#events tr[data-seq]").length;
if (rows < arguments[0]) document.getElementById("older").click();
return rows >= arguments[0];
"""
_FRAMES = """
const [step, done] = arguments;
const taken = [];
let before = null;
scrollTo(0, 0);
function frame(now) {
  if (before !== null) taken.push(now - before);
  before = now;
  scrollBy(0, step);
  if (taken.length < 180) requestAnimationFrame(frame); else done(taken);
}
requestAnimationFrame(frame);
"""


def _update(http: httpx2.Client, number: int) -> None:
    sent = {"parameter_name": "a", "update_data": 0.001 * (number % 7), "learning_rate": 0.01}
    http.post("/v1/models/incremental_update", json=sent).raise_for_status()


def _got(http: httpx2.Client, path: str) -> None:
    http.get(path).raise_for_status()


def _ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def _add(report: Report, what: str, taken: list[float], most: float) -> None:
    p95 = statistics.quantiles(taken, n=20)[18]
    goal = f"p95 ≤ {most:g} ms, p50 {statistics.median(taken):.0f} ms"
    report.add(what, p95, "ms p95", goal=goal, ok=p95 <= most)


def measure(report: Report, url: str, options: argparse.Namespace, folder: Path) -> None:
    """Everything of one database."""
    made: list[Any] = ["--database", url, "--model", "benchmarks.dashboard:model"]
    made += ["--served-model-name", replayable_log.MODEL, "--log-level", "warning"]
    with (
        serving(folder / "server", *made) as server,
        chromium(folder / "chromium") as browser,
    ):
        sized(browser, 1280, 900)
        pages(report, server, options.events, options.rounds)
        painted(report, browser, server, options.events)
        live(report, browser, server, options.rounds)
        scrolled(report, browser, server)
        browser.get("about:blank")
        open_pages(report, server, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    parser.add_argument("--pictures", type=Path, help="a picture of each page, and nothing else")
    options = parser.parse_args()
    if options.pictures:
        dashboard_pictures.make(options.pictures)
        return
    report = Report(f"The dashboard over {options.events:,} events, in Chromium")
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for backend, url in stack.enter_context(databases(folder)).items():
            if options.only not in (None, backend):
                continue
            store = SqlStore.open(url)
            there = store.models()
            store.close()
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            if not there:
                told = replayable_log.Told()
                replayable_log.load(url, options.events, scratch, told=told)
            warm(folder)
            report.group = backend
            measure(report, url, options, scratch)
    report.finish("dashboard")


if __name__ == "__main__":
    main()
