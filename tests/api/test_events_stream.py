"""The log as it grows: none missed, none twice, however one listens and whatever happens."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import torch

from tests import patient
from tests.in_process import here, listening
from tests.serving import Server, serving
from tests.waiting import PATIENCE_S, until
from weightledger import DynamicModelManager, DynamicUpdateConfig, InvalidRequest, Ledger, Log
from weightledger import IncrementalUpdateRequest as Request
from weightledger.api.rest import listeners
from weightledger.api.rest import tail as tails
from weightledger.api.rest.tail import Tail

EVENTS = "/v1/models/events"
# What a terminal sends that is closed, but where the tests are to outlive theirs: then servers are,
# too, and any other end will do.
_OUTLIVES = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
HANG_UP = signal.SIGTERM if _OUTLIVES else signal.SIGHUP


class Stream:
    """One connection, read by the rules of server-sent events."""

    def __init__(self, http: httpx2.Client, **request: Any) -> None:
        self._context = http.stream("GET", EVENTS, timeout=PATIENCE_S, **request)
        self.reply = self._context.__enter__()
        self._bytes = self.reply.iter_bytes()
        self._rest = b""

    def blocks(self) -> Iterator[dict[str, str]]:
        """What stands between two empty lines, by field; a comment's name is empty."""
        for piece in self._bytes:
            *whole, self._rest = (self._rest + piece).split(b"\n\n")
            for block in whole:
                lines = block.decode().split("\n")
                yield dict(
                    tuple(line.split(": ", 1)) if ": " in line else ("", line) for line in lines
                )

    def take(self, count: int) -> list[dict[str, Any]]:
        """So many events; each has its seq as its id."""
        taken: list[dict[str, Any]] = []
        for block in self.blocks():
            if "data" in block:
                item = json.loads(block["data"])
                assert block["id"] == str(item["seq"])
                taken.append(item)
            if len(taken) == count:
                break
        return taken

    def opened(self) -> dict[str, str]:
        return next(self.blocks())

    def close(self) -> None:
        self._context.__exit__(None, None, None)


def nudge(http: httpx2.Client, times: int = 1) -> None:
    for _ in range(times):
        body = {"parameter_name": "2.bias", "update_data": 0.01, "learning_rate": 0.01}
        assert http.post("/v1/models/incremental_update", json=body).status_code == 200


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("stream") / "data") as running:
        yield running


@pytest.fixture
def http(served: Server) -> Iterator[httpx2.Client]:
    with served.client() as client:
        yield client


def head(http: httpx2.Client) -> int:
    return int(http.get("/v1/models/updates", params={"limit": 1}).json()["data"][0]["seq"])


def test_events_come_as_the_audit_tells_them(http: httpx2.Client) -> None:
    stream = Stream(http)
    assert stream.reply.headers["content-type"].startswith("text/event-stream")
    assert stream.reply.headers["cache-control"] == "no-cache"
    opened = stream.opened()
    assert int(opened["id"]) == head(http)  # where a browser resumes from
    nudge(http, 3)
    got = stream.take(3)
    stream.close()
    listed = http.get("/v1/models/updates", params={"limit": 3}).json()["data"]
    assert got == listed[::-1]


def test_one_resumes_behind_what_one_has(http: httpx2.Client) -> None:
    nudge(http, 4)
    last = head(http)
    for request in (
        {"headers": {"Last-Event-ID": str(last - 3)}},
        {"params": {"after": last - 3}},
        {"headers": {"Last-Event-ID": str(last - 3)}, "params": {"after": 0}},
    ):
        stream = Stream(http, **request)
        assert [item["seq"] for item in stream.take(3)] == [last - 2, last - 1, last]
        stream.close()
    stream = Stream(http, params={"after": 0})
    assert [item["seq"] for item in stream.take(last)] == list(range(1, last + 1))
    stream.close()


@pytest.mark.parametrize("sent", ["x", "-1", "", "1.5", "v0", "1 2", "9" * 30])
def test_what_is_no_seq_is_refused(http: httpx2.Client, sent: str) -> None:
    reply = http.get(EVENTS, headers={"Last-Event-ID": sent})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "Last-Event-ID")
    assert "which is its seq" in reply.json()["error"]["message"]


def test_an_id_beyond_the_head_is_of_another_log(http: httpx2.Client) -> None:
    beyond = head(http) + 1
    reply = http.get(EVENTS, headers={"Last-Event-ID": str(beyond)})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_request")
    assert "another model or another ledger" in reply.json()["error"]["message"]
    reply = http.get(EVENTS, params={"after": beyond})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "after")


def test_head_ends(http: httpx2.Client) -> None:
    reply = http.head(EVENTS)
    assert (reply.status_code, reply.content) == (200, b"")


