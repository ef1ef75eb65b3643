"""Queries by blocks find what reading everything would, whoever writes the blocks and when."""

import math
import random
from collections import Counter
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import pytest

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import UPDATE_REJECTED, UPDATED, VERSION_CREATED, Annotation, Event
from weightledger.ledger.store import EventFilter, blocks, blockwise, columns
from weightledger.ledger.store.sql_store import SqlStore
from weightledger.ledger.store.terms import pairs, words

REASONS = (None, "night run", "Night-run 7", "rolled out, LR 0.1", "Größe", "größe und run", "!?")
METADATA = (
    None,
    '{"run":7}',
    '{"run":"7"}',
    '{"ok":true,"run":8}',
    '{"deep":{"run":7},"list":[7],"ticket":"OPS-17"}',
    '{"loss":0.25,"note":null}',
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 16)


def grow(writer: Any, chance: random.Random, count: int) -> None:
    for _ in range(count):
        kind = chance.choice([UPDATED] * 4 + [UPDATE_REJECTED, VERSION_CREATED])
        names = tuple(chance.sample(writer.parameters, chance.randint(1, 3)))
        norm = chance.choice([None, 0.0, 0.5, chance.random() * 10])
        writer.append(
            kind,
            parameters=names,
            body={"counted": list(names), "delta_norm": norm} if kind == UPDATED else {},
            annotation=Annotation(
                actor=chance.choice([None, "ana", "bo run", "cy"]),
                reason=chance.choice(REASONS),
                metadata=chance.choice(METADATA),
            ),
            now=writer.last.recorded_at + chance.choice([0, 1, 9_000_000_000]),
        )


def a_filter(chance: random.Random, events: list[Event]) -> EventFilter:
    def maybe(value: Any, otherwise: Any = None) -> Any:
        return value if chance.random() < 0.3 else otherwise

    times = (events[0].recorded_at - 2, events[-1].recorded_at + 2)
    run = chance.choice([{"run": "7"}, {"run": "8", "ok": "true"}, {"note": "null"}, {"x": "1"}])
    return EventFilter(
        kinds=maybe(chance.sample([UPDATED, UPDATE_REJECTED, "unknown"], 2), ()),
        actors=maybe(chance.sample(["ana", "bo run", "nobody"], 2), ()),
        parameter=maybe(chance.choice(["*", "a.*", "nothing"])),
        since=maybe(chance.randint(*times)),
        until=maybe(chance.randint(*times)),
        min_seq=maybe(chance.randint(-3, len(events))),
        max_seq=maybe(chance.randint(-3, len(events))),
        text=maybe(chance.choice(["run", "NIGHT run", "GRÖSSE", "nothing", "run ana", "0 1"])),
        min_norm=maybe(chance.choice([0.0, 0.5, 0.51, 9.0, math.inf])),
        metadata=maybe(run, {}),
    )


@pytest.mark.parametrize(("page", "look"), [(2, 1), (16, 12)])
def test_filters_find_what_reading_everything_would(
    writer: Any, new_writer: Any, monkeypatch: pytest.MonkeyPatch, page: int, look: int
) -> None:
    # Small pages are kept whole, and events looked at; of large ones little is, and bitmaps are.
    monkeypatch.setattr(columns, "PAGE", page)
    monkeypatch.setattr(blockwise, "_LOOK", look)
    chance = random.Random(5)
    other = new_writer(writer.store, "other")
    other.append()
    found_some = 0
    for _ in range(4):
        grow(writer, chance, 40)
        grow(other, chance, 20)
        store = writer.events
        events = list(store.scan())
        notes = store.annotations([event.seq for event in events])

        def passes(event: Event, where: EventFilter, notes: Any = notes) -> bool:
            note = notes.get(event.seq) or Annotation()
            names = [one.removeprefix("weights/") for one in event.body.get("counted", ())]
            norm = event.body.get("delta_norm")
            said = words(f"{note.actor or ''} {note.reason or ''}")
            return (
                (not where.kinds or event.kind in where.kinds)
                and (not where.actors or note.actor in where.actors)
                and (where.parameter is None or any(fnmatchcase(n, where.parameter) for n in names))
                and (where.since is None or event.recorded_at >= where.since)
                and (where.until is None or event.recorded_at <= where.until)
                and (where.min_seq is None or event.seq >= where.min_seq)
                and (where.max_seq is None or event.seq <= where.max_seq)
                and (where.text is None or words(where.text) <= said)
                and (where.min_norm is None or (norm is not None and norm >= where.min_norm))
                and all(dict(pairs(note.metadata)).get(k) == v for k, v in where.metadata.items())
            )

        for _ in range(40):
            where, limit = a_filter(chance, events), chance.choice([0, 1, 3, 50, 2**63 - 1])
            for newest_first in (True, False):
                expected = [event for event in events if passes(event, where)]
                if newest_first:
                    expected.reverse()
                found = store.select(where, limit=limit, newest_first=newest_first)
                assert found == expected[:limit], where
                found_some += bool(found)
        store.index()
    assert found_some > 100
    assert writer.store.model("m").discrepancies(writer.parameters) == []


