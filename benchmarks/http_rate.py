"""How many small updates a second a served model takes over HTTP.

    python -m benchmarks.http_rate

A real server process with the built-in model on SQLite (synchronous=FULL); bodies of 13 KB of JSON,
all values of one 10 × 64 matrix; one connection, then eight. Beside it the same server's
answers to `/livez`, which is what HTTP itself costs, and the same updates through the Python API.
"""

import http.client
import json
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, machine
from ledger import IncrementalUpdateRequest, Ledger
from tests.serving import serving

SECONDS = 5.0
ROUNDS = 3
PARAMETER = "2.weight"


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


def in_process(data: Path, sent: dict[str, Any]) -> float:
    """The same updates through `Log.apply`, on the database the server has left."""
    with Ledger.open(f"sqlite:///{data / 'ledger.db'}") as ledger:
        log = ledger.model("digits")
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < SECONDS:
            log.apply(IncrementalUpdateRequest(**sent))
            count += 1
        return count / (time.perf_counter() - started)


def main() -> None:
    sent = body()
    url = "/v1/models/incremental_update"
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        with serving(data, "--checkpoint-interval", "1000000") as server:
            for _ in range(ROUNDS):
                for connections in (1, 8):
                    found.setdefault(f"updates, {connections} connection(s)", []).append(
                        rate(server.port, connections, "POST", url, sent)
                    )
                    found.setdefault(f"/livez, {connections} connection(s)", []).append(
                        rate(server.port, connections, "GET", "/livez", None)
                    )
        found["updates, Python API"] = [in_process(data, json.loads(sent)) for _ in range(ROUNDS)]
    rows = [
        {"what": what, "median a second": sorted(rates)[len(rates) // 2], "runs": rates}
        for what, rates in found.items()
    ]
    for row in rows:
        print(f"{row['what']:<28} {row['median a second']:8.0f}/s")
    path = RESULTS / "http_rate.json"
    facts = {"body_bytes": len(sent), "machine": machine(), "rows": rows}
    path.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
