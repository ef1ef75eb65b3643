"""Who touched a parameter: values before and after each event, and which are still live."""

import csv
import io
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.test_command import inside
from tests.planned import Planned
from weightledger import Caller, InvalidRequest, Ledger, Log, NotFound, Plan
from weightledger import IncrementalUpdateRequest as Request
from weightledger.ledger.debug.blame import Blame
from weightledger.ledger.debug.drawn import blame_picture
from weightledger.ledger.retention import collect


@pytest.fixture
def log(database_url: str) -> Iterator[Log]:
    with Ledger.open(database_url) as ledger:
        state = {"w": torch.zeros(3, 4), "b[0]*": torch.zeros(2), "i": torch.tensor([5, 6])}
        yield ledger.model("m", base=state)


def values(found: Blame) -> list[tuple[int, object, object, bool]]:
    return [(one.event.seq, one.before, one.after, one.live) for one in found.touches]


def test_each_touch_with_who_and_why(log: Log) -> None:
    log.apply(Request("w", 1.0, learning_rate=1.0, actor="ana", reason="first"))
    log.apply(Request("i", [7, 6], update_type="replace"))
    log.apply(Request("w", [2.5], learning_rate=1.0, indices=[6], actor="bo"))
    found = log.blame("w")
    assert [(one.event.seq, one.changed) for one in found.touches] == [(3, 1), (1, 12)]
    first = found.touches[1]
    assert (first.note.actor, first.note.reason, first.undone_by) == ("ana", "first", None)
    assert (first.before, first.after) == (0.0, pytest.approx(math.sqrt(12)))
    assert found.touches[0].before == first.after
    assert found.spec.shape == (3, 4)
    for index in ("1,2", "6"):
        one = log.blame("w", index)
        assert one.index == (1, 2)
        assert values(one) == [(3, 1.0, 3.5, True), (1, 0.0, 1.0, True)]
    assert values(log.blame("w", "0")) == [(1, 0.0, 1.0, True)]
    assert values(log.blame("i", "0")) == [(2, 5, 7, True)]
    assert log.blame("i", "1").touches == []
    assert log.blame("i", "1").looked_at == 1


def test_an_element_is_touched_where_its_bits_are(log: Log) -> None:
    """A NaN that stays is not touched, a sign of zero that changes is."""
    nan = torch.full((3, 4), math.nan)
    seqs = [log.record({**log.state(), "w": nan, "i": torch.tensor([5, 6])}).seq]
    nan[0, 0], nan[0, 1] = 0.0, 1.0
    seqs.append(log.record({**log.state(), "w": nan}).seq)
    nan[0, 0] = -0.0
    seqs.append(log.record({**log.state(), "w": nan}).seq)
    touched = [[one.event.seq for one in log.blame("w", index).touches] for index in "012"]
    assert touched == [seqs[::-1], [seqs[1], seqs[0]], [seqs[0]]]
    assert [math.copysign(1, one.after) for one in log.blame("w", "0").touches[:2]] == [-1, 1]


def test_what_a_rollback_took_out_is_said(log: Log) -> None:
    def step(value: float) -> int:
        return log.apply(Request("w", value, update_type="replace")).seq

    first, second, third = step(1.0), step(2.0), step(3.0)
    back = log.rollback(f"seq:{first}")
    fourth = step(4.0)
    found = log.blame("w", "0")
    assert values(found) == [
        (fourth, 1.0, 4.0, True),
        (third, 2.0, 3.0, False),
        (second, 1.0, 2.0, False),
        (first, 0.0, 1.0, True),
    ]
    assert [one.undone_by for one in found.touches] == [None, back.name, back.name, None]
    again = log.rollback(f"seq:{third}")
    found = log.blame("w", "0")
    assert [one.live for one in found.touches] == [False, True, True, True]
    assert found.touches[0].undone_by == again.name


def test_names_are_no_patterns_and_pages_go_on(log: Log) -> None:
    for _ in range(5):
        log.apply(Request("b[0]*", 1.0))
    found = log.blame("b[0]*", limit=2)
    assert ([one.event.seq for one in found.touches], found.next_seq) == ([5, 4], 3)
    rest = log.blame("b[0]*", max_seq=found.next_seq)
    assert ([one.event.seq for one in rest.touches], rest.next_seq) == ([3, 2, 1], None)


def test_adapters_and_rule_states_have_their_own(log: Log) -> None:
    name = "rule/w/main/trace"
    for value in (torch.ones(2), torch.full((2,), 3.0), None):
        log.execute(
            Planned(lambda staged, value=value: Plan({"operation": "t"}, {}, {name: value}))
        )
    assert values(log.blame(name, "1")) == [
        (3, 3.0, None, True),
        (2, 1.0, 3.0, True),
        (1, None, 1.0, True),
    ]
    assert log.blame(name).touches[0].after is None


