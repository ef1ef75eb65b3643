"""A database whose host swallows packets: who asks whether it answers is answered all the same."""

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
import sqlalchemy as sa
import torch

from tests.conftest import new_database
from tests.in_process import listening
from tests.waiting import PATIENCE_S, until
from weightledger import DynamicModelManager, DynamicUpdateConfig
from weightledger.api.rest import asking
from weightledger.api.rest.asking import Asking
from weightledger.ledger.errors import StorageError
from weightledger.ledger.sql import postgres


class Wire:
    """TCP connections to a PostgreSQL server, over which nothing comes while it is `cut`."""

    def __init__(self, there: str) -> None:
        self._there = there
        self.cut = threading.Event()
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                ours = self._listener.accept()[0]
                theirs = socket.socket(socket.AF_UNIX)
                theirs.connect(self._there)
                self._threads.append(threading.Thread(target=self._carry, args=(ours, theirs)))
                self._threads[-1].start()

    def _carry(self, ours: socket.socket, theirs: socket.socket) -> None:
        with ours, theirs, contextlib.suppress(OSError):
            while not self._closing.is_set():
                for end in select.select([ours, theirs], [], [], 0.05)[0]:
                    if self.cut.wait(0) or self._closing.is_set():
                        self._closing.wait(0.05)
                        continue
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    (theirs if end is ours else ours).sendall(data)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Whole again in the end, since what waits for an answer lets nobody else end."""
        try:
            yield
        finally:
            self.cut.clear()

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()


@pytest.fixture
def wire(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Wire, str]]:
    """The wire, and the URL of an empty database at its other end."""
    with new_database(request, "postgresql", tmp_path) as url:
        parts = urlsplit(url)
        folder = parse_qs(parts.query)["host"][0]
        made = Wire(f"{folder}/.s.PGSQL.5432")
        name = parts.path.removeprefix("/")
        try:
            yield made, f"postgresql://postgres@127.0.0.1:{made.port}/{name}?sslmode=disable"
        finally:
            made.close()


def test_probes_and_metrics_answer_while_the_database_does_not(
    wire: tuple[Wire, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "BOUND_S", 0.5)
    between, url = wire
    config = DynamicUpdateConfig(backup_dir=tmp_path, database_url=url)
    manager = DynamicModelManager(torch.nn.Linear(2, 2), "m", config=config)
    try:
        with (
            listening(manager) as address,
            httpx2.Client(base_url=address, timeout=60) as http,
            between.restored(),
        ):
            until(lambda: http.get("/readyz").status_code == 200)
            between.cut.set()
            assert [http.get(path).status_code for path in ("/metrics", "/readyz")] == [200, 503]
            # Several of each: they do not wait for one another.
            paths = ["/readyz", "/health", "/metrics"] * 5
            with ThreadPoolExecutor(len(paths)) as pool:
                replies = dict(zip(paths, pool.map(http.get, paths), strict=True))
            assert replies["/readyz"].status_code == replies["/health"].status_code == 503
            assert replies["/readyz"].json()["reason"] == "the database does not answer"
            assert replies["/metrics"].status_code == 200
            assert 'weightledger_ready{model_name="m"} 0.0' in replies["/metrics"].text
            assert http.get("/livez").status_code == 200
            between.cut.clear()
            until(lambda: http.get("/readyz").status_code == 200)
    finally:
        manager.close()


def test_no_more_questions_wait_than_there_are_places() -> None:
    asked: list[None] = []
    release = threading.Event()

    def question() -> int:
        asked.append(None)
        release.wait(PATIENCE_S)
        return 7

    ask = Asking(question, bound_s=0.01)
    for _ in range(20):
        with pytest.raises(StorageError, match="no answer from the database within"):
            ask()
    assert len(asked) == 8
    release.set()
    assert until(lambda: _answered(ask)) == 7


def _answered(ask: Asking[int]) -> int | None:
    with contextlib.suppress(StorageError):
        return ask()
    return None


def test_what_the_question_raises_is_raised() -> None:
    def question() -> int:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        Asking(question)()


def test_a_url_has_its_own_patience_where_it_says_so() -> None:
    url = sa.make_url("postgresql://h/x?connect_timeout=3")
    assert "connect_timeout" not in postgres._patience(url)
    assert postgres._patience(url)["tcp_user_timeout"] == 30_000