def test_events_of_other_processes_come_too(served: Server, http: httpx2.Client) -> None:
    stream = Stream(http)
    stream.opened()
    with Ledger.open(f"sqlite:///{served.folder}/ledger.db") as ledger:
        seq = ledger.model("digits").create_version("from elsewhere").seq
    assert [item["seq"] for item in stream.take(1)] == [seq]
    stream.close()


def test_none_missed_and_none_twice_under_load(http: httpx2.Client, served: Server) -> None:
    """Listeners that come, go and resume at any moment, while events are written."""
    first, number = head(http), 60
    last = first + number
    broken: list[str] = []

    def listen(step: int) -> None:
        with served.client() as own:
            seen, after = [], first
            while after < last:
                stream = Stream(own, headers={"Last-Event-ID": str(after)})
                got = [item["seq"] for item in stream.take(min(step, last - after))]
                stream.close()
                seen += got
                after = got[-1]
        if seen != list(range(first + 1, last + 1)):
            broken.append(f"{step}: {seen}")

    threads = [threading.Thread(target=listen, args=(step,)) for step in (1, 3, 7, 20, 60)]
    for thread in threads:
        thread.start()
    nudge(http, number)
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert not broken


def test_a_stop_ends_the_streams_in_order(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server, server.client() as http:
        streams = [Stream(http) for _ in range(3)]
        for stream in streams:
            stream.opened()
        nudge(http, 2)
        last = head(http)
        server.process.send_signal(HANG_UP)
        for stream in streams:
            seqs = [int(block["id"]) for block in stream.blocks() if "data" in block]
            assert seqs == [last - 1, last]
        assert server.process.wait(PATIENCE_S) == 0
        assert server.output().splitlines()[-1].endswith("stopped")
        assert "Traceback" not in server.output()


def test_a_command_follows_a_server_through_its_restart(tmp_path: Path) -> None:
    server = Server(tmp_path / "data").start()
    with server.client() as http:
        nudge(http)
        last = head(http)
    command = ["log", "--follow", "--json", "-n", "1", "--url", server.url]
    with following(*command) as process:
        assert json.loads(process.stdout.readline())["seq"] == last
        server.stop()
        server.start()
        with server.client() as http:
            nudge(http, 2)
        got = [json.loads(process.stdout.readline())["seq"] for _ in range(2)]
        assert got == [last + 1, last + 2]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
        errors = process.stderr.read()
        assert "asking again until it answers" in errors or not errors
        assert "Traceback" not in errors
    server.stop()


def test_a_command_follows_a_database_and_filters(sqlite_url: str) -> None:
    with Ledger.open(sqlite_url) as ledger:
        log = ledger.model("m", base={"w": torch.zeros(4), "b": torch.zeros(4)})
        log.apply(Request("w", 1.0))
        command = ["log", "-f", "-q", "--parameter", "b", "--database", sqlite_url]
        with following(*command) as process:
            log.apply(Request("w", 1.0))
            wanted = log.apply(Request("b", 1.0))
            assert process.stdout.readline().strip() == wanted.name
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0


def following(*args: str) -> "subprocess.Popen[str]":
    """The command, its output read line by line."""
    return subprocess.Popen(
        [sys.executable, "-m", "weightledger", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )


def test_a_program_watches(sqlite_url: str) -> None:
    with Ledger.open(sqlite_url) as ledger, Ledger.open(sqlite_url) as other:
        log = ledger.model("m", base={"w": torch.zeros(4)})
        seen = log.follow(after_seq=0)
        written = [other.model("m").apply(Request("w", 1.0)).seq for _ in range(3)]
        assert [next(seen).seq for _ in range(3)] == written
        with pytest.raises(
            InvalidRequest, match="after_seq 9 is beyond the log of 'm', which ends at 3"
        ):
            next(log.follow(after_seq=9))


# The tail itself


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with Ledger.open(f"sqlite:///{tmp_path}/tail.db") as ledger:
        yield ledger.model("m", base={"w": torch.zeros(4)})


async def collected(tail: Tail, after: int, until_seq: int, head: int) -> list[int]:
    """The seqs that a listener is given until it has one of them."""
    waker, seen = asyncio.Event(), []
    with tail.listening(waker, head):
        while after < until_seq:
            waker.clear()
            block, after = await tail.behind(after)
            if block:
                seen += [int(line[4:]) for line in block.split(b"\n") if line.startswith(b"id: ")]
            else:
                await waker.wait()
    return seen


def test_whoever_fell_behind_reads_pages_of_its_own(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept is less than what came meanwhile."""
    monkeypatch.setattr(tails, "_KEPT", 4)
    monkeypatch.setattr(tails, "_PAGE", 3)
    monkeypatch.setattr(tails, "_BLOCK_BYTES", 100)
    tail = Tail(log)

    async def run() -> None:
        fast = asyncio.create_task(collected(tail, 0, 20, 0))
        for _ in range(20):
            await asyncio.to_thread(log.apply, Request("w", 1.0))
        assert await fast == list(range(1, 21))
        slow = asyncio.create_task(collected(tail, 0, 21, 20))
        new = asyncio.create_task(collected(tail, 20, 21, 20))
        await asyncio.sleep(0)
        await asyncio.to_thread(log.apply, Request("w", 1.0))
        assert (await slow, await new) == (list(range(1, 22)), [21])

    asyncio.run(run())


def test_those_who_wait_share_one_reader(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 listeners, and as many queries as for one."""
    tail, reads = Tail(log), []
    read = tail._read

    def counted(first: int) -> list[tails.Sent]:
        reads.append(first)
        return read(first)

    monkeypatch.setattr(tail, "_read", counted)

    async def run() -> None:
        everyone = [asyncio.create_task(collected(tail, 0, 3, 0)) for _ in range(200)]
        await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.to_thread(log.apply, Request("w", 1.0))
        assert await asyncio.gather(*everyone) == [[1, 2, 3]] * 200

    asyncio.run(run())
    assert len(reads) < 60


def test_a_server_of_somebody_elses_ends_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ending`, that whoever stops the server sets, is noticed by the task that reads."""
    ending = threading.Event()
    with Ledger.open(f"sqlite:///{tmp_path}/ending.db") as ledger:
        tail = Tail(ledger.model("m", base={"w": torch.zeros(4)}), ending)

        async def run() -> None:
            waker = asyncio.Event()
            with tail.listening(waker, 0):
                ending.set()
                await waker.wait()
                assert tail.closed

        asyncio.run(run())
        with pytest.raises(Exception, match="the server is stopping"):
            tail.require_open()


def test_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "HEARTBEAT_S", 0.0)
    config = DynamicUpdateConfig(backup_dir=tmp_path)
    manager = DynamicModelManager(torch.nn.Linear(2, 2), "m", config=config)
    try:
        with listening(manager) as url, patient.Client(base_url=url) as http:
            stream = Stream(http)
            blocks = stream.blocks()
            next(blocks)
            assert next(blocks) == {"": ":"}
            stream.close()
    finally:
        manager.close()


def test_a_key_that_is_revoked_hears_no_more_and_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the next event, or, where nothing happens, with the next heartbeat."""
    with here(tmp_path) as server, contextlib.ExitStack() as clients:
        keys = server.manager.ledger.keys
        issued = {name: keys.create(name).secret for name in ("waits", "hears", "stays")}
        streams = {}
        for name, secret in issued.items():
            client = clients.enter_context(server.client(authorization=f"Bearer {secret}"))
            streams[name] = Stream(client)
            assert "id" in streams[name].opened()
        keys.revoke("hears")
        with server.client(authorization=f"Bearer {issued['hears']}") as http:
            until(lambda: http.get("/v1/models").status_code == 401)
        server.manager.log.apply(Request("bias", 1.0))
        last = next(block for block in streams["hears"].blocks() if "" not in block)
        assert last["event"] == "refused"
        refusal = json.loads(last["data"])["error"]
        assert (refusal["message"], refusal["code"]) == (
            "the API key 'hears' was revoked",
            "unauthorized",
        )
        assert list(streams["hears"].blocks()) == []  # the stream has ended
        for name in ("waits", "stays"):
            assert [item["kind"] for item in streams[name].take(1)] == ["updated"]
        command = ["log", "--follow", "-q", "--url", server.url, "--api-key", issued["waits"]]
        with following(*command) as process:
            assert process.stdout.readline()
            keys.revoke("waits")
            monkeypatch.setattr(listeners, "HEARTBEAT_S", 0.0)
            assert next(b for b in streams["waits"].blocks() if "" not in b)["event"] == "refused"
            assert process.wait(PATIENCE_S) == 1
            assert "the API key 'waits' was revoked" in process.stderr.read()
        assert next(streams["stays"].blocks()) == {"": ":"}
        for stream in streams.values():
            stream.close()


@pytest.mark.soak
def test_a_thousand_idle_listeners_cost_less_than_100_mb(served: Server) -> None:
    process = psutil.Process(served.process.pid)

    def open_one() -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", served.port))
        connection.sendall(f"GET {EVENTS} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        reply = b""
        while b"\n\n" not in reply.partition(b"\r\n\r\n")[2]:
            reply += connection.recv(65536)
        assert b"200 OK" in reply
        return connection

    listeners = [open_one()]
    before = process.memory_info().rss
    listeners += [open_one() for _ in range(1000)]
    grown = process.memory_info().rss - before
    with served.client() as http:
        nudge(http)
    for one in listeners:
        assert b"data: " in one.recv(65536)
        one.close()
    assert grown < 100e6, f"1,000 listeners: {grown / 1e6:.1f} MB"
    until(lambda: process.num_fds() < 200, "connections are not closed", pid=process.pid)
