"""A server with a history worth looking at, and a real browser."""

import os
from collections.abc import Iterator

import pytest
from selenium import webdriver

from benchmarks.chromium import chromium, is_there
from tests.serving import Server, serving

HOSTILE = "<script>document.title='owned'</script>\u202e\x1b]0;owned\x07" + "x" * 300


def write(server: Server) -> None:
    """Updates by two people, one refused, a version, a rollback."""
    with server.client(**{"x-actor": "trainer", "x-reason": "night run"}) as http:
        for number in range(6):
            update(http, 0.01 * number)
        http.post("/v1/models/create_version", json={"description": HOSTILE}).raise_for_status()
    with server.client(**{"x-actor": "anna"}) as http:
        for _ in range(2):
            update(http, 0.02)
        refused = http.post(
            "/v1/models/incremental_update",
            json={
                "parameter_name": "2.weight",
                "update_data": 0.0,
                "update_type": "replace",
                "learning_rate": 1.0,
            },
        ).json()
        assert refused["success"] is False
        http.post("/v1/models/rollback", json={"version_id": "v1"}).raise_for_status()
        update(http, 0.03)


def update(http, value: float) -> None:
    sent = {"parameter_name": "2.bias", "update_data": value, "metadata": {"loss": value}}
    http.post("/v1/models/incremental_update", json=sent).raise_for_status()


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("dashboard") / "data") as running:
        write(running)
        yield running


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if not is_there():
        lacking = "NO BROWSER: install Chromium and its driver (`make browser`)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(lacking)
    with chromium(tmp_path_factory.mktemp("chromium")) as running:
        running.set_window_size(1280, 900)
        yield running
