"""The chain's quick check: it covers every update, and passes nothing that the slow one refuses."""

import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.audit import chain, parallel
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import UPDATED, decode, leaf_hash
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.log import Log
from weightledger.ledger.parallel.choosing import executing
from weightledger.ledger.parallel.local import _Round
from weightledger.ledger.store.facts import Facts, facts_of
from weightledger.ledger.writing.caller import Caller

MODEL = 'a "model"/模型'
DAMAGED = 4  # an update with an annotation and a payload
HEADER, HASH = (Facts._fields.index(name) for name in ("header", "event_hash"))


@pytest.fixture
def log(database_url: str) -> Any:
    """An event of each kind that a log has, and updates of every make."""
    with Ledger.open(database_url) as ledger:
        made = ledger.model(MODEL, base={"w": torch.zeros(8), "v": torch.zeros(300, 300)})
        made.apply(add("w", 1.0))
        made.create_version("one")
        made.apply(add("v", 1.0, actor="ana", reason='a "reason" 🙂', metadata={"k": [1, {}]}))
        made.apply(add("w", 0.0))
        made.rollback("seq:1", caller=Caller(actor="bo"))
        made.record({"w": torch.ones(8), "v": torch.ones(300, 300)}, metadata={"counts": {"a": 1}})
        made.apply(add("w", 2.0, idempotency_key='k "1"', request_id='r "1"'))
        made.apply(add("w", 2.0, actor="ana", request_id="req-1"))
        yield made


def add(name: str, value: float, **fields: Any) -> IncrementalUpdateRequest:
    return IncrementalUpdateRequest(name, value, learning_rate=1.0, **fields)


