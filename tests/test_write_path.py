"""The write path: what callers may send, what names stand for, what may fail and what may not."""

import asyncio
import threading

import numpy as np
import pytest
import torch

from weightledger import (
    Caller,
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    Ledger,
    Log,
    TorchEngine,
)
from weightledger.ledger.errors import IdempotencyMismatch, InvalidRequest, NotFound, StorageFull
from weightledger.ledger.store.attached import Append
from weightledger.ledger.store.sql_events import SqlEvents


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def ledger(url):
    with Ledger.open(url) as opened:
        yield opened


@pytest.fixture
def log(ledger) -> Log:
    return ledger.model("m", base={"w": torch.zeros(3), "v": torch.zeros(2)})


def add(log: Log, value: float = 1.0, **fields):
    return log.apply(IncrementalUpdateRequest("w", value, 1.0, **fields))


def weights(log: Log, position: str = "head") -> list[float]:
    return log.state(position)["w"].tolist()


# What callers may send


@pytest.mark.parametrize(
    "fields",
    [
        {"idempotency_key": 5},
        {"idempotency_key": ""},
        {"idempotency_key": "k" * 256},
        {"expected_seq": True},
        {"expected_seq": -1},
        {"expected_seq": "0"},
        {"request_id": 5},
        {"actor": b"me"},
        {"reason": "\ud800"},
    ],
)
def test_a_malformed_caller_changes_nothing(url, ledger, log, fields) -> None:
    with pytest.raises(InvalidRequest) as refused:
        add(log, **fields)
    assert refused.value.param in fields
    assert log.live.head.seq == 0
    with Ledger.open(url) as again:
        assert again.model("m").live.head.seq == 0


def test_a_recording_is_retried_by_its_contents(log) -> None:
    caller = Caller(idempotency_key="step-1")
    state = {"w": torch.ones(3), "v": torch.zeros(2)}
    first = log.record(state, caller=caller)
    assert log.record(state, caller=caller) == first
    state["w"] += 1
    with pytest.raises(IdempotencyMismatch):
        log.record(state, caller=caller)
    assert log.live.head == first


def test_a_recording_has_the_models_names_and_ties(ledger) -> None:
    shared = torch.zeros(3)
    log = ledger.model("tied", base={"a": shared, "b": shared})
    with pytest.raises(InvalidRequest, match="has no zzz"):
        log.record({"a": shared, "b": shared, "zzz": shared})
    with pytest.raises(InvalidRequest, match="'b' is tied to 'a'"):
        log.record({"a": torch.ones(3), "b": torch.zeros(3)})
    assert log.live.head.seq == 0
    log.record({"a": torch.ones(3), "b": torch.ones(3)})
    assert log.apply(IncrementalUpdateRequest("b", 1.0, 1.0)).body["parameter"] == "a"
    assert log.state()["b"].tolist() == [2.0] * 3


@pytest.mark.parametrize(
    "name", [3, "", " ", "a\nb", "a\0b", "\ud800", "x" * 256, " a", "\x1b[31m"]
)
def test_a_name_that_not_all_can_write_is_no_models(ledger, name) -> None:
    """3 was written into event 0, which nobody could read any more."""
    with pytest.raises(InvalidRequest, match="printable characters"):
        ledger.model(name, base={"w": torch.zeros(3)})
    assert ledger.models() == []


@pytest.mark.parametrize(
    "base",
    [{"w": np.zeros(3)}, {"w": 3}, {"w": None}, {3: torch.zeros(3)}, [torch.zeros(3)], "m.pt"],
)
def test_what_is_no_tensor_is_refused_by_name(ledger, log, base) -> None:
    with pytest.raises(InvalidRequest, match="tensor"):
        ledger.model("n", base=base)
    with pytest.raises((InvalidRequest, NotFound)):
        log.record(base)
    if isinstance(base, dict) and "w" in base:
        with pytest.raises(InvalidRequest, match="'w' is no tensor"):
            log.record({**base, "v": torch.zeros(2)})
    assert (ledger.models(), log.live.head.seq) == (["m"], 0)


