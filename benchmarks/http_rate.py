"""How many small updates a second a served model takes over HTTP.

    python -m benchmarks.http_rate

A real server process on SQLite (synchronous=FULL); bodies of 13 KB of JSON, all values of one
10 × 64 matrix; one connection, then eight. Once with a model of the caller's (`module:factory`),
once with the built-in one, whose evaluator scores every update before it is appended, which is why
those cannot share a transaction. Beside it the same server's answers to `/livez`, which is what
HTTP itself costs, and the same updates through the Python API.
"""

import http.client
import json
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.measure import Report
from tests.serving import serving
from weightledger import IncrementalUpdateRequest, Ledger

SECONDS = 4.0
ROUNDS = 3
PARAMETER = "2.weight"
FACTORY = "benchmarks.http_rate:plain"
GOALS = {1: 500, 8: 1000}


def plain() -> nn.Module:
    """The built-in model's shape, without what scores it."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def body() -> bytes:
    chance = random.Random(1)
    values = [[chance.gauss(0, 1e-6) for _ in range(64)] for _ in range(10)]
    return json.dumps({"parameter_name": PARAMETER, "update_data": values}).encode()


def rate(port: int, connections: int, method: str, path: str, sent: bytes | None) -> float:
    """Requests a second over that many connections, each waiting for its reply."""
    over = time.perf_counter() + SECONDS
    counts = [0] * connections

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        headers = {"content-type": "application/json"}
        while time.perf_counter() < over:
            connection.request(method, path, sent, headers)
            reply = connection.getresponse()
            text = reply.read()
            if reply.status != 200:
                raise SystemExit(f"{reply.status} {text!r}")
            counts[number] += 1
        connection.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(connections)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def in_process(data: Path, model: str, sent: dict[str, Any]) -> float:
    """The same updates through `Log.apply`, on the database the server has left."""
    with Ledger.open(f"sqlite:///{data / 'ledger.db'}") as ledger:
        log = ledger.model(model)
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < SECONDS:
            log.apply(IncrementalUpdateRequest(**sent))
            count += 1
        return count / (time.perf_counter() - started)


def measure(report: Report, model: str, label: str) -> None:
    """One server with one model: updates and `/livez` in turns, then without HTTP."""
    sent = body()
    found: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        options = ("--model", model, "--checkpoint-interval", "1000000")
        with serving(data, *options) as server:
            for _ in range(ROUNDS):
                for connections in GOALS:
                    for path, method, content in (
                        ("/v1/models/incremental_update", "POST", sent),
                        ("/livez", "GET", None),
                    ):
                        reached = rate(server.port, connections, method, path, content)
                        found.setdefault((path, connections), []).append(reached)
        alone = [in_process(data, model, json.loads(sent)) for _ in range(ROUNDS)]
    for (path, connections), rates in found.items():
        median = statistics.median(rates)
        updates = path != "/livez"
        report.add(
            f"{label}: {'updates' if updates else 'limit: /livez'}, {connections} connection(s)",
            median,
            "/s",
            goal=f"≥ {GOALS[connections]}/s" if updates else "",
            ok=median >= GOALS[connections] if updates else None,
        )
    report.add(f"{label}: updates through the Python API", statistics.median(alone), "/s")


def main() -> None:
    report = Report(f"Small updates over HTTP, {len(body()):,} bytes of JSON each")
    measure(report, FACTORY, "module:factory")
    measure(report, "digits", "built-in, evaluated")
    report.finish("http_rate")


if __name__ == "__main__":
    main()