def test_activity_counts_what_there_is(writer: Any) -> None:
    chance = random.Random(6)
    grow(writer, chance, 90)
    store = writer.events
    events = list(store.scan())
    notes = store.annotations([event.seq for event in events])

    def key(event: Event) -> tuple[Any, ...]:
        note = notes.get(event.seq) or Annotation()
        return event.recorded_at // 86_400_000_000, event.kind, note.actor

    for _ in range(30):
        low, high = sorted(chance.randrange(len(events) + 5) for _ in range(2))
        since = chance.choice([None, events[20].recorded_at])
        where = EventFilter(min_seq=low, max_seq=high, since=since, kinds=[UPDATED])
        within = [
            one
            for one in events[low : high + 1]
            if one.kind == UPDATED and (since is None or one.recorded_at >= since)
        ]
        counted = {tuple(one[:3]): one.events for one in store.activity(where)}
        assert counted == Counter(map(key, within))
    assert sum(one.events for one in store.activity(EventFilter())) == len(events)
    (one_actor,) = {one.actor for one in store.activity(EventFilter(actors=["ana"]))}
    assert one_actor == "ana"
    with pytest.raises(InvalidRequest):
        store.activity(EventFilter(text="run"))


def test_blocks_are_written_by_who_may_and_read_anew_by_who_may_not(
    writer: Any, database_url: str
) -> None:
    grow(writer, random.Random(7), 60)
    count = "SELECT count(DISTINCT block) FROM search_blocks"
    database = writer.store._database

    def written() -> int:
        with database.look() as execute:
            return int(execute(count).fetchone()[0])

    where = EventFilter(text="run", metadata={"run": "7"})
    if database_url.startswith("postgresql"):
        mark = "&" if "?" in database_url else "?"
        reader = SqlStore.open(
            f"{database_url}{mark}options=-c default_transaction_read_only=on", upgrade=False
        )
        by_reader = reader.model("m").select(where, limit=50)
        reader.close()
        assert written() == 0
    else:
        by_reader = None
    writer.events.index()
    assert written() == 3
    found = writer.events.select(where, limit=50)
    assert found and by_reader in (None, found)
    assert written() == 3


def test_little_is_kept_of_what_is_asked(writer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "PAGE", 2)
    monkeypatch.setattr(columns, "_KEPT_BYTES", 600)
    grow(writer, random.Random(9), 70)
    for _ in range(2):
        for where in (
            EventFilter(text="run"),
            EventFilter(min_norm=0.5),
            EventFilter(text="night"),
        ):
            select = writer.events.select
            there = {event.seq for event in select(where, limit=999)}
            assert there == {
                seq
                for seq in range(71)
                if select(replace(where, min_seq=seq, max_seq=seq), limit=1)
            }
    kept = writer.events._filtering._memory.columns
    assert 0 < sum(size for _, size in kept._kept.values()) == kept._bytes <= 600


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE search_blocks SET bits = {zero} WHERE term = (SELECT max(term) FROM search_blocks)",
        "DELETE FROM search_blocks WHERE term > 2",
        "UPDATE search_blocks SET block = block + 50",
        "UPDATE search_blocks SET bits = {zero} WHERE term = 2",
    ],
)
def test_a_block_that_is_not_what_its_events_say_is_found_and_put_right(
    writer: Any, database_url: str, plain: Any, damage: str
) -> None:
    grow(writer, random.Random(8), 40)
    store = writer.events
    store.index()
    assert store.discrepancies(None) == []
    zero = "x'00'" if database_url.startswith("sqlite") else "'\\x00'"
    plain(database_url).execute(damage.format(zero=zero))
    (said,) = store.discrepancies(None)
    assert "search_blocks" in said


def test_what_cannot_be_looked_for_is_refused() -> None:
    for text in ("", " ", "!?"):
        with pytest.raises(InvalidRequest, match="text"):
            EventFilter(text=text)
    for norm in (-1.0, math.nan):
        with pytest.raises(InvalidRequest, match="min_norm"):
            EventFilter(min_norm=norm)
