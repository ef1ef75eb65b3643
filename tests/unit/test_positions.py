"""The names of states: each form, the same event by all of its names, and what is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightledger import IncrementalUpdateRequest, Ledger, Log, NotFound
from weightledger.ledger.events import Event
from weightledger.ledger.history.positions import FORMS, resolve


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    """0 registered, 1 v0, 2 and 3 updates, 4 v1, 5 rolled back to 2, 6 an update."""
    folder = tmp_path_factory.mktemp("positions")
    with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
        log = ledger.model("m", base={"w": torch.zeros(3)})
        log.create_initial_version()
        for value in (1.0, 2.0):
            log.apply(IncrementalUpdateRequest("w", value, update_type="replace"))
        log.create_version("named")
        log.rollback("head~1")
        log.apply(IncrementalUpdateRequest("w", 3.0, update_type="replace"))
        yield log


def at(log: Log, text: str) -> int:
    return resolve(log.history.store, text).event.seq


def test_each_form_names_what_it_should(log: Log) -> None:
    events = {event.seq: event for event in log.events()}
    for seq, event in events.items():
        for text in (str(seq), f"seq:{seq}", f"event_{seq}", f"0{seq}"):
            assert at(log, text) == seq
            assert log.history.event(text) == event
        if event.number is not None and event.name != f"event_{seq}":
            assert at(log, event.name) == at(log, event.name.rpartition("_")[0]) == seq
    assert at(log, "head") == 6
    assert [at(log, f"head~{n}") for n in range(4)] == [6, 5, 3, 2]
    assert log.history.event("head") == events[6]
    assert at(log, "9999-12-31T00:00:00Z") == 6


@pytest.mark.parametrize(("text", "seq"), [("seq:2", 2), ("update_2", 2)])
def test_what_is_appended_while_it_is_looked_for_is_not_called_missing(
    tmp_path: Path, text: str, seq: int
) -> None:
    """Not there yet when it was looked for, and behind others when the log was asked how far it
    reaches."""
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        log = ledger.model("m", base={"w": torch.zeros(3)})
        log.apply(IncrementalUpdateRequest("w", 1.0))
        store = log.history.store

        class Slow:
            """Gives what it found once two more events are there."""

            def __getattr__(self, name: str) -> Any:
                return getattr(store, name)

            def event(self, seq: int) -> Event | None:
                return self.found(store.event(seq))

            def by_number(self, series: str, number: int) -> Event | None:
                return self.found(store.by_number(series, number))

            def found(self, event: Event | None) -> Event | None:
                for _ in range(2 if event is None else 0):
                    log.apply(IncrementalUpdateRequest("w", 1.0))
                return event

        assert resolve(Slow(), text).event.seq == seq  # type: ignore[arg-type]


def test_a_short_name_becomes_the_whole_one(log: Log) -> None:
    store = log.history.store
    for short, seq in (("v1", 4), ("update_1", 2)):
        position = resolve(store, short)
        assert (position.text, position.event.seq) == (log.history.event(short).name, seq)
    named = resolve(store, "v1")
    assert (named.is_version, named.node) == (True, 3)
    assert resolve(store, "4").node == 3
    assert (resolve(store, "4").text, resolve(store, "4").is_version) == ("seq:4", False)
    assert log.history.version("v1").version_id == named.text
    for name in ("v9", "update_1", "head"):
        with pytest.raises(NotFound):
            log.history.version(name)


def test_the_start_of_a_digest_names_its_state(log: Log) -> None:
    states: dict[str, Event] = {}
    for event in reversed(log.events()):
        if event.node == event.seq or event.kind == "rolled_back":
            states[event.state_after.hex()] = event
    for digest, event in states.items():
        assert at(log, digest) == at(log, digest.upper()) == event.seq
        for length in range(4, 64):
            start = digest[:length]
            if any(letter in start for letter in "abcdef"):
                position = resolve(log.history.store, start)
                assert position.event.state_after.hex() == digest
                assert position.text == f"seq:{event.seq}"


class Store:
    """States with the digests that a test wants."""

    def __init__(self, *digests: bytes) -> None:
        self._digests = sorted(digests)

    def states_between(self, first: bytes, last: bytes, limit: int) -> list["Named"]:
        return [Named(one) for one in self._digests if first <= one <= last][:limit]


class Named:
    node = seq = 7
    series = None
    name = "event_7"

    def __init__(self, state_after: bytes) -> None:
        self.state_after = state_after


@given(st.lists(st.binary(min_size=32, max_size=32), unique=True), st.integers(4, 64), st.data())
def test_a_start_that_several_digests_have_is_an_error_that_lists_them(
    others: list[bytes], length: int, data: st.DataObject
) -> None:
    digest = b"\xab" + data.draw(st.binary(min_size=31, max_size=31))
    start = digest.hex()[:length]
    like = [one for one in {*others, digest} if one.hex().startswith(start)]
    twin = bytes.fromhex(start + "0" * (64 - length))
    store = Store(*{*others, digest, twin})
    if twin in like:
        assert resolve(store, start).state == twin  # type: ignore[arg-type]
        return
    with pytest.raises(NotFound, match="digests of several states start with") as raised:
        resolve(store, start)  # type: ignore[arg-type]
    assert str(raised.value).count("event_7") == min(len(like) + 1, 8)


@pytest.mark.parametrize("text", ["", "abc", "v", "update", "head~", "head~-1", "-1", "x" * 99])
def test_what_is_no_form_is_refused_with_all_of_them(log: Log, text: str) -> None:
    for ask in (log.history.resolve, log.history.event):
        with pytest.raises(NotFound) as raised:
            ask(text)
        assert FORMS in str(raised.value)


@pytest.mark.parametrize(
    "text", ["7", "seq:7", "v2", "v1_1", "update_4", "update_0", "head~6", "1999-01-01", "abcd"]
)
def test_what_the_log_does_not_have_is_not_found(log: Log, text: str) -> None:
    with pytest.raises(NotFound):
        log.history.event(text)
