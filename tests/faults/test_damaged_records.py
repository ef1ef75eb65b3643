"""Records of what was found, named, pinned, decided: one that is damaged stops no server.

The way to the head needs none of them. Whatever a start would have read in one is then taken the
strictest safe way, a line of the log says which and how, and `verify` names it.
"""

import asyncio
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults import folders, models
from tests.faults.folders import MODEL
from tests.planned import Planned
from weightledger import (
    Caller,
    DynamicModelManager,
    DynamicUpdateConfig,
    Plan,
    TorchEngine,
    Verdict,
)
from weightledger.api.server.serve import name_initial
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import AwaitingApproval, CorruptLedger
from weightledger.ledger.events import KINDS, STATE_CHANGING, leaf_hash
from weightledger.ledger.events.bodies import KeyRotation, Observed, Pruning, Repair
from weightledger.ledger.log import Log
from weightledger.ledger.monitoring.trial_log import is_promoted
from weightledger.ledger.retention import collect
from weightledger.ledger.store import EventFilter
from weightledger.ledger.writing.approval_commands import Decide, Lapse, RequestApproval
from weightledger.ledger.writing.commands import (
    ChangePolicy,
    CreateVersion,
    Observe,
    Pin,
    PlaceHold,
    Release,
    RollBack,
)
from weightledger.ledger.writing.proposed import stateless

TRIAL = {"beside": 1, "share": 0.1, "requests": [3, 4]}
ANA, BEN = Caller(actor="ana", reason="why"), Caller(actor="ben", reason="so")


def record(log: Log, body: Any, number: int | None = None) -> None:
    """An event of that body, as whoever makes such events would have written it."""
    log.execute(Planned(lambda staged: stateless(staged, body, number=number)))


def make_folder(folder: Path) -> Path:
    """A log with every kind of event that changes no state, the last of each included."""
    folders.make_folder(folder)
    with folders.opened(folder) as ledger:
        log = ledger.model(MODEL, engine=TorchEngine(models.factory()), on_mismatch="ledger")
        head = log.history.head().seq
        refused = Verdict(reason="Automatic rollback: worse")
        log.execute(Planned(lambda staged: Plan({"operation": "replace"}, verdict=refused)))
        for name in ("one", "two", "three"):
            log.create_version(name)
        log.execute(Pin("v1", caller=ANA))
        log.execute(Pin("v1", pinned=False, caller=ANA))
        log.execute(Pin("v1", caller=ANA))
        log.execute(PlaceHold("v2", ANA))
        log.execute(PlaceHold("v3", ANA))
        log.execute(Release("hold_1", BEN))
        log.retire_versions(keep=3)
        log.execute(ChangePolicy("safe", {}, ANA))
        log.execute(Observe(Observed(head, "promoted", "safe", "why", {"trial": TRIAL}), ANA))
        for _ in range(3):
            with pytest.raises(AwaitingApproval):
                log.execute(RequestApproval(RollBack("seq:0", ANA)))
        log.execute(Decide("approval_0", False, BEN))
        log.execute(Decide("approval_1", True, BEN))
        log.execute(Lapse("approval_1", "gone"))
        log.start_rollout("v2", 10, caller=ANA)
        log.redact("event_5", caller=ANA)
        record(log, Repair({"touches": 1}))
        record(log, Pruning(((4, 4),), (), 3, 1), 0)
        record(log, KeyRotation(bytes(32), bytes([1] * 32)))
        log.execute(Observe(Observed(1, "superseded", "safe"), ANA))  # a bad head stops a start
    return folder


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("records") / "data")


def lasts(folder: Path) -> Mapping[str, int]:
    """The last event of each kind."""
    with folders.opened(folder) as ledger:
        events = ledger.history(MODEL).events(newest_first=False)
        return {event.kind: event.seq for event in events[:-1]}


def flipped(connection: sqlite3.Connection, seq: int) -> None:
    folders.flip(connection, "events", "header", folders.event(seq))


def emptied(connection: sqlite3.Connection, seq: int) -> None:
    """A body that says nothing, under a hash that fits it."""
    where = folders.event(seq)
    (old,) = connection.execute(f"SELECT header FROM events WHERE {where}").fetchone()
    fields = json.loads(old)
    body = json.dumps(fields["body"], separators=(",", ":"), ensure_ascii=False).encode()
    assert old.count(body) == 1
    new = old.replace(body, b"{}")
    connection.execute(
        f"UPDATE events SET header = ?, event_hash = ? WHERE {where}", (new, leaf_hash(new))
    )