def test_an_element_is_the_same_one_in_each_dimension_whatever_the_shape_was(log: Log) -> None:
    name = "rule/w/main/trace"
    narrow, wide = torch.arange(4.0).reshape(2, 2), torch.arange(6.0).reshape(2, 3) + 10
    for value in (narrow, wide, wide[:1]):
        log.execute(
            Planned(lambda staged, value=value: Plan({"operation": "t"}, {}, {name: value}))
        )
    for index in ("1,1", "4"):
        assert values(log.blame(name, index, max_seq=2)) == [
            (2, 3.0, 14.0, True),
            (1, None, 3.0, True),
        ]
    assert values(log.blame(name, "0,2")) == [(2, None, 12.0, True)]


def test_low_rank_updates_go_forwards_only(sqlite_url: str) -> None:
    random = torch.Generator().manual_seed(4)
    with Ledger.open(sqlite_url) as ledger:
        log = ledger.model("m", base={"w": torch.zeros(64, 64)})
        for _ in range(3):
            a, b = torch.randn(64, 1, generator=random), torch.randn(1, 64, generator=random)
            log.apply(Request("w", factors={"a": a.tolist(), "b": b.tolist()}, learning_rate=1.0))
        assert any(event.forward_only for event in log.events())
        expected = [float(log.state(f"seq:{seq}")["w"][5, 7]) for seq in (3, 2, 1, 0)]
        found = log.blame("w", "5,7")
        assert [one.after for one in found.touches] == expected[:3]
        assert [one.before for one in found.touches] == expected[1:]


def test_what_gc_dropped_is_unknown_and_said_to_be(sqlite_url: str) -> None:
    random = torch.Generator().manual_seed(1)
    with Ledger.open(sqlite_url) as ledger:
        log = ledger.model("m", base={"w": torch.zeros(200_000)}, alpha=1.5)
        log.create_version("start")
        for _ in range(6):
            log.record({"w": torch.randn(200_000, generator=random)})
        hours_later = time.time_ns() // 1000 + 7_200_000_000
        collect(log.history, dry_run=False, now_us=lambda: hours_later)
        known = {one.event.seq: one.known for one in log.blame("w", "7").touches}
        assert set(known) == {2, 3, 4, 5, 6, 7}
        assert False in known.values()
        for one in log.blame("w", "7").touches:
            assert (one.after is None) == (not one.known)


def test_so_is_what_it_dropped_of_tensors_beside_the_weights(log: Log) -> None:
    name = "rule/w/main/trace"
    for value in (torch.ones(2), torch.ones(3), torch.full((3,), 5.0)):
        log.execute(
            Planned(lambda staged, value=value: Plan({"operation": "t"}, {}, {name: value}))
        )
        if value.sum() == 3:
            log.snapshot()  # the way to the head begins here
    hours_later = time.time_ns() // 1000 + 7_200_000_000
    assert collect(log.history, dry_run=False, now_us=lambda: hours_later).pruned == 2
    assert [(one.event.seq, one.known) for one in log.blame(name).touches] == [
        (3, True),
        (2, False),
        (1, False),
    ]


