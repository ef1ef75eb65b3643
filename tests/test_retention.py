"""Retention: retired, pinned and pruned; what is kept stays exact."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightledger import Caller, DynamicModelManager, DynamicUpdateConfig, Ledger, Log
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.backup import backup, move_blobs
from weightledger.ledger.config import sqlite_url
from weightledger.ledger.errors import InvalidRequest, NotFound, Pruned, SharedBlobs
from weightledger.ledger.history.reader import History
from weightledger.ledger.restoring import restore
from weightledger.ledger.retention import GcReport, collect
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.writing.commands import Pin

MODEL = "m"
HOUR_US = 3_600_000_000

# A payload of this tensor's dense update is far above what stays in the event's row.
LARGE = 300_000


def later() -> int:
    """A clock two hours ahead: everything written so far is older than the grace period."""
    return time.time_ns() // 1000 + 2 * HOUR_US


def gc(history: History, *, dry_run: bool = False) -> GcReport:
    return collect(history, dry_run=dry_run, now_us=later)


def bits(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: lanes(tensor).tobytes() for name, tensor in state.items()}


@pytest.fixture
def log(database_url: str) -> Iterator[Log]:
    with Ledger.open(database_url) as ledger:
        yield ledger.model(MODEL, base={"w": torch.zeros(LARGE), "b": torch.zeros(8)}, alpha=1.5)


@pytest.fixture
def step(log: Log) -> Callable[[], int]:
    generator = torch.Generator().manual_seed(7)

    def move() -> int:
        state = log.state()
        state["w"] = torch.randn(LARGE, generator=generator)
        state["b"] = state["b"] + 1
        return log.record(state).seq

    return move


def test_what_no_version_needs_is_dropped_and_the_rest_stays_exact(
    log: Log, step: Callable[[], int]
) -> None:
    kept, gone = {}, []
    log.create_version("start")
    for number in range(12):
        gone.append(f"seq:{step()}")
        if number in (3, 7):
            version = log.create_version(str(number)).name
            kept[version] = bits(log.state(version))
            gone.pop()
    gone.pop()  # the head
    kept["head"] = bits(log.state())
    promised = gc(log.history, dry_run=True)
    assert bits(log.state(gone[0]))
    done = gc(log.history)
    assert (done.pruned, done.snapshots, done.blobs) == (
        promised.pruned,
        promised.snapshots,
        promised.blobs,
    )
    assert done.pruned > 0 and done.blobs > 0
    stored = {blob.digest for blob in log.history.blobs.stored()}
    for position, expected in kept.items():
        assert bits(log.state(position)) == expected
    for position in gone:
        with pytest.raises(Pruned, match="gc dropped"):
            log.state(position)
    report = verify(log.history)
    assert report.ok, report.problem
    assert report.pruned >= len(gone)
    assert gc(log.history).blobs == 0
    assert {blob.digest for blob in log.history.blobs.stored()} == stored
    step()
    assert verify(log.history).ok


def test_rolling_back_to_a_pruned_state_changes_nothing(log: Log, step: Callable[[], int]) -> None:
    log.create_version("start")
    position = f"seq:{step()}"
    for _ in range(6):
        step()
    gc(log.history)
    before = log.catch_up().seq, bits(log.state())
    with pytest.raises(Pruned, match="gc dropped"):
        log.rollback(position)
    assert (log.catch_up().seq, bits(log.state())) == before


def test_nothing_young_is_dropped(log: Log, step: Callable[[], int]) -> None:
    positions = {f"seq:{step()}": bits(log.state()) for _ in range(6)}
    orphan = b"of a writer whose event is on the way"
    log.history.blobs.put(content_digest(orphan), orphan)
    for dry_run in (True, False):
        report = collect(log.history, dry_run=dry_run)
        assert (report.pruned, report.blobs) == (0, 0)
    assert log.history.blobs.get(content_digest(orphan)) == orphan
    for position, expected in positions.items():
        assert bits(log.state(position)) == expected
    with pytest.raises(InvalidRequest, match="at least 3600"):
        log.gc(grace_s=10)


def test_a_pinned_version_is_never_retired(log: Log, step: Callable[[], int]) -> None:
    step()
    pinned = log.create_version("golden").name
    golden = bits(log.state(pinned))
    log.execute(Pin(pinned))
    for _ in range(4):
        step()
        log.create_version("next")
    log.retire_versions(keep=1)
    assert [v.version_id for v in log.versions() if v.pinned] == [pinned]
    gc(log.history)
    assert bits(log.state(pinned)) == golden
    log.execute(Pin(pinned, pinned=False))
    log.retire_versions(keep=1)
    assert pinned not in [version.version_id for version in log.versions()]
    gc(log.history)
    with pytest.raises(Pruned):
        log.state(pinned)
    with pytest.raises(NotFound, match="not found"):
        log.execute(Pin(pinned))
    assert verify(log.history).ok


WHY = Caller(actor="counsel", reason="case 12")


def test_a_held_version_is_kept_until_its_last_hold_is_released(
    log: Log, step: Callable[[], int]
) -> None:
    step()
    held, golden = log.create_version("held").name, bits(log.state())
    first, second = (log.hold(held, caller=WHY) for _ in range(2))
    for _ in range(4):
        step()
        log.create_version("next")
    log.retire_versions(keep=1)
    assert held in [version.version_id for version in log.versions()]
    gc(log.history)
    assert bits(log.state(held)) == golden
    log.release(f"hold_{first.number}", caller=WHY)
    log.retire_versions(keep=1)
    assert held in [version.version_id for version in log.versions()]
    log.release(f"hold_{second.number}", caller=WHY)
    newest, oldest = log.holds()
    assert (oldest.placed_by, oldest.reason, oldest.stands) == ("counsel", "case 12", False)
    assert (newest.released_by, newest.what.version_id) == ("counsel", held)
    with pytest.raises(InvalidRequest, match="released already, by counsel"):
        log.release(newest.id, caller=WHY)
    log.retire_versions(keep=1)
    gc(log.history)
    with pytest.raises(Pruned):
        log.state(held)
    with pytest.raises(Pruned, match="nothing left to hold"):
        log.hold(held, caller=WHY)
    assert verify(log.history).ok


def test_a_retired_version_can_be_held_before_gc_drops_it(
    log: Log, step: Callable[[], int]
) -> None:
    step()
    retired, state = log.create_version("retired").name, bits(log.state())
    for _ in range(3):
        step()
        log.create_version("next")
    log.retire_versions(keep=1)
    assert retired not in [version.version_id for version in log.versions()]
    log.hold(retired, caller=WHY)
    gc(log.history)
    assert bits(log.state(retired)) == state
    for nameless in ("v99", "update_1", "seq:0"):
        with pytest.raises(NotFound):
            log.hold(nameless, caller=WHY)
    for unknown in ("hold_9", "hold_", "hold_-1", "v0"):
        with pytest.raises(NotFound):
            log.release(unknown, caller=WHY)
    for why in (None, " "):
        with pytest.raises(InvalidRequest, match="says why"):
            log.hold(retired, caller=Caller(actor="counsel", reason=why))


def test_a_rollback_that_comes_between_saves_its_state(
    database_url: str, log: Log, step: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.create_version("start")
    target = f"seq:{step()}"
    expected = bits(log.state(target))
    for _ in range(6):
        step()
    with Ledger.open(database_url) as other:
        history = other.history(MODEL)
        store = history.store
        append = store.append

        def rolled_back_first(*items: Any) -> None:
            monkeypatch.undo()
            log.rollback(target)
            append(*items)

        monkeypatch.setattr(store, "append", rolled_back_first)
        gc(history)
        assert bits(other.history(MODEL).state("head")) == expected
    log.catch_up()
    assert bits(log.state()) == expected
    assert verify(log.history).ok


def test_a_run_that_was_cut_off_is_taken_up_again(
    log: Log, step: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.create_version("start")
    for _ in range(8):
        step()
    blobs = log.history.blobs
    promised = gc(log.history, dry_run=True)
    delete, deleted = type(blobs).delete_unreferenced, 0

    def cut_off(self: Any, digest: bytes, older_than: int, **more: int) -> bool:
        nonlocal deleted
        deleted += 1
        if deleted == 3:
            raise KeyboardInterrupt
        return delete(self, digest, older_than, **more)

    monkeypatch.setattr(type(blobs), "delete_unreferenced", cut_off)
    with pytest.raises(KeyboardInterrupt):
        gc(log.history)
    monkeypatch.undo()
    log.catch_up()
    assert verify(log.history).ok
    assert gc(log.history).blobs == promised.blobs - 2


def test_a_verification_during_which_gc_runs_finds_nothing_wrong(
    database_url: str, log: Log, step: Callable[[], int]
) -> None:
    log.create_version("start")
    for _ in range(8):
        step()
    dropped: list[GcReport] = []
    with Ledger.open(database_url) as other:

        def meanwhile(done: int, total: int) -> None:
            if done == 3 and not dropped:
                dropped.append(gc(other.history(MODEL)))

        report = verify(log.history, meanwhile)
    assert dropped[0].blobs > 0
    assert report.ok, report.problem
    assert report.pruned > 0


MOVES = st.lists(
    st.sampled_from(["step", "small", "version", "pin", "unpin", "retire", "rollback", "gc"]),
    min_size=4,
    max_size=24,
)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(moves=MOVES, data=st.data())
def test_whatever_happens_listed_versions_stay_exact(
    sqlite_url: str, moves: list[str], data: st.DataObject
) -> None:
    name = f"m{time.time_ns()}"
    generator = torch.Generator().manual_seed(1)
    size = 90_000  # a dense step is above what stays in the row, and cheap
    with Ledger.open(sqlite_url) as ledger:
        log = ledger.model(name, base={"w": torch.zeros(size)}, alpha=1.5)
        known: dict[str, dict[str, bytes]] = {log.create_version("v0").name: bits(log.state())}
        for move in moves:
            listed = [version.version_id for version in log.versions()]
            if move == "step":
                log.record({"w": torch.randn(size, generator=generator)})
            elif move == "small":
                state = log.state()
                state["w"][:3] += 1
                log.record(state)
            elif move == "version":
                known[log.create_version("x").name] = bits(log.state())
            elif move in ("pin", "unpin"):
                log.execute(Pin(data.draw(st.sampled_from(listed)), pinned=move == "pin"))
            elif move == "retire":
                log.retire_versions(keep=2)
            elif move == "rollback":
                log.rollback(data.draw(st.sampled_from(listed)))
            else:
                collect(
                    log.history,
                    dry_run=False,
                    now_us=later,
                )
                log.catch_up()
            for version in log.versions():
                assert bits(log.state(version.version_id)) == known[version.version_id]
        report = verify(log.history)
        assert report.ok, report.problem


def test_every_version_on_the_list_can_be_restored_though_the_first_state_is_gone(
    log: Log, step: Callable[[], int]
) -> None:
    """A name that nothing stands behind would be found out on the day it is needed."""
    for _ in range(3):
        step()
    log.snapshot()
    gc(log.history)
    with pytest.raises(Pruned):
        log.state("seq:0")
    with pytest.raises(Pruned, match="gc dropped what the initial state needs"):
        log.create_initial_version()
    seq = log.catch_up().seq
    named = log.create_version("first that is named")
    assert named.number == 1  # 0 is the initial state's, for ever
    assert [event.kind for event in log.events(limit=named.seq - seq)] == [
        "version_created",
        "version_retired",
        "version_created",
    ]
    step()
    log.create_version("second")
    assert [v.version_id[:2] for v in log.versions()] == ["v2", "v1"]
    for version in log.versions():
        assert bits(log.state(version.version_id))
    log.rollback(named.name)
    assert verify(log.history).ok


def test_what_another_model_needs_stays(database_url: str) -> None:
    """The same bytes are one blob for every model: whose gc runs does not decide whose they are."""
    generator = torch.Generator().manual_seed(11)
    states = [{"w": torch.randn(LARGE, generator=generator)} for _ in range(4)]
    with Ledger.open(database_url) as ledger:
        logs = [ledger.model(name, base=states[0], alpha=1.5) for name in ("one", "other")]
        for log in logs:
            for number, state in enumerate(states[1:]):
                log.record(state)
                if log.history.model == "other":
                    log.create_version(str(number))
        one, other = (log.history for log in logs)
        kept = {
            version.version_id: bits(other.state(version.version_id))
            for version in other.versions()
        }
        assert gc(one).pruned
        assert {name: bits(other.state(name)) for name in kept} == kept
        assert verify(other).problem is None
        assert verify(one).problem is None


def test_versions_stay_listed_for_their_least_age_and_a_pin_beyond_it(tmp_path) -> None:
    config = DynamicUpdateConfig(backup_dir=tmp_path, max_versions=2, min_version_age_days=1.0)
    manager = DynamicModelManager(torch.nn.Linear(2, 2), "m", config=config)
    log = manager.log
    for number in range(5):
        log.create_version(f"number {number}")
    assert len(log.versions()) == 5
    assert log.retire_versions(keep=2, min_age_s=3600) == []
    log.execute(Pin("v1"))
    assert [event.number for event in log.retire_versions(keep=2)] == [0, 2, 3]
    assert [version.version_id.partition("_")[0] for version in log.versions()] == ["v4", "v1"]
    manager.close()
    with pytest.raises(InvalidRequest, match="min_version_age_days"):
        DynamicUpdateConfig(min_version_age_days=-1)


# Where others keep blobs, too


def a_ledger(url: str, blob_url: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with Ledger.open(url, blob_url=blob_url) as ledger:
        log = ledger.model(MODEL, base={"w": torch.randn(LARGE, generator=generator)})
        for _ in range(3):
            log.record({"w": torch.randn(LARGE, generator=generator)})


def collected(url: str) -> GcReport:
    with Ledger.open(url) as ledger:
        return gc(ledger.history(MODEL))


def is_whole(url: str) -> bool:
    with Ledger.open(url) as ledger:
        return verify(ledger.history(MODEL)).problem is None


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where blobs lie beside a database."""
    if request.param == "folder":
        return str(tmp_path / "blobs")
    url: str = request.getfixturevalue("bucket_url")
    return url