DAMAGES = {"flipped": flipped, "emptied": emptied}
# What a start reads, and says that it could not; of these also what their bodies say.
READ = {"version_created", "pruned", "policy_changed", "approval_requested", "first version"}
SAID = {"version_created", "pruned", "policy_changed"}
KINDS_BESIDE = [kind for kind in KINDS if kind not in STATE_CHANGING]


def started(folder: Path, policy: str) -> DynamicModelManager:
    config = DynamicUpdateConfig(database_url=folders.url_of(folder), policy=policy)
    return DynamicModelManager(
        TorchEngine(models.factory()), MODEL, config=config, on_mismatch="ledger"
    )


@pytest.mark.parametrize(("damage", "policy"), [("flipped", "safe"), ("emptied", "specification")])
@pytest.mark.parametrize("kind", [*KINDS_BESIDE, "first version"])
def test_a_damaged_record_stops_no_start(
    pristine: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    damage: str,
    policy: str,
) -> None:
    folder = folders.copy_folder(pristine, tmp_path / "data")
    seq = lasts(folder)["update_rejected"] + 1 if kind == "first version" else lasts(folder)[kind]
    with folders.without_triggers(folder) as connection:
        DAMAGES[damage](connection, seq)
    manager = started(folder, policy)
    try:
        asyncio.run(name_initial(manager))
        change = folders.request("2.bias", torch.ones(4))
        result = asyncio.run(manager.apply_incremental_update(change))
        assert result["success"]
    finally:
        manager.close()
    with folders.opened(folder) as ledger:
        report = verify(ledger.history(MODEL))
    assert report.problem is not None
    assert report.bad_seq in (seq, seq + 1)
    if kind in (READ if damage == "flipped" else SAID):
        assert any(f"event {seq}" in message for message in caplog.messages)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_policy_that_is_not_known_any_more_is_recorded_anew(
    pristine: Path, tmp_path: Path, damage: str
) -> None:
    folder = folders.copy_folder(pristine, tmp_path / "data")
    seq = lasts(folder)["policy_changed"]
    with folders.without_triggers(folder) as connection:
        DAMAGES[damage](connection, seq)
    for _ in range(2):  # and once only
        manager = started(folder, "safe")
        manager.close()
    with folders.opened(folder) as ledger:
        since = EventFilter(kinds=["policy_changed"], min_seq=seq + 1)
        (anew,) = ledger.history(MODEL).events(since)
    assert (anew.body["policy"], anew.body["before"]) == ("safe", "unknown")


def test_gc_drops_nothing_where_it_is_not_known_what_was_dropped(
    pristine: Path, tmp_path: Path
) -> None:
    folder = folders.copy_folder(pristine, tmp_path / "data")
    seq = lasts(folder)["pruned"]
    with folders.without_triggers(folder) as connection:
        flipped(connection, seq)
    with folders.opened(folder) as ledger:
        history = ledger.history(MODEL)
        with pytest.raises(CorruptLedger, match="nothing was dropped: 1 of the 1 events"):
            collect(history, dry_run=False)
        assert history.state("head").keys() == models.factory().state_dict().keys()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_verdict_that_cannot_be_read_promotes_nothing(
    pristine: Path, tmp_path: Path, damage: str
) -> None:
    folder = folders.copy_folder(pristine, tmp_path / "data")
    verdict, of = lasts(folder)["observed"], folders.HEAD
    with folders.opened(folder) as ledger:
        assert is_promoted(ledger.history(MODEL), of)
    with folders.without_triggers(folder) as connection:
        DAMAGES[damage](connection, verdict)
    with folders.opened(folder) as ledger:
        assert not is_promoted(ledger.history(MODEL), of)


@pytest.mark.parametrize("what", ["approval_requested", "approval_decided"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_an_approval_that_cannot_be_read_is_not_carried_out_and_others_are(
    tmp_path: Path, what: str, damage: str
) -> None:
    with folders.opened(tmp_path) as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(2)})
        for name in ("second", "first"):
            with pytest.raises(AwaitingApproval):
                log.execute(RequestApproval(CreateVersion(name, ANA)))
        for number in (0, 1):
            log.execute(Decide(f"approval_{number}", True, BEN))
        seq = log.events(kinds=[what])[1].seq  # of approval_0
    with folders.without_triggers(tmp_path) as connection:
        DAMAGES[damage](connection, seq)
    with folders.opened(tmp_path) as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(2)})
        log.carry_out_approved()
        assert [version.description for version in log.versions()] == ["first"]