@given(st.lists(st.tuples(st.sampled_from("wwwr"), st.integers(0, 30)), max_size=14))
@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
def test_values_are_those_of_the_rebuilt_states(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    """Against every state rebuilt by itself, whatever rollbacks lie between."""
    with Ledger.open(f"sqlite:///{tmp_path_factory.mktemp('blame')}/l.db") as ledger:
        log = ledger.model("m", base={"w": torch.zeros(4)})
        for what, number in steps:
            head = log.history.head().seq
            if what == "w":
                data = {"update_data": [1.0 + number], "indices": [number % 4]}
                log.apply(Request("w", learning_rate=1.0, **data))
            else:
                log.rollback(f"seq:{number % (head + 1)}")
        for index in range(4):
            for one in log.blame("w", str(index), limit=1000).touches:
                event = one.event
                after, before = (log.state(f"seq:{seq}")["w"] for seq in (event.seq, event.parent))
                assert (one.before, one.after) == (float(before[index]), float(after[index]))
        ancestors, at = set(), log.history.head().node
        while at is not None:
            ancestors.add(at)
            at = log.history.lineage.parent(at)
        for one in log.blame("w", limit=1000).touches:
            assert one.live == (one.event.seq in ancestors)
            assert (one.undone_by is None) == one.live


# Bad input, pictures, faces


def test_what_is_refused(log: Log) -> None:
    with pytest.raises(NotFound, match="Parameter 'nope' not found"):
        log.blame("nope")
    assert log.blame("w").touches == []
    for index in ("3,0", "12", "1,2,3", "0,4"):
        with pytest.raises(
            InvalidRequest, match=r"outside of 'w' \[3, 4\]: the last is 2,3, or 11"
        ):
            log.blame("w", index)
    for index in ("x", "-1", "1,", "", "1.5"):
        with pytest.raises(InvalidRequest, match="index must be numbers from 0 up"):
            log.blame("w", index)
    with pytest.raises(InvalidRequest, match="limit must be 1 to 1000"):
        log.blame("w", limit=0)


def test_pictures_and_json_of_values_that_are_none(log: Log) -> None:
    log.record({**log.state(), "w": torch.full((3, 4), math.nan)})
    log.record({**log.state(), "w": torch.ones(3, 4)})
    log.rollback("0")
    for found in (
        log.blame("w"),
        log.blame("w", "0"),
        log.blame("i"),
        log.blame("w", "0", limit=1),
    ):
        plain = found.to_json()
        json.dumps(plain, allow_nan=False)
        tree = ElementTree.fromstring(blame_picture(plain))
        assert tree.get("role") == "img"
    assert log.blame("w", "0").to_json()["touches"][0]["before"] == "nan"


@pytest.mark.parametrize("change", [1e-2, 1e-5])
def test_a_picture_tells_the_ends_of_its_axis_apart(log: Log, change: float) -> None:
    for number in range(3):
        log.record({**log.state(), "w": torch.full((3, 4), 0.5 + number * change)})
    tree = ElementTree.fromstring(blame_picture(log.blame("w", "0", limit=2).to_json()))
    ends = [one for one in tree.iter() if one.get("text-anchor") == "end"][:2]
    high, low = (float(one.text or "") for one in ends)
    assert high - low == pytest.approx(2 * change, rel=0.1)
    for one in ends:
        assert float(one.get("x") or 0) >= 6 * len(one.text or ""), "it begins left of the picture"


def test_what_a_rule_did_is_told_by_its_name(server, http) -> None:
    body = {"parameter_name": "2.weight", "update_data": 0.001}
    body |= {"performance_context": {"accuracy_change": 0.5}}
    reply = http.post("/v1/models/enhanced_update", json=body)
    assert reply.status_code == 200, reply.text
    event = http.get("/v1/models/updates?limit=1").json()["data"][0]
    rule = event["facts"]["rule"]["id"]
    query = {"parameter": "2.weight", "limit": 1}
    assert http.get("/v1/models/blame", params=query).json()["touches"][0]["rule"] == rule
    for where in (("--data-dir", str(server.folder)), ("--url", server.url)):
        for form in ((), ("--csv",)):
            status, out, err = inside("blame", "2.weight", "-n", "1", *form, *where)
            assert status == 0, err
            assert rule in out


def test_the_faces_say_the_same(server, http, tmp_path: Path) -> None:
    body = {"parameter_name": "2.bias", "update_data": 0.5, "learning_rate": 0.01}
    reply = http.post("/v1/models/incremental_update", json=body, headers={"x-reason": "nudge"})
    assert reply.status_code == 200
    query = {"parameter": "2.bias", "index": "3", "limit": 5}
    over_rest = http.get("/v1/models/blame", params=query).json()
    at = ("--data-dir", str(server.folder))
    for where in (at, ("--url", server.url)):
        status, out, err = inside("blame", "2.bias", "3", "-n", "5", "--json", *where)
        assert status == 0, err
        assert json.loads(out) == over_rest
    table = http.get("/v1/models/blame", params={"parameter": "2.bias", "format": "csv"}).text
    rows = list(csv.DictReader(io.StringIO(table)))
    assert rows[0]["reason"] == "nudge"
    assert float(rows[0]["norm_after"]) > 0
    picture = http.get("/v1/models/blame", params={"parameter": "2.bias", "format": "svg"})
    file = tmp_path / "b.svg"
    status, out, err = inside("blame", "2.bias", "--svg", str(file), *at)
    assert status == 0, err
    assert "nudge" in out
    assert ElementTree.fromstring(picture.text).get("role") == "img"
    assert ElementTree.fromstring(file.read_text()).get("role") == "img"
    for wrong, status, param in (
        ({}, 400, "parameter"),
        ({"parameter": "nope"}, 404, "parameter"),
        ({"parameter": "2.bias", "index": "99"}, 400, "index"),
    ):
        reply = http.get("/v1/models/blame", params=wrong)
        assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)
    assert inside("blame", "nope", *at)[0] == 1


def test_the_reason_of_an_event_of_a_rollback_is_not_mixed_up(log: Log) -> None:
    log.apply(Request("w", 1.0, reason="the update"))
    log.rollback("0", caller=Caller(reason="the rollback"))
    (one,) = log.blame("w").touches
    assert (one.note.reason, one.live) == ("the update", False)
