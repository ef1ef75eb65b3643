"""The prepare gate beside an inference server: its own workers try an update before it is recorded.

Workers of the older surface have no model when they are told what to do: they read the proposal and
verify it, and what their server would not load shows when it is published.
"""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.replica import MODEL, QUERY, Replica, driving, update
from tests.engines.test_serve import until_ready
from tests.engines.tiny_model import WIDTH, checkpoint
from tests.serving import Server
from tests.waiting import until
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.engines.vllm import StateRef, reading
from weightledger.ledger.engines.vllm.reading import proposed
from weightledger.ledger.errors import EngineUnavailable
from weightledger.ledger.events import Event
from weightledger.ledger.writing.policy import Policy, Preparing

TOO_MUCH = "this kernel takes no weight above 999"


def update_of(value: float) -> IncrementalUpdateRequest:
    return IncrementalUpdateRequest(QUERY, [[value] * WIDTH] * WIDTH, learning_rate=1.0)


Propose = Callable[[IncrementalUpdateRequest], tuple[Event, bytes]]


@pytest.fixture
def proposal(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Propose:
    """An update as a writer proposes it: worked out on a copy of the log."""

    def make(request: IncrementalUpdateRequest) -> tuple[Event, bytes]:
        copy = tmp_path_factory.mktemp("copy") / "ledger.db"
        with (
            contextlib.closing(sqlite3.connect(folder / "ledger.db")) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        with Ledger.open(f"sqlite:///{copy}") as ledger:
            log = ledger.model(MODEL)
            event = log.apply(request)
            return event, log.history.store.payload(event)

    return make


def test_workers_try_what_is_proposed_and_serve_what_they_did(
    replica: Replica, folder: Path, proposal: Propose
) -> None:
    with driving(replica, folder) as manager:
        manager.log.apply(update())
        before = replica.answers()
        store = manager.log.history.store.proposals

        def rehearse(request: IncrementalUpdateRequest) -> bytes:
            event, payload = proposal(request)
            name = store.propose(event.header, payload, [("gpu-1", 1)], 600)
            digest = manager.log.rehearse(event, payload, name)
            assert digest == event.state_after
            return digest

        rehearse(update(2))
        if replica.surface == "vllm":
            with pytest.raises(EngineUnavailable, match=TOO_MUCH):
                rehearse(update_of(1000.0))
        else:
            rehearse(update_of(1000.0))
        assert replica.answers() == before
        event, payload = proposal(update(2))
        with pytest.raises(EngineUnavailable, match="proposal gone is over"):
            manager.log.rehearse(event, payload, "gone")
        # A server that does not show what the update is on is asked first, and says so.
        replica.kill()
        replica.start()
        with pytest.raises(EngineUnavailable, match="it was restarted"):
            rehearse(update(2))
        manager.log.look_after()
        rehearse(update(2))
        replica.kill()
        with pytest.raises(EngineUnavailable, match=replica.url):
            rehearse(update(2))


def test_layers_are_tried_some_at_a_time_and_never_cut(
    folder: Path,
    proposal: Propose,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = f"sqlite:///{folder / 'ledger.db'}"
    with Ledger.open(database) as ledger:
        log = ledger.model(MODEL, base=checkpoint())
        event, payload = proposal(update())
        name = log.history.store.proposals.propose(event.header, payload, [], 600)
        target = StateRef(event.seq, event.state_after)
        monkeypatch.setattr(reading, "_TOGETHER_BYTES", 1)
        since = log.live.state.value
        (layer,) = proposed(database, MODEL, name, since, target)
        assert sorted(part for part, _ in layer) == [
            QUERY.replace("q_proj", part) for part in ("k_proj", "q_proj", "v_proj")
        ]
        names = ["a.0.x", "a.1.x", "b", "a.0.y"]
        specs = {f"weights/{one}": log.live.state.specs[f"weights/{QUERY}"] for one in names}
        assert list(reading._together(names, specs)) == [["a.0.x", "a.0.y"], ["a.1.x"], ["b"]]


def test_what_the_server_beside_it_would_not_load_is_rejected_by_name(
    replica: Replica, folder: Path
) -> None:
    with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
        gate = Policy(prepare=Preparing("all", timeout_s=120))
        log = ledger.model(MODEL, base=checkpoint(), policy=gate)
        options = ("--engine", replica.surface, "--engine-url", replica.url, "--prepares")
        options += ("--model", str(replica.model), "--replica", "gpu-1")
        server = Server(folder, *options, verb="follow")
        try:
            server.start()
            with server.client() as http:
                first = log.apply(update())
                assert first.kind == "updated", first.body
                assert first.body["evidence"]["prepared"]["by"][0]["replica"] == "gpu-1"
                until(lambda: http.get("/readyz").json().get("seq") == first.seq)
                shown = replica.answers()
                if replica.surface == "vllm":
                    refused = log.apply(update_of(1000.0))
                    assert refused.kind == "update_rejected"
                    assert "replica 'gpu-1'" in refused.body["reason"]
                    assert TOO_MUCH in refused.body["reason"]
                    assert replica.answers() == shown
                    assert until_ready(http, 200)["seq"] == first.seq
                second = log.apply(update(2))
                until(lambda: http.get("/readyz").json().get("seq") == second.seq)
                assert replica.answers() != shown
        finally:
            server.stop()
