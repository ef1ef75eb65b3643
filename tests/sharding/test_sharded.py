"""Models that are cut over ranks: real processes over gloo, FSDP2 and DTensors."""

import base64
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import warm
from tests.conftest import EMPTY, new_database
from tests.sharding.ranks import MODEL, net
from weightledger import Ledger
from weightledger.ledger.audit.report import Report
from weightledger.ledger.audit.states import rebuild
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import CorruptLedger, InvalidRequest
from weightledger.ledger.events import Draft, decode, seal
from weightledger.ledger.events.bodies import Updated, body_of
from weightledger.ledger.events.bodies.shards import Index, Shards
from weightledger.ledger.parallel import untold
from weightledger.ledger.parallel.shares import shares
from weightledger.ledger.projection.anchoring import MIN_SPACING_BYTES, way_to_anchor
from weightledger.ledger.sharding.limits import ShardLimits
from weightledger.ledger.store import sharded_payloads
from weightledger.ledger.tensors.state import StateDigest
from weightledger.ledger.writing.commands import command_digest

FIXTURES = Path(__file__).parent.parent / "fixtures/events"

Told = list[dict[str, Any]]


def run_ranks(
    scenario: str,
    world: int,
    folder: Path,
    url: str,
    blob_url: str | None,
    died: Sequence[int] = (),
) -> Told:
    """What each rank wrote down; those in `died` are killed on the way."""
    program = (
        "import sys, json; from tests.sharding.drawn import drawn; "
        "from tests.sharding.ranks import main; main(*json.loads(sys.argv[1]), [drawn])"
    )
    files = [tempfile.TemporaryFile() for _ in range(world)]  # noqa: SIM115
    processes = [
        warm.begin(
            json.dumps([scenario, rank, world, str(folder), url, blob_url]),
            program=program,
            log=files[rank],
        )
        for rank in range(world)
    ]
    for rank, (process, file) in enumerate(zip(processes, files, strict=True)):
        status = process.wait()
        with file:
            file.seek(0)
            assert status == (-9 if rank in died else 0), file.read().decode()
    return [
        json.loads((folder / f"rank-{rank}.json").read_text())
        for rank in range(world)
        if rank not in died
    ]


def same_by_one_process(folder: Path, states: Sequence[dict[str, torch.Tensor]]) -> list[bytes]:
    """The digests that one process with the whole model comes to."""
    with Ledger.open(f"sqlite:///{folder}/one.db") as ledger:
        log = ledger.model(MODEL, base=states[0])
        return [log.live.head.state_after, *(log.record(one).state_after for one in states[1:])]


