"""A process has as many files open as it may, or its clients would have it so."""

import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.serving import Server
from tests.waiting import PATIENCE_S, until
from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.config import sqlite_url
from weightledger.ledger.errors import StorageUnavailable

FILES = 128  # of a server; where these are few, eight connections are still taken
LIMITED = f"""
import resource, runpy, warnings
warnings.simplefilter("default")
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))
runpy.run_module("weightledger", run_name="__main__", alter_sys=True)
"""


@contextlib.contextmanager
def with_few_files(folder: Path) -> Iterator[Server]:
    server = Server(folder, program=LIMITED).start()
    try:
        yield server
    finally:
        server.stop()


def connected(server: Server, sent: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)
    connection.sendall(sent.encode())
    return connection


def test_clients_that_keep_their_connections_leave_files_for_the_ledger(tmp_path: Path) -> None:
    """Every route was a 500, inference and /health too, and an update said that the log was gone.

    Some have sent nothing, some a part of a request, some had a reply and stay.
    """
    with with_few_files(tmp_path / "data") as server, contextlib.ExitStack() as kept:
        whole = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for sent in ("", whole[:20], whole) * (FILES // 2):
            kept.enter_context(connected(server, sent))
        with server.client() as http:
            for path in ("/readyz", "/health", "/metrics", "/v1/models/status", "/checkpoint"):
                assert http.get(path).status_code == 200, path
            for route, body in (
                ("incremental_update", {"parameter_name": "2.bias", "update_data": 0.001}),
                ("rollback", {"version_id": "v0"}),
            ):
                assert http.post(f"/v1/models/{route}", json=body).status_code == 200, route
            inputs = {"inputs": [[0.0] * 64]}
            assert http.post("/invocations", json=inputs).status_code == 200
        output = server.output()
        assert output.count("idle ones are closed") == 1
        assert " ERROR " not in output


def test_who_is_being_answered_is_not_hung_up_on(tmp_path: Path) -> None:
    listen = "GET /v1/models/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with with_few_files(tmp_path / "data") as server, contextlib.ExitStack() as kept:
        heard = []
        for _ in range(FILES):
            one = kept.enter_context(connected(server, listen))
            status = one.recv(65536).partition(b"\r\n")[0]
            if status != b"HTTP/1.1 200 OK":
                break
            heard.append(one)
        assert status == b"HTTP/1.1 503 Service Unavailable"
        assert len(heard) >= 8
        heard.pop().close()
        with server.client() as http:
            update = {"parameter_name": "2.bias", "update_data": 0.001}
            # Once the server has taken note that one is gone.
            until(
                lambda: http.post("/v1/models/incremental_update", json=update).status_code == 200,
                pid=server.process.pid,
            )
        for one in heard:
            seen = b""
            while b"event: " not in seen and b'"updated"' not in seen:
                seen += one.recv(65536)


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """While the block runs this process opens nothing."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
    taken: list[int] = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with Ledger.open(sqlite_url(tmp_path / "ledger.db")) as ledger:
        yield ledger.model("m", base={"w": torch.zeros(3)})


def test_a_log_that_cannot_be_looked_at_is_not_called_removed(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    update = IncrementalUpdateRequest("w", 1.0)
    log.apply(update)
    with no_more_files():
        assert log.apply(update).seq == 2
    assert log.apply(update).seq == 3
    assert caplog.records == []


def test_nothing_is_written_without_the_lock_that_cannot_be_opened(log: Log) -> None:
    """The first write opens it; it went on without, beside others who had it."""
    path = Path(f"{log.history.store.home.url.removeprefix('sqlite:///')}-writer")
    with contextlib.closing(Ledger.open(f"sqlite:///{str(path).removesuffix('-writer')}")) as other:
        second = other.model("m")
        with no_more_files(), pytest.raises(StorageUnavailable, match="as many files open"):
            second.apply(IncrementalUpdateRequest("w", 1.0))
        assert second.apply(IncrementalUpdateRequest("w", 1.0)).seq == 1