def test_nothing_is_dropped_where_another_ledger_keeps_its_blobs(
    empty_database_url: str, place: str, tmp_path: Path
) -> None:
    """Two ledgers were given one folder or bucket: gc of the one deleted the other's weights."""
    other = sqlite_url(tmp_path / "other.db")
    a_ledger(empty_database_url, place, 1)
    a_ledger(other, place, 2)
    for url in (empty_database_url, other):
        with pytest.raises(SharedBlobs, match="keeps blobs at the same place"):
            collected(url)
    assert is_whole(empty_database_url)
    assert is_whole(other)
    move_blobs(other, str(tmp_path / "its-own"))
    assert collected(empty_database_url).blobs > 0
    assert collected(other).dry_run is False
    assert is_whole(empty_database_url)
    assert is_whole(other)


def test_a_copy_of_the_database_does_not_drop_what_the_original_needs(
    place: str, tmp_path: Path
) -> None:
    original, copy = tmp_path / "original" / "ledger.db", tmp_path / "copy" / "ledger.db"
    original.parent.mkdir()
    a_ledger(sqlite_url(original), place, 1)
    shutil.copytree(original.parent, copy.parent)
    with Ledger.open(sqlite_url(original)) as ledger:
        log = ledger.model(MODEL)
        log.record({"w": torch.full((LARGE,), 0.1).cumsum(0)})
    with pytest.raises(SharedBlobs, match=re.escape(str(original))):
        collected(sqlite_url(copy))
    assert is_whole(sqlite_url(original))
    with pytest.raises(SharedBlobs, match=re.escape(str(copy))):
        collected(sqlite_url(original))