@pytest.mark.parametrize(("kind", "world"), [("sqlite", 2), ("postgresql", 4)])
def test_ranks_record_what_one_process_would(
    kind: str, world: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """State, digest and bits; on two ranks with blobs in a folder, and on two pairs of replicas."""
    with new_database(request, kind, tmp_path, template=EMPTY) as url:
        blob_url = str(tmp_path / "blobs") if kind == "sqlite" else None
        told = run_ranks("fsdp", world, tmp_path, url, blob_url)
        assert [one["seqs"] for one in told] == [[1, 2, 3, 4, 5, 7]] * world
        name, words, rank = told[0]["refused"]
        assert (name, rank) == ("ReplicasDiverge", world - 1)
        assert "'steps'" in words and f"rank {world - 1}" in words
        assert all(one["refused"][0] == "ReplicasDiverge" for one in told)
        states = torch.load(tmp_path / "states.pt")
        tied = {name.replace("low", "tied") for name in states[0] if name.startswith("low")}
        firsts = [{n: t for n, t in state.items() if n not in tied} for state in states]
        expected = same_by_one_process(tmp_path, firsts)
        with Ledger.open(url) as ledger:
            history = ledger.history(MODEL)
            report = verify(history)
            assert report.ok, report.problem
            assert history.head().seq == 7
            aliases = history.head_state().aliases
            assert {one.removeprefix("weights/") for one in aliases} == tied
            for seq in range(5):
                state = history.state(f"seq:{seq}")
                assert all(_same(state[name], states[seq][name]) for name in states[seq])
            assert [_without_ties(history, seq) for seq in range(5)] == expected[:5]
            assert all(_same(states[5][name], states[2][name]) for name in states[2])
            event = history.require(1)
            assert event.schema == 3 and len(event.payload) <= world + 1
            assert history.require(5).changes == () and history.require(5).payload == ()
            assert history.require(1).body["evidence"] == {"evaluated": False}
            _shares_read_it_too(history, report)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _without_ties(history: Any, seq: int) -> bytes:
    """The digest of a state as that of a model which has no second names."""
    state = history.digests(seq)
    return StateDigest(state.specs.values(), state.digests).value


def _shares_read_it_too(history: Any, report: Report) -> None:
    """By ranges of what the ranks wrote."""
    specs = history.head_state().specs
    parts = shares({name: spec.nbytes for name, spec in specs.items()}, 2)
    assert len(parts) == 2
    tensors = 0
    for share in parts:
        partly = Report(MODEL)
        rebuild(history, partly, untold, 8, 8, share)
        tensors += partly.tensors
        assert partly.states == report.states
    assert tensors == report.tensors


def test_every_placement_is_recorded_and_restored(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    told = run_ranks("placements", 4, tmp_path, url, None)
    assert [(one["seqs"], one["wrong"]) for one in told] == [([1], [])] * 4
    assert all(one["refused"][:1] == ["InvalidRequest"] for one in told)
    assert "partial sum" in told[0]["refused"][1]
    assert all(one["missing"][0] == "NotFound" for one in told)
    assert all(one["diverged"][0] == "ReplicasDiverge" for one in told)
    assert told[0]["diverged"][2] == 3 and "'2.3'" in told[0]["diverged"][1]
    given = torch.load(tmp_path / "states.pt")
    before = {name: tensor / 2 for name, tensor in given.items()}
    with Ledger.open(url) as ledger:
        history = ledger.history(MODEL)
        assert verify(history).ok
        assert history.head().seq == 1
        digests = [history.require(seq).state_after for seq in (0, 1)]
    assert digests == same_by_one_process(tmp_path, [before, given])


def test_ranks_keep_to_limits_and_keys_and_write_snapshots(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ranks.db"
    told = run_ranks("judged", 2, tmp_path, url, None)
    for one in told:
        assert one["seqs"] == [1, 1, 2, 3, 4, 5, 6, 7, 8] and one["again"] == 1
        assert one["other"][0] == "IdempotencyMismatch"
        assert [error[0] for error in one["refused"]] == [
            *("InvalidRequest", "OperationDisabled", "InvalidRequest", "InvalidRequest")
        ]
        assert "cannot wait for a second person" in one["refused"][0][1]
    with Ledger.open(url) as ledger:
        history = ledger.history(MODEL)
        first, nan, long = (history.require(seq) for seq in (1, 2, 3))
        assert first.idempotency_key == "step 1"
        tensors = {name: digest.hex() for name, digest in history.digests(1).digests.items()}
        asked = {"tensors": tensors, "metadata": None}
        assert first.request_digest == command_digest("record_sharded", asked)
        limits = first.body["evidence"]["limits"]
        assert limits["norm"] == first.body["delta_norm"] and limits["max_norm"] == 2000
        assert first.body["evidence"]["evaluated"] is False
        assert (nan.kind, long.kind) == ("update_rejected", "update_rejected")
        assert nan.body["reason"] == "1 values are NaN or infinite, in first.weight"
        assert nan.body["evidence"]["limits"]["not_finite"] == {"first.weight": 1}
        assert "norm is" in long.body["reason"] and long.state_after == first.state_after
        anchors = [one.node for one in history.store.snapshots()]
        assert anchors[0] == 0 and len(anchors) >= 3
        model = sum(spec.nbytes for spec in history.head_state().specs.values())
        for seq in (1, *range(4, 9)):  # restoring any state reads no more than α allows
            assert way_to_anchor(history, seq) < max(model, MIN_SPACING_BYTES) or seq in anchors
        report = verify(history)
        assert report.ok, report.problem
        state, last = history.state("head"), torch.load(tmp_path / "states.pt")
        assert all(_same(state[name], last[name]) for name in last)


def test_limits_are_possible() -> None:
    with pytest.raises(InvalidRequest, match="max_norm must be above 0"):
        ShardLimits(max_norm=0.0)


def _killed(tmp_path: Path, victim: int, at: int) -> tuple[Told, int]:
    folder = tmp_path / f"{victim}-{at}"
    folder.mkdir()
    (folder / "kill.json").write_text(json.dumps([victim, at]))
    url = f"sqlite:///{folder}/ledger.db"
    told = run_ranks("killed", 2, folder, url, str(folder / "blobs"), died=[victim])
    with Ledger.open(url) as ledger:
        history = ledger.history(MODEL)
        assert verify(history).ok
        return told, history.head().seq


@pytest.mark.parametrize(("victim", "at"), [(1, 2), (1, 7), (0, 7)])
def test_a_killed_rank_leaves_no_event(tmp_path: Path, victim: int, at: int) -> None:
    """The other one is told, and has recorded nothing."""
    told, head = _killed(tmp_path, victim, at)
    assert head == 0
    assert told[0]["refused"][0] == "RankLost"


@pytest.mark.soak
def test_a_rank_killed_at_any_step_leaves_no_event_or_all_of_it(tmp_path: Path) -> None:
    heads = set()
    for victim in (0, 1):
        for at in range(1, 9):
            told, head = _killed(tmp_path, victim, at)
            refused = told[0]["refused"]
            heads.add(head)
            if refused is not None:
                assert refused[0] in ("RankLost", "OutcomeUnknown")
            if refused is None or head == 1:
                assert head == 1 and (refused is None or refused[0] == "OutcomeUnknown")
    assert heads == {0, 1}


def test_what_ranks_wrote_is_read_for_ever() -> None:
    """An event of the first release that had such, and its payload, from the bytes it stored."""
    frozen = json.loads((FIXTURES / "sharded.json").read_text())
    first, event = (decode(header.encode()) for header in frozen["headers"])
    body = body_of(event, Updated)
    draft = Draft(body, event.state_after, payload=event.payload)
    assert seal(draft, event.model, first, event.recorded_at).header == event.header
    assert event.schema == 3 and body.shards == Shards(2, 64)
    payload = base64.b64decode(frozen["payload"])
    assert sharded_payloads.is_sharded(event)
    assert sharded_payloads.in_order(event, payload).decode() == frozen["in_order"]
    with pytest.raises(CorruptLedger, match="payload of event 1"):
        sharded_payloads.in_order(event, payload[:-1] + b"\1")


def test_an_index_fits_its_payload_or_is_refused() -> None:
    order = np.array([[0, 1], [1, 0]])
    lengths = np.array([[3, 4], [5, 0]])
    data = Index(order, lengths).written()
    total = 12 + len(data)
    assert len(data) == 64
    index = Index.read(data, 2, [7, 5], total)
    # Rank 0 wrote 3 bytes, rank 1 then 4 and 5.
    assert index.spans() == [[(0, 3), (3, 7)], [(7, 12), (3, 3)]]
    for ranks, sizes, size, bytes_ in (
        (2, [7, 5], total + 1, data),
        (2, [7, 4], total, data),
        (4, [12], total, data),
        (2, [7], total, data),
        (2, [7, 5], total, b"\xff" * 64),
        (2, [7, 5], total, b"\0" * 64),
        (0, [], 0, b""),
    ):
        with pytest.raises(CorruptLedger, match="index of what its ranks wrote"):
            Index.read(bytes_, ranks, sizes, size)


def test_without_a_process_group_that_is_said(tmp_path: Path) -> None:
    with (
        Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger,
        pytest.raises(InvalidRequest, match="no process group"),
    ):
        ledger.sharded(MODEL, net())
