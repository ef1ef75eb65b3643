"""Questions about the log by REST, by command and in Python: the same filters, the same answers."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.test_command import inside
from tests.in_process import Here, here
from weightledger.api.items import activity_item

UPDATES = "/v1/models/updates"
ACTIVITY = "/v1/models/activity"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """A log of 25 events by two people, with reasons and metadata."""
    folder = tmp_path_factory.mktemp("queries") / "data"
    with here(folder, auto_rollback_threshold=0.0) as server, server.client() as http:
        for n in range(24):
            reason = ("night run", "Rolled out by hand", "NIGHT fix%C3%A9")[n % 3]
            sent = {
                "parameter_name": ("bias", "weight")[n % 2],
                "update_data": 0.1 * n,
                "learning_rate": 1.0,
                "metadata": {"n": n % 4, "ticket": f"OPS-{n % 5}", "deep": {"n": 1}},
            }
            headers = {"x-reason": reason, "x-actor": ("ana", "bo k")[n % 2]}
            done = http.post("/v1/models/incremental_update", json=sent, headers=headers)
            assert done.status_code == 200, done.text
        yield server


def listed(server: Here, **query: Any) -> list[dict[str, Any]]:
    with server.client() as http:
        reply = http.get(UPDATES, params={"limit": 100, **query})
    assert reply.status_code == 200, reply.text
    data: list[dict[str, Any]] = reply.json()["data"]
    return data


def by_command(server: Here, *words: str) -> list[dict[str, Any]]:
    status, out, err = inside(
        "log", "-n", "100", "--json", "--data-dir", str(server.folder), *words
    )
    assert status == 0, err
    return json.loads(out)


QUESTIONS = [
    ({"text": "night"}, ["--text", "night"], lambda e: "night" in (e["reason"] or "").lower()),
    ({"text": "RUN night"}, ["--text", "RUN night"], lambda e: e["reason"] == "night run"),
    ({"text": "FIXÉ"}, ["--text", "FIXÉ"], lambda e: "fixé" in (e["reason"] or "")),
    ({"text": "bo"}, ["--text", "bo"], lambda e: e["actor"] == "bo k"),
    ({"text": "nigh"}, ["--text", "nigh"], lambda e: False),
    (
        {"min_norm": 1.5},
        ["--min-norm", "1.5"],
        lambda e: (e["facts"].get("delta_norm") or -1) >= 1.5,
    ),
    ({"min_norm": 0}, ["--min-norm", "0"], lambda e: e["facts"].get("delta_norm") is not None),
    (
        {"metadata.ticket": "OPS-3"},
        ["--metadata", "ticket=OPS-3"],
        lambda e: (e["metadata"] or {}).get("ticket") == "OPS-3",
    ),
    (
        {"metadata.n": "2", "text": "hand"},
        ["--metadata", "n=2", "--text", "hand"],
        lambda e: (e["metadata"] or {}).get("n") == 2 and "hand" in e["reason"],
    ),
    ({"metadata.deep": "1"}, ["--metadata", "deep=1"], lambda e: False),
    (
        {"text": "night", "parameter": "b*", "actor": "ana", "outcome": "applied", "min_seq": 3},
        [
            *("--text", "night", "--parameter", "b*", "--actor", "ana"),
            *("--outcome", "applied", "--min-seq", "3"),
        ],
        lambda e: (
            "night" in (e["reason"] or "").lower()
            and e["facts"].get("parameter") == "bias"
            and e["actor"] == "ana"
            and e["seq"] >= 3
        ),
    ),
]


@pytest.mark.parametrize(
    ("query", "words", "holds"), QUESTIONS, ids=lambda one: "" if callable(one) else str(one)[:40]
)
def test_every_face_finds_the_same(running: Here, query: Any, words: Any, holds: Any) -> None:
    expected = [event for event in listed(running) if holds(event)]
    assert listed(running, **query) == expected
    assert [one["seq"] for one in by_command(running, *words)] == [one["seq"] for one in expected]
    remote = by_command(running, *words, "--url", running.url)
    assert [one["seq"] for one in remote] == [one["seq"] for one in expected]


def test_in_python(running: Here) -> None:
    log = running.manager.log
    found = log.events(text="night run", metadata={"n": "0"}, min_norm=0.0)
    assert [event.seq for event in found] == [
        one["seq"] for one in listed(running, text="night run", **{"metadata.n": "0"})
    ]
    assert sum(one.events for one in log.activity(actors=["ana"])) == 12


def test_pages_of_a_question_miss_and_double_nothing(running: Here) -> None:
    seen, after = [], {}
    with running.client() as http:
        while True:
            query = {"text": "night", "limit": 3, **after}
            page = http.get(UPDATES, params=query).json()
            seen += page["data"]
            if not page["has_more"]:
                break
            after = {"after": page["last_id"]}
    assert seen == listed(running, text="night")


def test_a_column_of_metadata_still_is_one(running: Here) -> None:
    status, out, _ = inside(
        *("log", "--csv", "--metadata", "n", "--metadata", "ticket=OPS-1"),
        *("--data-dir", str(running.folder)),
    )
    first, *rest = out.splitlines()
    assert status == 0 and first.endswith(",n,ticket")
    assert rest and all(line.endswith(",OPS-1") for line in rest)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"text": ""}, "text"),
        ({"text": "!?"}, "text"),
        ({"text": "x" * 501}, "text"),
        ({"min_norm": "-1"}, "min_norm"),
        ({"min_norm": "nan"}, "min_norm"),
        ({"min_norm": "inf"}, "min_norm"),
        ({"metadata": "x"}, "metadata"),
        ({"metadataX": "x"}, "metadataX"),
        ({"metadata.n": ["1", "2"]}, "metadata.n"),
        ({"min_nrom": "1"}, "min_nrom"),
    ],
)
def test_a_wrong_question_says_what_is_wrong(running: Here, query: Any, param: str) -> None:
    with running.client() as http:
        reply = http.get(UPDATES, params=query)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


def test_activity_counts_the_events(running: Here) -> None:
    events = listed(running)
    with running.client() as http:
        reply = http.get(ACTIVITY).json()
        ana = http.get(ACTIVITY, params={"actor": "ana", "kind": "updated"}).json()
        for wrong in ({"by": "x"}, {"kind": "x"}, {"since": "x"}, {"metadata.n": "1"}):
            assert http.get(ACTIVITY, params=wrong).status_code == 400
    assert reply["total_events"] == len(events)
    counted = Counter((e["recorded_at"][:10], e["kind"], e["actor"]) for e in events)
    assert {(o["day"], o["kind"], o["actor"]): o["events"] for o in reply["data"]} == counted
    assert {one["outcome"] for one in reply["data"] if one["kind"] == "updated"} == {"applied"}
    assert ana["total_events"] == 12
    assert reply["data"] == [activity_item(one) for one in running.manager.log.activity()]


def test_activity_by_command(running: Here) -> None:
    at = ("--data-dir", str(running.folder), "--json")
    for where in ((), ("--url", running.url)):
        status, out, err = inside("activity", "--by", "actor", *at, *where)
        assert status == 0, err
        assert {"actor": "ana", "events": 12} in json.loads(out)
    assert inside("activity", "--by", "name", *at)[0] == 2
    assert inside("activity", "--kind", "nothing", *at)[0] == 2


def test_what_was_live_at_a_time(running: Here) -> None:
    middle = listed(running)[10]
    with running.client() as http:
        then = http.get(f"{UPDATES}/{middle['recorded_at']}").json()
    assert (then["state_after"], then["state_seq"]) == (middle["state_after"], middle["state_seq"])
