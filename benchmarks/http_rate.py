"""How many small updates a second a served model takes over HTTP.

    python -m benchmarks.http_rate [--seconds S] [--rounds N] [--other TREE]

A real server process on SQLite (synchronous=FULL); bodies of 15 KB of JSON, all values of one
10 × 64 matrix; one connection, then eight. Once with a model of the caller's (`module:factory`),
once with the built-in one, whose evaluator scores every update before it is appended, which is why
those cannot share a transaction. In turns with it the same server answers `/livez`, which is what
HTTP itself costs: goals are shares of that. So does a server that does nothing but run the bare
statements of such an update (`http_limit`): what share of `/livez` it reaches is what there is to
reach on this disk. Beside each rate stands the processor time that the
server took for a request, which other programs on the machine change less; and beside all of it the
same updates through the Python API.

With `--other`, a second server runs from another checkout, in turns with this one's: what a change
of the code is worth.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from torch import nn

from benchmarks import http_limit
from benchmarks.measure import Report
from tests.buckets import free_port
from tests.serving import Server
from tests.waiting import until
from weightledger import IncrementalUpdateRequest, Ledger

HERE = Path(__file__).parents[1]
UPDATE, LIMIT = "/v1/models/incremental_update", "/livez"
PARAMETER = "2.weight"
FACTORY = "benchmarks.http_rate:plain"
BARE = "bare"  # the server that runs the statements alone
GOALS = {1: 0.35, 8: 0.40}  # of the rate of /livez, by connections


def plain() -> nn.Module:
    """The built-in model's shape, without what scores it."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def body() -> bytes:
    chance = random.Random(1)
    values = [[chance.gauss(0, 1e-6) for _ in range(64)] for _ in range(10)]
    return json.dumps({"parameter_name": PARAMETER, "update_data": values}).encode()


def asked(port: int, connections: int, path: str, sent: bytes, seconds: float) -> tuple[int, float]:
    """How many requests were answered in how many seconds, each connection waiting for its
    replies."""
    method, content = ("POST", sent) if path == UPDATE else ("GET", None)
    over = time.perf_counter() + seconds
    counts = [0] * connections

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        headers = {"content-type": "application/json"}
        while time.perf_counter() < over:
            connection.request(method, path, content, headers)
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
    return sum(counts), time.perf_counter() - started


def in_process(data: Path, model: str, sent: dict[str, Any], seconds: float) -> float:
    """Updates a second through `Log.apply`, on the database the server has left."""
    with Ledger.open(f"sqlite:///{data / 'ledger.db'}") as ledger:
        log = ledger.model(model)
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            log.apply(IncrementalUpdateRequest(**sent))
            count += 1
        return count / (time.perf_counter() - started)


@contextlib.contextmanager
def served(tree: Path, data: Path, model: str) -> Iterator[tuple[Server, psutil.Process]]:
    """A server that runs from a checkout, and its process."""
    env = {**os.environ, "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}"}
    command = (sys.executable, "-m", "weightledger", "serve")
    options = ("--model", model, "--checkpoint-interval", "1000000")
    server = Server(data, *options, env=env, command=command, cwd=tree)
    try:
        server.start()
        assert server.process is not None
        yield server, psutil.Process(server.process.pid)
    finally:
        server.stop()