def test_a_recording_stands_whatever_the_caller_writes_meanwhile(ledger) -> None:
    moving = torch.zeros(3_000_000)
    log = ledger.model("moving", base={"w": moving})
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            moving[::7] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            log.record({"w": moving})
    finally:
        done.set()
        writer.join()
    live, hashed = log.verify_live()
    assert hashed.value == live.state.value
    assert log.verify().problem is None


# What names stand for


def test_a_seq_is_the_state_after_that_event_even_if_it_names_another(log) -> None:
    add(log)
    named = log.create_initial_version("named late")
    assert weights(log) == weights(log, f"seq:{named.seq}") == [1.0] * 3
    assert weights(log, named.name) == [0.0] * 3
    log.rollback("head")
    assert weights(log) == [1.0] * 3


def test_version_0_is_the_initial_state_whoever_wrote_first(ledger, log) -> None:
    other = ledger.model("m")
    add(log)
    assert other.create_version("mine").name.startswith("v1_")
    first, second = reversed(other.versions())
    assert (first.version_id[:3], first.seq) == ("v0_", 0)
    assert second.seq == 1
    assert weights(log, first.version_id) == [0.0] * 3


def test_rolling_back_to_a_retired_version_activates_the_nearest_listed_one(log) -> None:
    kept = log.create_version("genesis")
    add(log)
    gone = log.create_version("gone")
    add(log)
    log.create_version("newest")
    log.retire_versions(keep=1)  # everything but the newest, which is active
    assert [version.description for version in log.versions()] == ["newest"]
    log.rollback(gone.name)
    assert weights(log) == [1.0] * 3
    assert [version.is_active for version in log.versions()] == [False]
    assert log.live.head.active is None
    assert kept.number == 0


def test_retiring_leaves_as_many_as_asked_beside_an_old_active_one(log) -> None:
    oldest = log.create_version("oldest")
    for n in range(4):
        add(log)
        log.create_version(f"later {n}")
    log.rollback(oldest.name)
    log.retire_versions(keep=2)
    assert [v.description for v in log.versions()] == ["later 3", "oldest"]


