"""A picture of each page of the dashboard, of a small history that has something to show."""

import tempfile
import time
from base64 import b64decode
from pathlib import Path

import httpx2
from selenium import webdriver
from sklearn.datasets import load_digits

from benchmarks.chromium import chromium, scheme, sized
from tests.serving import Server, serving
from tests.waiting import until

_PICTURES = {  # of pages: width, height, colours
    "now": ("/", 1280, 860, "light"),
    "now-dark": ("/", 1280, 860, "dark"),
    "now-phone": ("/", 360, 740, "light"),
    "timeline": ("/ui/timeline", 1280, 800, "light"),
    "timeline-phone": ("/ui/timeline", 360, 740, "dark"),
    "event": ("/ui/events/update_15", 1280, 860, "light"),
    "compare": ("/ui/compare?from=v0&to=v2&each=true", 1280, 800, "light"),
    "parameter": ("/ui/parameters/2.weight", 1280, 760, "light"),
    "versions": ("/ui/versions", 1280, 420, "light"),
    "rollback": ("/ui/rollback?to=v1", 1280, 800, "light"),
    "metrics": ("/ui/metrics", 1280, 900, "dark"),
    "trials": ("/ui/trials", 1280, 560, "light"),
    "learning": ("/ui/learning", 1280, 300, "light"),
    "audit": ("/ui/audit", 1280, 720, "light"),
    "keys": ("/ui/keys", 1280, 420, "light"),
}


def history(server: Server) -> None:
    """A night of training, a bad idea that is refused, one that is undone, a lesson, a run."""
    rows = (load_digits().data[:64] / 16).tolist()

    def update(http: httpx2.Client, name: str, value: float, **more: object) -> None:
        sent = {"parameter_name": name, "update_data": value, **more}
        http.post("/v1/models/incremental_update", json=sent).raise_for_status()
        for at in range(6):
            http.post("/invocations", json={"inputs": [rows[at]]}).raise_for_status()

    with server.client(**{"x-actor": "trainer", "x-reason": "night run"}) as http:
        for number in range(14):
            update(http, "2.bias", 0.01 * number, metadata={"run": 7})
        _named(http, "after the night run")
    with server.client(**{"x-actor": "anna"}) as http:
        update(http, "0.weight", 0.001, learning_rate=0.5)
        update(http, "2.weight", 0.0, update_type="replace", learning_rate=1.0)
        update(http, "2.weight", 0.02)
        http.post(
            "/v1/models/rollback",
            headers={"x-reason": "slow since seq 17"},
            json={"version_id": "v1"},
        ).raise_for_status()
        update(http, "2.bias", 0.03)
        lesson = {"parameter_name": "2.weight", "update_data": 0.1, "performance_context": {}}
        http.post("/v1/models/enhanced_update", json=lesson).raise_for_status()
        samples = [{"metric": "accuracy", "value": value} for value in (0.967, 0.964, 0.969)]
        http.post("/v1/models/metrics", json={"samples": samples}).raise_for_status()
    with server.client(**{"x-actor": "tuner", "x-reason": "rate halved after the drift"}) as http:
        for number in range(5):
            update(http, "0.bias", 0.001 * number)
        _named(http, "release candidate")


def _named(http: httpx2.Client, description: str) -> None:
    body = {"description": description}
    http.post("/v1/models/create_version", json=body).raise_for_status()


def make(folder: Path) -> None:
    """Write the pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(Path(scratch) / "data") as server,
        chromium(Path(scratch) / "chromium") as browser,
    ):
        history(server)
        for name, (path, width, height, colours) in _PICTURES.items():
            sized(browser, width, height)
            scheme(browser, colours)
            browser.get(server.url + path)
            _settle(browser)
            (folder / f"{name}.webp").write_bytes(_picture(browser))


def _picture(browser: webdriver.Chrome) -> bytes:
    asked = {"format": "webp", "quality": 60}
    return b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", asked)["data"])


def _settle(browser: webdriver.Chrome) -> None:
    """Wait until a page listens and its charts are drawn."""
    until(
        lambda: browser.execute_script(
            "return document.querySelector('#connection.on')"
            " && !document.body.textContent.includes('Loading what')"
        ),
        "the page is whole",
    )
    time.sleep(0.2)  # the next frame