def test_a_restored_ledger_does_not_drop_what_the_first_needs(place: str, tmp_path: Path) -> None:
    url, again = sqlite_url(tmp_path / "ledger.db"), sqlite_url(tmp_path / "again.db")
    a_ledger(url, place, 1)
    backup(url, tmp_path / "backup")
    restore(tmp_path / "backup", again, blob_url=place)
    for one in (url, again):
        with pytest.raises(SharedBlobs):
            collected(one)


def test_a_ledger_that_was_moved_with_its_blobs_collects_again(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    a_ledger(sqlite_url(old / "ledger.db"), str(old / "blobs"), 1)
    old.rename(new)
    url = sqlite_url(new / "ledger.db")
    move_blobs(url, str(new / "blobs"))
    assert collected(url).blobs > 0
    assert is_whole(url)


def test_a_ledger_whose_database_alone_was_moved_says_how_to_collect(tmp_path: Path) -> None:
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    a_ledger(sqlite_url(old), str(tmp_path / "blobs"), 1)
    old.rename(new)
    with pytest.raises(SharedBlobs) as refused:
        collected(sqlite_url(new))
    (note,) = re.findall(r"delete (\S+)$", str(refused.value))
    Path(note).unlink()
    assert collected(sqlite_url(new)).blobs > 0
    assert is_whole(sqlite_url(new))