@contextlib.contextmanager
def limiting(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """The port of a server that runs bare statements alone, and its process."""
    file, port = folder / "limit.db", free_port()
    base = {name: tensor.detach() for name, tensor in plain().named_parameters()}
    http_limit.prepare(file, base, IncrementalUpdateRequest(**json.loads(body())))
    env = {**os.environ, "PYTHONPATH": f"{HERE / 'src'}{os.pathsep}{HERE}"}
    command = (sys.executable, "-m", "benchmarks.http_limit", str(file), str(port))
    process = subprocess.Popen(command, env=env, cwd=HERE)
    try:
        until(lambda: _listens(port), "the bare server is not ready", pid=process.pid)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@dataclass(frozen=True)
class Round:
    """Requests a second, and seconds of the server's processor time for each."""

    rate: float
    cpu_s: float


Measured = defaultdict[tuple[str, int, str], list[Round]]


def rounds(model: str, trees: Mapping[str, Path], folder: Path, args: Any) -> Measured:
    """What every server reached, by its name, connections and path; all of them take turns."""
    sent = body()
    measured: Measured = defaultdict(list)
    with contextlib.ExitStack() as opened:
        servers = {}
        for name, tree in trees.items():
            server, process = opened.enter_context(served(tree, folder / name, model))
            servers[name] = server.port, process
        servers[BARE] = opened.enter_context(limiting(folder))
        for number in range(args.rounds + 1):
            for connections in GOALS:
                for name, (port, process) in servers.items():
                    for path in (UPDATE, LIMIT):
                        before = sum(process.cpu_times()[:2])
                        count, took = asked(port, connections, path, sent, args.seconds)
                        cpu_s = (sum(process.cpu_times()[:2]) - before) / count
                        if number:  # in the first one servers compile and connect
                            measured[name, connections, path].append(Round(count / took, cpu_s))
    return measured


def measure(report: Report, model: str, label: str, args: argparse.Namespace) -> None:
    """Servers with one model: updates and `/livez` in turns, then without HTTP."""
    trees = {"here": HERE, **({"other": args.other.resolve()} if args.other else {})}
    with tempfile.TemporaryDirectory() as name:
        measured = rounds(model, trees, Path(name), args)
        data = Path(name) / "here"
        alone = [in_process(data, model, json.loads(body()), args.seconds) for _ in range(3)]
    for tree in trees:
        report.group = label if tree == "here" else f"{label}, other checkout"
        for connections, goal in GOALS.items():
            updates, limit = (measured[tree, connections, path] for path in (UPDATE, LIMIT))
            on = "1 connection" if connections == 1 else f"{connections} connections"
            share = median(one.rate for one in updates) / median(one.rate for one in limit)
            of_cpu = median(one.cpu_s for one in limit) / median(one.cpu_s for one in updates)
            report.add(
                f"updates, {on}",
                median(one.rate for one in updates),
                "/s",
                ratio=share,
                of="/livez",
                goal=f"≥ {goal:.2f} × /livez",
                ok=share >= goal,
            )
            report.add(f"/livez, {on}", median(one.rate for one in limit), "/s")
            for what, of in (("an update", updates), ("/livez", limit)):
                cpu_us = median(one.cpu_s for one in of) * 1e6
                more = {"ratio": 1 / of_cpu, "of": "/livez"} if of is updates else {}
                report.add(f"server's processor time for {what}, {on}", cpu_us, "µs", **more)
        if tree == "here":
            for connections in GOALS:
                bound(report, measured, connections)
    report.group = label
    report.add("updates through the Python API", median(alone), "/s")


def bound(report: Report, measured: Measured, connections: int) -> None:
    """What HTTP and the bare statements alone reach, and what ours reaches of that."""
    on = "1 connection" if connections == 1 else f"{connections} connections"
    updates, limit, bare, its_limit = (
        median(one.rate for one in measured[name, connections, path])
        for name in ("here", BARE)
        for path in (UPDATE, LIMIT)
    )
    report.add(
        f"limit: HTTP and the bare statements alone, {on}",
        bare,
        "/s",
        ratio=bare / limit,
        of="/livez",
    )
    report.add(f"limit: its own /livez, {on}", its_limit, "/s")
    report.add(f"updates of that limit, {on}", updates / bare, "× limit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round and path")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--other", type=Path, help="another checkout, to compare with")
    parser.add_argument("--only", choices=["module:factory", "built-in"], help="one of the models")
    args = parser.parse_args()
    report = Report(f"Small updates over HTTP, {len(body()):,} bytes of JSON each")
    models = {"module:factory": FACTORY, "built-in": "digits"}
    for label, model in models.items():
        if args.only in (None, label):
            measure(report, model, label, args)
    if args.other or args.only:
        report.show()
    else:
        report.finish("http_rate")


if __name__ == "__main__":
    main()
