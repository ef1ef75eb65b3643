"""A rollout's cohorts decide about it: what replicas served, by whichever way it is pushed."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.api.test_command import inside
from tests.conftest import new_database
from tests.in_process import Here, here
from tests.waiting import until
from weightledger import Ledger
from weightledger.ledger.errors import AwaitingApproval, InvalidRequest
from weightledger.ledger.history import rollouts
from weightledger.ledger.monitoring.deciding.comparisons import Alongside
from weightledger.ledger.monitoring.policies import RolloutRules, preset
from weightledger.ledger.monitoring.policy_files import parsed, rules_of
from weightledger.ledger.store import EventFilter
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.commands import Pin

POLICY = """
metrics = ["latency_ms", "failed"]
[rollout]
values = 200
finish = "proven"
"""
REPLICAS = [f"gpu-{number}" for number in range(10)]
PUSH = "/v1/models/metrics"


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Here]:
    """One that reads cohorts, on PostgreSQL."""
    folder = tmp_path_factory.mktemp("cohorts")
    path = folder / "cohorts.toml"
    path.write_text(POLICY)
    with (
        new_database(request, "postgresql", folder) as url,
        here(folder / "data", database=url, policy=str(path), api_key="wl_static") as one,
    ):
        yield one


def newest(server: Here) -> rollouts.Rollout:
    rollout = rollouts.newest(server.manager.log.history.store)
    assert rollout is not None
    return rollout


def sides(server: Here, percent: int = 40) -> tuple[rollouts.Rollout, list[str], list[str]]:
    """Start a rollout of the head that divides the replicas; the canaries and the others."""
    log = server.manager.log
    while True:
        rollout = rollouts.rollout_of(log.start_rollout("head", percent))
        new = [name for name in REPLICAS if rollouts.cohort(rollout.id, name) < percent]
        if 2 <= len(new) <= 8:
            return rollout, new, [name for name in REPLICAS if name not in new]
        log.end_rollout("aborted")


def serve(
    server: Here, seqs: Mapping[str, int], slower: Mapping[str, float], rounds: int, seed: int
) -> None:
    """Have replicas push what their requests took, until they have or the rollout is over."""
    rng = np.random.default_rng(seed)
    told: list[Any] = []
    server.manager.collector.subscribe_samples(told.extend)  # after what decides
    sent = 0
    with server.client(authorization="Bearer wl_static") as http:
        for _ in range(rounds):
            samples = [
                {
                    "metric": "latency_ms",
                    "value": float(20 * rng.lognormal(0, 0.3) * slower.get(name, 1.0)),
                    "seq": seqs[name],
                    "replica": name,
                }
                for name in REPLICAS
                for _ in range(10)
            ]
            reply = http.post(PUSH, json={"samples": samples})
            assert reply.json()["data"]["accepted"] == len(samples), reply.text
            sent += len(samples)
            until(lambda n=sent: len(told) >= n, "samples are not told")
            server.manager.supervision._acting.soon(lambda: None).result()
            if not newest(server).running:
                return


def change(server: Here, value: float) -> int:
    with server.client(authorization="Bearer wl_static") as http:
        body = {"parameter_name": "bias", "update_data": value, "learning_rate": 1.0}
        reply = http.post("/v1/models/incremental_update", json=body)
        assert reply.json()["success"], reply.text
        return int(reply.headers["etag"].strip('"'))


def test_a_harmful_canary_is_aborted_by_an_event_with_its_evidence(server: Here) -> None:
    log = server.manager.log
    before = log.live.head.state_seq
    node = log.live.head.node
    rollout, new, old = sides(server)
    bad = change(server, 0.5)
    seqs = {name: bad if name in new else before for name in REPLICAS}
    with Ledger.open(_url(server)) as ledger:
        follower = ledger.follow(log.history.model, replica=new[0])
        with follower:
            until(lambda: follower.readiness().seq == bad)
            # A replica that is slow on what it was to show before says nothing of the new state.
            serve(server, dict.fromkeys(REPLICAS, before), dict.fromkeys(new, 9.0), 5, seed=1)
            assert newest(server).running
            serve(server, seqs, dict.fromkeys(new, 1.6), 30, seed=2)
            ended = newest(server)
            assert (ended.id, ended.status) == (rollout.id, "aborted")
            until(lambda: follower.live.head.node == node)
    assert log.live.head.node == node
    moved = log.history.require(ended.changed.seq - 1)
    assert (moved.kind, moved.body["cause"]) == ("rolled_back", "rollout_aborted")
    for body in (ended.changed.body, moved.body):
        told = body["evidence"]
        assert (told["metric"], told["test"]) == ("latency_ms", "betting on pairs side by side")
        assert told["confounded"] is True and told["decided_by"] == "policy"
        assert set(told["rollout"]["new"]) == set(new)
        assert set(told["rollout"]["old"]) == set(old)
        assert "aborted by policy cohorts@" in body["reason"] and "harm shown" in body["reason"]
    note = log.history.store.annotation(ended.changed.seq)
    assert note is not None and str(note.actor).startswith("policy:cohorts@")
    assert log.verify().problem is None


def test_one_that_is_shown_to_be_harmless_is_finished_and_people_see_why(server: Here) -> None:
    log = server.manager.log
    before = log.live.head.state_seq
    rollout, new, _ = sides(server)
    good = change(server, 0.25)
    serve(server, {n: good if n in new else before for n in REPLICAS}, {}, 100, seed=3)
    ended = newest(server)
    assert (ended.id, ended.status, log.live.head.state_seq) == (rollout.id, "finished", good)
    where = ("--url", server.url, "--api-key", "wl_static", "--json")
    listed = json.loads(inside("rollout", "list", *where)[1])
    assert listed[0]["reason"].startswith("finished by policy cohorts@")
    assert listed[0]["evidence"]["n_after"] >= 200


def test_a_pinned_version_on_the_way_back_keeps_a_rollout_and_it_is_said_once(
    server: Here,
) -> None:
    log = server.manager.log
    before = log.live.head.state_seq
    rollout, new, _ = sides(server)
    bad = change(server, 0.5)
    version = log.create_version("kept")
    log.execute(Pin(version.name))
    seqs = {name: bad if name in new else before for name in REPLICAS}
    serve(server, seqs, dict.fromkeys(new, 2.0), 12, seed=4)
    ended = newest(server)
    assert (ended.id, ended.running, log.live.head.state_seq) == (rollout.id, True, bad)
    observed = log.history.events(EventFilter(kinds=["observed"]))
    (held,) = [one for one in observed if one.body["verdict"] == "held_back" and one.seq > bad]
    assert f"a pinned version names the state after event {bad}" in held.body["reason"]
    assert held.body["evidence"]["rollout"]["new"] == sorted(new)
    log.end_rollout("aborted")  # a person may


def test_what_a_policy_ends_waits_for_no_second_person(
    server: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = server.manager.log
    before = log.live.head.state_seq
    rollout, new, _ = sides(server)
    bad = change(server, 0.5)
    writer = log._writer
    monkeypatch.setattr(writer, "_policy", replace(writer._policy, two_person=True))
    with pytest.raises(AwaitingApproval):
        log.end_rollout("aborted", caller=Caller(actor="ana"))
    seqs = {name: bad if name in new else before for name in REPLICAS}
    serve(server, seqs, dict.fromkeys(new, 2.0), 30, seed=5)
    ended = newest(server)
    assert (ended.id, ended.status) == (rollout.id, "aborted")
    moved = log.history.require(ended.changed.seq - 1)
    assert (moved.kind, moved.body["cause"]) == ("rolled_back", "rollout_aborted")


def test_who_served_is_said_with_the_seq(server: Here) -> None:
    where = ("--url", server.url, "--api-key", "wl_static")
    status, _, err = inside("metrics", "push", "latency_ms=3", "--replica", "a", *where)
    assert status == 2 or status == 1
    assert "seq is missing" in err
    done = inside("metrics", "push", "latency_ms=3", "--replica", "a", "--seq", "0", *where)
    assert done[0] == 0, done[2]
    with server.client(authorization="Bearer wl_static") as http:
        sample: dict[str, Any] = {"metric": "latency_ms", "value": 1, "seq": 0, "replica": ""}
        refused = http.post(PUSH, json={"samples": [sample]})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "samples[0].replica"


def _url(server: Here) -> str:
    url = server.manager.config.database_url
    assert url is not None
    return url


@pytest.mark.parametrize("aspect", ["typical", "tail", "event"])
def test_pairs_of_unequal_sides_are_fair_and_find_harm(aspect: Any) -> None:
    """A side of one in ten, while the load doubles for both; then with harm."""
    rng = np.random.default_rng(11)

    def stream(harm: float, values: int) -> tuple[Any, Any]:
        new = rng.random(values) < 0.1
        if aspect == "event":
            return (rng.random(values) < 0.05 + harm * new).astype(float), new
        load = np.linspace(1, 2, values) * rng.lognormal(0, 0.3, values)
        return load * (1 + harm * new), new

    refuted = 0
    for _ in range(60):
        test = Alongside(aspect)
        test.observe(*stream(0.0, 4000))  # the most that it has ever shown counts
        refuted += test.harmful(0.01)
    assert refuted <= 2
    test = Alongside(aspect)
    test.observe(*stream(0.6 if aspect != "event" else 0.3, 8000))
    assert test.harmful(0.01) and not test.harmless(0.01)
    same = Alongside(aspect, 0.1)
    same.observe(*stream(0.0, 40_000))
    assert not same.harmful(0.01)
    assert same.harmless(0.01) or aspect == "tail"  # one in twenty counts: it takes longer


def test_a_policy_says_when_a_rollout_ends() -> None:
    assert parsed("[rollout]\nvalues = 60\n", "x").rollout == RolloutRules(60)
    assert "rollout" not in rules_of(preset("safe"))
    for text, said in (
        ('[rollout]\nfinish = "soon"', "line 2: rollout.finish must be 'proven' or"),
        ("[rollout]\nvalues = 5", "line 2: rollout.values 5 is below minimum 50"),
        ("[rollout]\nshare = 0.5", "is no rule of a rollout; there are values, finish"),
    ):
        with pytest.raises(InvalidRequest, match=said.replace("(", r"\(")):
            parsed(text, "x")
