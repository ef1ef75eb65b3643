"""Stores and writers for the conformance suites."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.homes import BucketHome, DatabaseHome, FolderHome, Home
from tests.conftest import new_database
from tests.forked import forking
from tests.waiting import PATIENCE_S
from weightledger.ledger.events import (
    REGISTERED,
    ROLLED_BACK,
    UPDATE_REJECTED,
    UPDATED,
    VERSION_CREATED,
    VERSION_PINNED,
    VERSION_RETIRED,
    VERSION_UNPINNED,
    Annotation,
    BlobRef,
    Draft,
    Event,
    seal,
)
from weightledger.ledger.events.bodies import BODIES
from weightledger.ledger.store import EventStore
from weightledger.ledger.store.attached import Append, Attached
from weightledger.ledger.store.sql_store import SqlStore
from weightledger.ledger.tensors.digest import content_digest

START = 1_700_000_000_000_000


@pytest.fixture
def store(database_url: str) -> Iterator[SqlStore]:
    """A store without any model."""
    opened = SqlStore.open(database_url)
    yield opened
    opened.close()


@pytest.fixture(params=["sqlite", "postgresql", "folder", "s3"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    """Every kind of blob store, empty."""
    if request.param == "folder":
        yield FolderHome(f"file://{tmp_path}/blobs")
    elif request.param == "s3":
        yield BucketHome(request.getfixturevalue("bucket_url"))
    else:
        with new_database(request, request.param, tmp_path) as url:
            store = SqlStore.open(url)
            yield DatabaseHome(url, store)
            store.close()


_METRICS: dict[str, Any] = {"pre_metrics": {}, "post_metrics": {}}
PLAIN: dict[str, dict[str, Any]] = {
    REGISTERED: {"tensors_total": 3, "bytes": 12},
    UPDATED: {"tensors": [], "delta_norm": None, **_METRICS},
    UPDATE_REJECTED: {"reason": "no", "evidence": {}, **_METRICS},
    ROLLED_BACK: {
        "to": "seq:1",
        "to_event": 1,
        "to_seq": 1,
        "from_seq": 2,
        "version_id": None,
        "cause": "manual",
    },
    VERSION_CREATED: {"description": "a state", "performance_metrics": {}},
    VERSION_RETIRED: {"version_id": "v0"},
    VERSION_PINNED: {"version_id": "v0", "number": 0},
    VERSION_UNPINNED: {"version_id": "v0", "number": 0},
}
"""What bodies say where a test does not care."""


@dataclass
class Writer:
    """Appends events to one model as the write path does, and remembers what it appended."""

    store: SqlStore
    model: str = "m"
    last: Event | None = None
    parameters: tuple[str, ...] = ("weights/a.weight", "weights/a.bias", "weights/b.weight")

    @property
    def events(self) -> EventStore:
        """The model's events, once it is registered."""
        return self.store.model(self.model)

    def add(self, item: Append) -> None:
        """Make an event durable, the first by registering its model."""
        if item[0].seq == 0:
            self.store.register(item)
        else:
            self.events.append(item)

    def item(
        self,
        kind: str = UPDATED,
        *,
        payload: bytes = b"",
        as_blob: bool = False,
        annotation: Annotation | None = None,
        parameters: tuple[str, ...] | None = None,
        now: int | None = None,
        **draft: Any,
    ) -> Append:
        """The next event with all that belongs to it, not appended yet."""
        names = ("request_id", "idempotency_key", "request_digest")
        asked = {name: draft.pop(name) for name in names if name in draft}
        seq = self.last.seq + 1 if self.last else 0
        kind = kind if self.last else REGISTERED
        changes = kind in (REGISTERED, UPDATED)
        after = content_digest(b"%d %s" % (seq, self.model.encode()))
        draft.setdefault(
            "state_after", after if changes or not self.last else self.last.state_after
        )
        body = PLAIN[kind] | draft.pop("body", {})
        if kind == VERSION_CREATED and self.last is not None:
            last = self.last
            names = {"seq": last.state_seq, "node": last.node, "state": last.state_after.hex()}
            body |= {"names": names}
        ref = BlobRef(content_digest(payload), len(payload))
        note = annotation or Annotation()
        made = Draft(
            body=BODIES[kind].from_json(body),
            payload=(ref,) if payload else (),
            **draft,
        )
        now = START + seq if now is None else now
        attached = Attached(
            self.parameters if parameters is None else parameters,
            payload if payload and not as_blob else None,
            {ref.digest: payload} if payload and as_blob else {},
        )
        return seal(made, self.model, self.last, now, annotation=note, **asked), note, attached

    def append(self, kind: str = UPDATED, **options: Any) -> Event:
        """Append the next event."""
        item = self.item(kind, **options)
        self.add(item)
        self.last = item[0]
        return item[0]


@pytest.fixture
def writer(store: SqlStore) -> Writer:
    """Writes to the model "m", which is registered."""
    made = Writer(store)
    made.append()
    return made


@pytest.fixture
def new_writer() -> type[Writer]:
    """Makes writers to other stores and models."""
    return Writer


class Processes:
    """Runs pieces of Python in processes of their own, which have imported the store already."""

    def __init__(self) -> None:
        self.context = forking()

    def start(self, source: str, names: Mapping[str, Any]) -> Any:
        process = self.context.Process(target=exec, args=(source, dict(names)))
        process.start()
        return process

    def race(self, source: str, names: Mapping[str, Any], count: int = 2) -> list[int]:
        """Run `source` in several processes that pass `barrier.wait()` together; exit codes."""
        barrier = self.context.Barrier(count, timeout=PATIENCE_S)
        started = [self.start(source, {**names, "barrier": barrier}) for _ in range(count)]
        for process in started:
            process.join(PATIENCE_S)
        return sorted(process.exitcode for process in started)


@pytest.fixture(scope="session")
def processes() -> Processes:
    return Processes()