def test_columns_cover_every_event(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    slow = chain._check_event

    def counted(row: Any, *rest: Any) -> Any:
        decoded.append(row[0])
        return slow(row, *rest)

    monkeypatch.setattr(chain, "_check_event", counted)
    chain.check(log.history.store, 0, log.history.head().seq + 1)
    assert decoded == []


def damaged(log: Log, change: Callable[[list[Any]], None]) -> tuple[int, str] | None:
    """What the check says when the row of an event is changed as it is read."""
    store = log.history.store
    stop = log.history.head().seq + 1
    (page,) = store.raw(0, stop)
    row = list(page[DAMAGED])
    assert row[1] == UPDATED
    change(row)
    changed = [*page[:DAMAGED], tuple(row), *page[DAMAGED + 1 :]]
    outcomes = set()
    for size in (1, 3, len(changed)):  # events of a page: what comes before and behind is no matter
        place, outcome = chain.ChainPosition(), None
        try:
            for at in range(0, len(changed), size):
                place = chain.check_page(changed[at : at + size], MODEL, place)
        except CorruptLedger as error:
            outcome = error.seq, str(error)
        outcomes.add(outcome)
    (outcome,) = outcomes
    return outcome


def test_every_column_is_compared(log: Log) -> None:
    assert damaged(log, lambda row: None) is None
    for at, name in enumerate(Facts._fields):

        def change(row: list[Any], at: int = at) -> None:
            value = row[at]
            if isinstance(value, bytes):
                row[at] = value[:-1] + bytes([value[-1] ^ 1])
            elif isinstance(value, int):
                row[at] = value + 1
            else:
                row[at] = "other"

        found = damaged(log, change)
        assert found is not None, name
        assert found[0] == DAMAGED, name


FIELDS = (
    *("actor", "counts", "format", "kind", "model", "node", "number", "parent", "payload", "prev"),
    *("reason", "metadata", "recorded_at", "seq", "series", "state_after", "state_before"),
    *("state_seq", "idempotency_key"),
)

# What could as well be so, until the next event says which event it follows.
ONLY_BY_THE_NEXT = ("payload", "recorded_at", "state_after", "idempotency_key")


@pytest.mark.parametrize("told", ["beside the row", "by the row too", "by leaving out"])
def test_a_header_that_says_something_else_under_its_own_hash_is_noticed(
    log: Log, told: str
) -> None:
    """Also where the truth stands in the body, under the same name, and nothing moves."""
    for field in FIELDS:

        def change(row: list[Any], field: str = field) -> None:
            fields = json.loads(row[HEADER])
            truth = fields.pop(field, None)
            if truth is None or told != "by leaving out":
                fields[field] = otherwise(truth)
            fields["body"] = {**fields["body"], field: truth}
            header = canonical(fields)
            if told == "by the row too" and field not in ("format", "seq", "model"):
                with contextlib.suppress(CorruptLedger):  # no event at all
                    row[: HASH + 1] = facts_of(decode(header))
            row[HEADER], row[HASH] = header, leaf_hash(header)

        found = damaged(log, change)
        assert found is not None, field
        unseen = told == "by the row too" and field in ONLY_BY_THE_NEXT
        assert found[0] == DAMAGED + unseen, field


@pytest.mark.parametrize("field", ["payload", "request_digest"])
def test_what_should_be_a_digest_is_one(log: Log, field: str) -> None:
    def change(row: list[Any]) -> None:
        fields = json.loads(row[HEADER])
        if field == "payload":
            fields["payload"][0]["digest"] = "z" * 64
        else:
            fields["request_digest"] = "z" * 64
        row[HEADER] = canonical(fields)
        row[HASH] = leaf_hash(row[HEADER])

    found = damaged(log, change)
    assert found is not None
    assert found[0] == DAMAGED


def test_a_header_is_canonical(log: Log) -> None:
    """Under its own hash: other programs could read something else, such as the first of two."""
    for written in (
        lambda text: text.replace(b'"format":1', b'"format": 1'),
        lambda text: text.replace(b'"format":1', b'"format":7,"format":1'),
        lambda text: text.replace(b'"format":1', b'"format":1,"zzz":1'),
    ):

        def change(row: list[Any], written: Callable[[bytes], bytes] = written) -> None:
            row[HEADER] = written(row[HEADER])
            row[HASH] = leaf_hash(row[HEADER])

        assert damaged(log, change) is not None


def test_numbers_are_such_as_canonical_json_has(log: Log) -> None:
    """Another program would read another one."""

    def change(row: list[Any]) -> None:
        row[HEADER] = re.sub(rb'"active":\d+', b'"active":%d' % (1 << 53), row[HEADER])
        row[HASH] = leaf_hash(row[HEADER])

    outcome = damaged(log, change)
    assert outcome is not None
    assert outcome[0] == DAMAGED


def test_no_header_is_a_part_of_one_or_more_than_one(log: Log) -> None:
    """Three rows that together are three headers, none of which is one, under their own hashes."""
    store = log.history.store
    (page,) = store.raw(0, log.history.head().seq + 1)
    first, second, third = (json.loads(row[HEADER]) for row in page[DAMAGED : DAMAGED + 3])
    begin, end = canonical(first).split(b'"body":{')
    headers = [begin + b'"body":{', end]
    second["prev"], third["prev"] = (leaf_hash(header).hex() for header in headers)
    headers.append(canonical(second) + b"\n" + canonical(third))
    forged = [list(row) for row in page[DAMAGED : DAMAGED + 3]]
    for row, header in zip(forged, headers, strict=True):
        row[HEADER], row[HASH] = header, leaf_hash(header)
    rows = [*page[:DAMAGED], *map(tuple, forged)]
    with pytest.raises(CorruptLedger) as told:
        chain.check_page(rows, MODEL, chain.ChainPosition())
    assert told.value.seq == DAMAGED


def otherwise(truth: Any) -> Any:
    """Another value of the same length."""
    if isinstance(truth, dict):
        return {**truth, "applied": truth["applied"] + 1}
    if isinstance(truth, list):
        return [{**truth[0], "size": truth[0]["size"] + 1}]
    if isinstance(truth, int):
        return truth ^ 1
    if isinstance(truth, str):
        return truth[:-1] + ("0" if truth[-1] != "0" else "1")
    return "0" * 64


def test_processes_find_the_first_bad_event_too(
    log: Log, plain: Callable[[str], Any], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that shares the work with this one, and has all of it."""
    monkeypatch.setattr(parallel, "_STRETCH", 3)
    with executing("local", 2) as two:
        whole = verify(log.history, states=False, executor=two)
        assert whole.events == log.history.head().seq + 1
        connection = plain(database_url)
        if database_url.startswith("sqlite"):
            connection.execute("DROP TRIGGER events_no_update")
        else:
            connection.execute("ALTER TABLE events DISABLE TRIGGER USER")
        for number in (5, 3):
            connection.execute(f"UPDATE events SET recorded_at = 7 WHERE number = {number}")
        alone = verify(log.history, states=False)
        (first,) = connection.execute(
            "SELECT min(event_key) FROM events WHERE recorded_at = 7"
        ).fetchone()
        assert alone.events == alone.bad_seq == first & 0xFFFF
        assert verify(log.history, states=False, executor=two) == alone
        monkeypatch.setattr(_Round, "_work_here", lambda self: None)
        assert verify(log.history, states=False, executor=two) == alone
        assert verify(log.history, executor=two).bad_seq == alone.bad_seq
