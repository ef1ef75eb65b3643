"""Rows that are read together: the same events, and the same words for what is wrong, as one by
one."""

from collections.abc import Iterable
from typing import Any

import pytest

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import BlobRef, Draft, Event, seal
from weightledger.ledger.events.bodies import Registered, Updated, UpdateRejected
from weightledger.ledger.events.changes import FACTORS, TensorChange
from weightledger.ledger.store.payloads import check_all
from weightledger.ledger.store.rows import COLUMNS, from_row, from_rows, to_row
from weightledger.ledger.tensors.digest import content_digest

MODEL_ID = 3
CONTENTS = [b"", b"a", b"b" * 1025, b"c" * 5000, b"", b"d" * 300_000]


def a_log(forms: tuple[str, ...] = ()) -> list[Event]:
    """Six events, one of which changes no state; `forms` are those of the second one's changes."""
    after = [bytes([n]) * 32 for n in range(6)]
    changes = tuple(
        TensorChange(f"weights/{n}", after[0], after[1], 1, 1, f) for n, f in enumerate(forms)
    )
    drafts = [Draft(Registered(1, 4), after[0]), Draft(Updated({}, changes, None), after[1])]
    drafts += [Draft(Updated({"why": "é"}, (), 0.5), after[n]) for n in (2, 3)]
    drafts += [Draft(UpdateRejected({}, "no"), after[3]), Draft(Updated({}, (), None), after[5])]
    log: list[Event] = []
    for draft, content in zip(drafts, CONTENTS, strict=True):
        refs = (BlobRef(content_digest(content), len(content)),) if content else ()
        whole = Draft(draft.body, draft.state_after, payload=refs)
        key = f"key {len(log)}" if len(log) == 4 else None
        log.append(seal(whole, "m", log[-1] if log else None, 5, idempotency_key=key))
    return log


def rows_of(log: list[Event]) -> list[tuple[Any, ...]]:
    return [to_row(MODEL_ID, event) for event in log]


def what_comes(events: Iterable[Event]) -> tuple[list[bytes], str]:
    """The headers that come, and the error that ends them."""
    came: list[bytes] = []
    try:
        for event in events:
            came.append(event.header)  # noqa: PERF401  (those before the error count)
    except CorruptLedger as error:
        return came, f"{error.seq}: {error}"
    return came, ""


@pytest.mark.parametrize("forms", [(), ("frames",), (FACTORS,), ("frames", FACTORS)])
def test_a_page_is_its_events(forms: tuple[str, ...]) -> None:
    log = a_log(forms)
    page = [(*row, b"more") for row in rows_of(log)]
    read = list(from_rows(page, MODEL_ID, "m"))
    assert read == log
    assert [one.hash for one in read] == [one.hash for one in log]
    assert [one.forward_only for one in read] == [FACTORS in forms and n == 1 for n in range(6)]
    assert list(from_rows([], MODEL_ID, "m")) == []


WRONG = (None, 0, 1, 2, 0.5, "", "updated", "updates", b"", b"{}", bytes(32), 1 << 62)


@pytest.mark.parametrize("column", range(len(COLUMNS)), ids=COLUMNS)
def test_whatever_is_wrong_with_one_row_is_told_in_its_place(column: int) -> None:
    rows, told = rows_of(a_log()), 0
    other = to_row(MODEL_ID, seal(Draft(Registered(1, 4), bytes(32)), "other", None, 5))
    for value in (*WRONG, other[column]):
        row = (*rows[3][:column], value, *rows[3][column + 1 :])
        page = [*rows[:3], row, *rows[4:]]
        if column == 0 and not isinstance(value, int):
            continue  # a key is no other type on either database
        one_by_one = what_comes(from_row(one, MODEL_ID, "m") for one in page)
        assert what_comes(from_rows(page, MODEL_ID, "m")) == one_by_one, (COLUMNS[column], value)
        told += bool(one_by_one[1])
    assert told >= 5


def test_a_header_and_its_hash_of_another_model_are_noticed() -> None:
    rows = rows_of(a_log())
    forged = seal(Draft(Registered(1, 4), bytes(32)), "other", None, 5)
    page = [to_row(MODEL_ID, forged), *rows[1:]]
    came, error = what_comes(from_rows(page, MODEL_ID, "m"))
    assert came == []
    assert "names 'other'" in error


def test_payloads_are_checked_with_their_events() -> None:
    log = a_log()
    check_all(log, CONTENTS)
    check_all(log, [None] * len(log))  # they are not inline
    for at, content in enumerate(CONTENTS):
        for wrong in (
            content + b"x",
            content[:-1],
            b"y" * len(content),
            bytearray(content),
            "text",
        ):
            if wrong == content and type(wrong) is bytes:
                continue
            with pytest.raises(CorruptLedger, match=f"payload of event {at} "):
                check_all(log, [*CONTENTS[:at], wrong, *CONTENTS[at + 1 :]])  # type: ignore[list-item]