def test_two_writers_retire_each_version_once(url) -> None:
    def work(errors: list[Exception]) -> None:
        try:
            with Ledger.open(url) as ledger:
                log = ledger.model("m", base={"w": torch.zeros(3)})
                for n in range(10):
                    log.create_version(f"{n}")
                    log.retire_versions(keep=2)
        except Exception as error:
            errors.append(error)

    errors: list[Exception] = []
    threads = [threading.Thread(target=work, args=(errors,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with Ledger.open(url) as ledger:
        log = ledger.model("m")
        assert len(log.versions()) == 2
        assert log.live.head.counts.versions == 30
        assert log.verify().problem is None


def test_unknown_positions_name_the_forms(log) -> None:
    for position in ("", "seq:٣", "seq:-1", "head~", 5, None):
        with pytest.raises(NotFound, match="expected v3, update_17"):
            log.rollback(position)
    with pytest.raises(NotFound, match="Version v1 not found"):
        log.rollback("v1")


# What may fail


def test_a_listener_that_fails_fails_no_update(log, caplog) -> None:
    def listener(written: object) -> None:
        raise RuntimeError("no metrics today")

    log.subscribe(listener)
    assert add(log).seq == 1
    assert "no metrics today" in caplog.text


def test_an_update_stands_when_its_checkpoint_fails(tmp_path, monkeypatch, caplog) -> None:
    manager = DynamicModelManager(
        TorchEngine(torch.nn.Linear(2, 2)),
        "m",
        config=DynamicUpdateConfig(checkpoint_interval=2, backup_dir=tmp_path),
    )
    store = manager.log.history.store
    append = store.append

    def full(*items: Append) -> None:
        if any(event.kind == "version_created" for event, _, _ in items):
            raise StorageFull("no space is left")
        append(*items)

    def update() -> dict:
        request = IncrementalUpdateRequest("bias", 1.0, 1.0)
        return asyncio.run(manager.apply_incremental_update(request))

    try:
        monkeypatch.setattr(store, "append", full)
        results = [update(), update()]
        assert [result["success"] for result in results] == [True, True]
        assert "no checkpoint after 2 updates" in caplog.text
        assert manager.list_versions() == []
        monkeypatch.undo()
        update()
        newest = manager.list_versions()[0]
        assert newest["description"] == "Checkpoint after 3 updates"
    finally:
        manager.close()


def test_an_evaluator_that_fails_on_the_live_state_leaves_it_unmeasured(tmp_path) -> None:
    calls = 0

    def evaluator(module: torch.nn.Module) -> dict[str, float]:
        nonlocal calls
        calls += 1
        raise ValueError("no data")

    manager = DynamicModelManager(
        TorchEngine(torch.nn.Linear(2, 2)),
        "m",
        config=DynamicUpdateConfig(backup_dir=tmp_path),
        evaluator=evaluator,
    )
    try:
        version = asyncio.run(manager.create_version("unmeasured"))
        assert manager.list_versions()[-1]["version_id"] == version
        request = IncrementalUpdateRequest("bias", 1.0, 1.0)
        result = asyncio.run(manager.apply_incremental_update(request))
        assert result["success"] is False
        assert "the evaluator failed on the candidate: ValueError('no data')" in result["reason"]
        assert "accuracy" not in result["pre_metrics"]
        assert calls > 1
    finally:
        manager.close()


def test_many_updates_that_weigh_nothing_are_anchored_too(log) -> None:
    """Restoring must not come to cost the length of the log."""
    for _ in range(600):
        log.apply(IncrementalUpdateRequest("v", 0.0))
    anchors = [snapshot.node for snapshot in log.history.store.snapshots()]
    assert len(anchors) >= 3
    for node in (150, 450, 600):
        path = log.history.ways.travel(node, lambda base, path: path)
        assert len(path.undo) + len(path.redo) <= 256


def test_moving_opening_and_anchoring_read_the_snapshots_near_by_only(url, monkeypatch) -> None:
    """Their number grows with the log, and so would the time to start and to roll back."""
    with Ledger.open(url) as ledger:
        log = ledger.model("m", base={"w": torch.zeros(3), "v": torch.zeros(2)})
        for number in range(600):
            log.apply(IncrementalUpdateRequest("v", float(number), 1.0, "replace"))
        log.rollback("seq:100")
        add(log)
        assert len(log.history.store.snapshots()) >= 3

    def value(log: Log, position: str = "head") -> float:
        return float(log.state(position)["v"][0])

    def all_of_them(*_: object) -> None:
        raise AssertionError("every snapshot was read")

    monkeypatch.setattr(SqlEvents, "snapshots", all_of_them)
    with Ledger.open(url) as ledger:
        log = ledger.model("m", base={"w": torch.zeros(3), "v": torch.zeros(2)})
        assert value(log) == 99.0
        log.rollback("seq:590")
        assert value(log, "seq:300") == 299.0
        for number in range(300):
            log.apply(IncrementalUpdateRequest("v", float(number), 1.0, "replace"))
        log.rollback("seq:100")
        assert value(log) == 99.0


def test_a_small_update_is_one_transaction_and_no_copy_of_the_model(ledger, monkeypatch) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Linear(64, 10))
    log = ledger.model("small", engine=TorchEngine(module))
    log.apply(IncrementalUpdateRequest("1.weight", 0.1))
    engine = log.projector.engine
    before = {name: engine.tensor(name).data_ptr() for name in log.specs}
    database = log.history.store._database
    write, transactions = database.write, []

    def counted():
        transactions.append(1)
        return write()

    monkeypatch.setattr(database, "write", counted)
    log.apply(IncrementalUpdateRequest("1.weight", torch.randn(10, 64)))
    assert len(transactions) == 1
    moved = {name for name in log.specs if engine.tensor(name).data_ptr() != before[name]}
    assert moved == {"1.weight"}
