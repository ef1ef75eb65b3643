"""Looking for garbage in a server: every thread stands still meanwhile."""

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.serving import Server
from tests.waiting import until

# The command itself, which says at a signal how often it has looked for garbage since it listened,
# and how many of the application's routes it would look through.
COUNTED = """
import gc, signal
from fastapi.routing import APIRoute
from weightledger.api.cli import main

begun = []
gc.callbacks.append(lambda phase, _: begun.append(phase) if phase == "start" else None)

def tell(*_):
    routes = sum(isinstance(one, APIRoute) for one in gc.get_objects())
    print("looked", len(begun), "routes", routes, flush=True)
    begun.clear()

signal.signal(signal.SIGUSR1, tell)
main()
"""
UPDATE = "/v1/models/incremental_update"
CONNECTIONS, EACH = 8, 40


def told(server: Server, before: int = 0) -> list[tuple[int, int]]:
    """What it has said by now, once more than `before` times."""
    assert server.process is not None
    server.process.send_signal(signal.SIGUSR1)

    def lines() -> list[tuple[int, int]]:
        words = [line.split() for line in server.output().splitlines()]
        return [(int(one[1]), int(one[3])) for one in words if one[:1] == ["looked"]]

    until(lambda: len(lines()) > before, "it did not say")
    return lines()


def test_requests_under_way_and_the_application_are_not_looked_through(tmp_path: Path) -> None:
    command = (sys.executable, "-c", COUNTED, "serve")
    server = Server(tmp_path / "data", command=command)
    sent = {"parameter_name": "2.weight", "update_data": [[1e-6] * 64] * 10}

    def ask(_: int) -> None:
        with server.client() as client:
            for _ in range(EACH):
                assert client.post(UPDATE, json=sent).json()["success"]

    try:
        server.start()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(ask, range(CONNECTIONS)))  # what updates want is imported by then
            told(server)
            list(pool.map(ask, range(CONNECTIONS)))
        looked, routes = told(server, 1)[-1]
    finally:
        server.stop()
    assert routes == 0
    assert looked <= CONNECTIONS * EACH // 40  # every eight updates, where they are many at a time
