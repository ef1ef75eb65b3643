"""What every event store promises.

A store joins by a subclass whose fixture `store` gives one without any model:

    class TestMyStore(EventStoreSuite):
        @pytest.fixture
        def store(self, tmp_path):
            return MyStore(tmp_path)
"""

import random
import threading
from fnmatch import fnmatchcase
from typing import Any

import pytest
from msgspec.structs import replace

from tests.waiting import PATIENCE_S
from weightledger.ledger.errors import (
    Conflict,
    InvalidRequest,
    KeyTaken,
    NotFound,
    SeqTaken,
)
from weightledger.ledger.events import (
    INLINE_BYTES,
    PINS,
    ROLLED_BACK,
    STATE_CHANGING,
    UPDATE_REJECTED,
    UPDATED,
    UPDATES,
    VERSION_CREATED,
    VERSION_PINNED,
    VERSION_RETIRED,
    VERSION_UNPINNED,
    VERSIONS,
    Annotation,
    Event,
)
from weightledger.ledger.store import EventFilter, LedgerStore, Listed
from weightledger.ledger.store.attached import Snapshot
from weightledger.ledger.tensors.digest import content_digest

NOTE = Annotation(actor="ana", reason="because 🙂", metadata='{"k":1}')


def one_of_each(writer: Any) -> list[Event]:
    """A log with an event of every kind, the first included."""
    update = writer.append(
        payload=b"p" * 1000,
        annotation=NOTE,
        body={"tensors": [], "rate": 0.5},
        request_id="req_1",
        idempotency_key="key 1",
        request_digest=bytes(32),
    )
    return [
        writer.events.event(0),
        update,
        writer.append(UPDATE_REJECTED),
        writer.append(VERSION_CREATED, active=-2),
        writer.append(payload=b"q" * (INLINE_BYTES + 1), as_blob=True),
        writer.append(ROLLED_BACK, state_after=update.state_after, target_node=update.seq),
        writer.append(VERSION_RETIRED, number=0),
    ]


def random_log(writer: Any, chance: random.Random) -> dict[int, tuple[str, ...]]:
    """A log of all kinds; which parameters each update touched."""
    touched: dict[int, tuple[str, ...]] = {}
    for _ in range(120):
        kind = chance.choice([UPDATED] * 4 + [UPDATE_REJECTED, VERSION_CREATED])
        names = tuple(chance.sample(writer.parameters, chance.randint(1, 3)))
        event = writer.append(
            kind,
            parameters=names,
            annotation=Annotation(actor=chance.choice([None, "ana", "bo", "cy"])),
            now=writer.last.recorded_at + chance.choice([0, 0, 1, 5]),
        )
        if kind == UPDATED:
            touched[event.seq] = names
    return touched


def random_filter(chance: random.Random, events: list[Event]) -> EventFilter:
    def maybe(value: Any, otherwise: Any = None) -> Any:
        return value if chance.random() < 0.4 else otherwise

    kinds = [UPDATED, UPDATE_REJECTED, VERSION_CREATED, "registered", "unknown"]
    times = (events[0].recorded_at - 2, events[-1].recorded_at + 2)
    return EventFilter(
        kinds=maybe(chance.sample(kinds, chance.randint(1, 3)), ()),
        actors=maybe(chance.sample(["ana", "bo", "nobody"], chance.randint(1, 2)), ()),
        parameter=maybe(
            chance.choice(["*", "a.*", "*.weight", "[!a]*", "A.*", "rule/*", "a.bia?"])
        ),
        since=maybe(chance.randint(*times)),
        until=maybe(chance.randint(*times)),
        min_seq=maybe(chance.randint(-3, 130)),
        max_seq=maybe(chance.randint(-3, 130)),
    )


class EventStoreSuite:
    """Joined by a subclass for each store."""

    def test_every_field_of_every_kind_reads_back(self, writer: Any) -> None:
        written = one_of_each(writer)
        store = writer.events
        assert list(store.scan()) == written
        assert [store.event(event.seq) for event in written] == written
        assert store.head() == written[-1]
        assert store.annotation(1) == NOTE
        assert store.annotation(2) is None
        assert store.payload(written[1]) == b"p" * 1000
        assert store.payload(written[4]) == b"q" * (INLINE_BYTES + 1)
        assert store.payload(written[2]) == b""
        assert store.payloads(written[4:0:-1]) == [store.payload(one) for one in written[4:0:-1]]
        assert store.payloads([]) == []
        assert [bytes(one.part(0, one.size)) for one in store.unchecked(written)] == (
            store.payloads(written)
        )
        inline = [None, b"p" * 1000, None, None, None, *[None] * (len(written) - 5)]
        assert store.news(0, 99) == list(zip(written[1:], inline[1:], strict=True))
        assert store.news(1, 2) == [(written[2], None), (written[3], None)]
        assert store.news(written[-1].seq, 99) == []
        assert store.by_key("key 1") == written[1]
        assert store.by_key("key") is None
        assert store.by_number(UPDATES, 2) == written[2]
        assert store.by_number(VERSIONS, 0) == written[3]
        assert store.by_number(UPDATES, 10**30) is None
        assert store.listed_versions() == []
        assert store.by_state(written[4].state_after) == written[4]
        assert store.by_state(bytes(32)) is None
        digests = {one.state_after for one in written if one.kind in STATE_CHANGING}
        every = store.states_between(bytes(32), b"\xff" * 32, 100)
        assert [one.state_after for one in every] == sorted(digests)
        assert store.states_between(bytes(32), b"\xff" * 32, 1) == every[:1]
        assert store.states_between(every[0].state_after, every[0].state_after, 9) == every[:1]
        assert store.states_between(b"\xff" * 32, bytes(32), 9) == []

    def test_positions_that_do_not_exist_are_none_and_never_another_models_events(
        self, writer: Any, new_writer: Any
    ) -> None:
        other = new_writer(writer.store, "other")
        other.append()
        for events in (writer.events, other.events):
            for seq in (-1, 1, 1 << 40, -(1 << 40), 10**30):
                assert events.event(seq) is None
            assert [event.seq for event in events.scan(-5, 10**30)] == [0]
            assert [step.seq for step in events.state_changes(-5, 10**30)] == [0]

    def test_a_model_that_is_not_registered_is_not_found(self, writer: Any) -> None:
        with pytest.raises(NotFound, match="'n' not found; registered: m"):
            writer.store.model("n")

    def test_another_models_event_is_not_appended(self, writer: Any, new_writer: Any) -> None:
        other = new_writer(writer.store, "other")
        other.append()
        with pytest.raises(InvalidRequest, match="'other' is not appended to 'm'"):
            writer.events.append(other.item())
        assert (writer.events.head().seq, other.events.head().seq) == (0, 0)

    def test_models_are_listed_in_order_of_registration(
        self, store: LedgerStore, new_writer: Any
    ) -> None:
        for name in ("zebra", "ant", "Ünïcode/模型"):
            new_writer(store, name).append()
        assert store.models() == ["zebra", "ant", "Ünïcode/模型"]

    def test_state_changes_are_found_going_back(self, writer: Any) -> None:
        events = one_of_each(writer)
        changes = [event for event in events if event.state_seq == event.seq]
        store = writer.events
        for seq in range(len(events)):
            before = [event for event in changes if event.seq <= seq][::-1]
            for back in range(len(changes) + 1):
                expected = before[back] if back < len(before) else None
                assert store.state_change_before(seq, back) == expected
        assert [tuple(step) for step in store.state_changes(1, 6)] == [
            (event.seq, event.kind, event.node, event.parent, event.payload_size, 0)
            for event in changes
            if 1 <= event.seq < 6
        ]

    def test_a_time_finds_the_last_event_recorded_until_then(self, writer: Any) -> None:
        first = writer.last.recorded_at
        for later in (5, 5, 5, 9, 20):
            writer.append(now=first + later)
        expected = {-1: None, 0: 0, 4: 0, 5: 3, 8: 3, 9: 4, 19: 4, 20: 5, 10**20: 5}
        for offset, seq in expected.items():
            event = writer.events.at_time(first + offset)
            assert (event and event.seq) == seq
        moments = [first + offset for offset in range(-1, 12)]
        times = [event.recorded_at for event in writer.events.scan()]
        before = [sum(time < moment for time in times) for moment in moments]
        assert writer.events.recorded_before(moments) == before

    def test_versions_are_listed_until_they_are_retired(self, writer: Any, new_writer: Any) -> None:
        seqs = [writer.append(VERSION_CREATED).seq for _ in range(4)]
        other = new_writer(writer.store, "other")
        other.append()
        other.append(VERSION_CREATED)
        for number in (2, 0):
            writer.append(VERSION_RETIRED, number=number)
        assert writer.events.listed_versions() == [
            Listed(1, seqs[1], 0, False),
            Listed(3, seqs[3], 0, False),
        ]
        assert other.events.listed_versions() == [Listed(0, 1, 0, False)]
        assert writer.events.listed_version(3) == Listed(3, seqs[3], 0, False)
        assert writer.events.listed_version(2) is None

    def test_versions_are_found_by_the_state_they_name(self, writer: Any) -> None:
        store = writer.events
        assert store.listed_before(9) is None
        for _ in range(2):
            writer.append()
            for _ in range(2):
                writer.append(VERSION_CREATED)
        named = {version.number: version.node for version in store.listed_versions()}
        assert named == {0: 1, 1: 1, 2: 4, 3: 4}
        found = [store.listed_before(node) for node in range(6)]
        assert [one and one.number for one in found] == [None, 1, 1, 1, 3, 3]
        assert [one.number for one in store.listed_at([0, 4])] == [2, 3]
        assert store.listed_at([]) == []
        assert [one.number for one in store.last_listed(3)] == [3, 2, 1]
        assert [one.number for one in store.last_listed(2, 2)] == [1, 0]

    def test_the_list_says_what_is_pinned(self, writer: Any) -> None:
        store = writer.events
        for _ in range(2):
            writer.append(VERSION_CREATED)
        assert store.last_number(PINS) is None
        kinds = (VERSION_PINNED, VERSION_UNPINNED, VERSION_PINNED)
        for at, (kind, number) in enumerate(zip(kinds, (0, 0, 1), strict=True)):
            writer.append(kind, number=at, body={"version_id": f"v{number}", "number": number})
            assert store.last_number(PINS) == at
        assert [version.pinned for version in store.listed_versions()] == [False, True]

    def test_anchors_near_a_node_are_found_among_many(self, writer: Any, new_writer: Any) -> None:
        store = writer.events
        other = new_writer(writer.store, "other")
        other.append()
        for node in range(0, 100, 10):
            store.add_snapshot(Snapshot(node, bytes(32), node))
            other.events.add_snapshot(Snapshot(node + 5, bytes(32), node))
        for node, most, expected in (
            (45, 2, [30, 40, 50, 60]),
            (40, 1, [40, 50]),
            (200, 2, [80, 90]),
            (0, 9, list(range(0, 100, 10))),
        ):
            found = store.snapshots_near(node, most)
            assert [snapshot.node for snapshot in found] == expected

    def test_annotations_are_read_together(self, writer: Any) -> None:
        notes = {writer.append(annotation=Annotation(actor=f"{n}")).seq: f"{n}" for n in range(3)}
        writer.append()
        found = writer.events.annotations(range(600))
        assert {seq: note.actor for seq, note in found.items()} == notes

    def test_snapshots_are_listed_by_node_and_may_be_added_again(self, writer: Any) -> None:
        store = writer.events
        writer.append()
        event, note, attached = writer.item()
        store.append((event, note, replace(attached, snapshot=Snapshot(2, b"two", 20))))
        store.add_snapshot(Snapshot(1, b"one", 10))
        store.add_snapshot(Snapshot(1, b"one", 10))
        assert store.snapshots() == [Snapshot(1, b"one", 10), Snapshot(2, b"two", 20)]

    def test_an_inline_payload_of_the_wrong_size_is_refused(self, writer: Any) -> None:
        event, note, attached = writer.item(payload=b"four")
        with pytest.raises(InvalidRequest, match="inline"):
            writer.add((event, note, replace(attached, inline=b"fours")))
        with pytest.raises(InvalidRequest, match="inline"):
            writer.add(writer.item(payload=bytes(INLINE_BYTES + 1)))

    def test_a_seq_is_taken_once_and_never_skipped(self, writer: Any) -> None:
        first = writer.item()
        writer.append()
        with pytest.raises(SeqTaken):
            writer.add(first)
        skipping = writer.item()
        writer.last, _, _ = skipping
        with pytest.raises(SeqTaken):
            writer.add(writer.item())
        assert writer.events.head().seq == 1

    def test_a_model_without_its_first_event_takes_no_other(
        self, store: LedgerStore, new_writer: Any
    ) -> None:
        lost = new_writer(store)
        lost.last, _, _ = lost.item()
        with pytest.raises(InvalidRequest, match="by its event 0, got event 1"):
            store.register(lost.item())
        with pytest.raises(NotFound):
            store.model("m")
        assert store.models() == []

    def test_of_two_threads_racing_for_a_seq_one_wins(self, writer: Any) -> None:
        results: list[str] = []

        def race(item: Any) -> None:
            barrier.wait()
            try:
                writer.add(item)
                results.append("won")
            except SeqTaken:
                results.append("lost")

        for _ in range(10):
            barrier = threading.Barrier(2, timeout=PATIENCE_S)
            items = [writer.item(body={"writer": number}) for number in range(2)]
            threads = [threading.Thread(target=race, args=(item,)) for item in items]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            writer.last = writer.events.head()
        assert sorted(results) == ["lost"] * 10 + ["won"] * 10
        assert writer.last.seq == 10

    def test_eight_threads_leave_no_gap_and_double_nothing(
        self, writer: Any, new_writer: Any
    ) -> None:
        def write(number: int) -> None:
            mine = new_writer(writer.store)
            for _ in range(10):
                while True:
                    mine.last = writer.events.head()
                    try:
                        mine.append(body={"writer": number}, annotation=NOTE)
                        break
                    except SeqTaken:
                        pass

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        events = list(writer.events.scan())
        assert [event.seq for event in events] == list(range(81))
        assert [event.prev for event in events[1:]] == [event.hash for event in events[:-1]]
        numbers = [event.body["writer"] for event in events[1:]]
        assert [numbers.count(number) for number in range(8)] == [10] * 8
        assert set(writer.events.update_counts().values()) == {80}

    def test_an_idempotency_key_is_used_once_per_model(self, writer: Any, new_writer: Any) -> None:
        writer.append(idempotency_key="k")
        with pytest.raises(KeyTaken):
            writer.append(idempotency_key="k", annotation=NOTE)
        other = new_writer(writer.store, "other")
        other.append()
        other.append(idempotency_key="k")
        writer.append()
        assert [event.idempotency_key for event in writer.events.scan()] == [
            None,
            "k",
            None,
        ]

    def test_a_number_of_a_series_is_used_once(self, writer: Any) -> None:
        writer.append(VERSION_RETIRED, number=3)
        with pytest.raises(Conflict):
            writer.append(VERSION_RETIRED, number=3)

    def test_who_registers_second_leaves_nothing(self, store: LedgerStore, new_writer: Any) -> None:
        first, second = new_writer(store), new_writer(store, parameters=("weights/other",))
        first.append(payload=b"first", as_blob=True)
        with pytest.raises(SeqTaken):
            second.append(payload=b"second", as_blob=True)
        assert store.blobs.missing([content_digest(b"first"), content_digest(b"second")]) == {
            content_digest(b"second")
        }
        first.append()
        assert set(first.events.update_counts()) == set(first.parameters)

    def test_filters_find_what_reading_everything_would(self, writer: Any, new_writer: Any) -> None:
        chance = random.Random(7)
        writer.parameters += ("rule/state", "weights/Ab")
        touched = random_log(writer, chance)
        other = new_writer(writer.store, "other")
        other.append()
        random_log(other, chance)
        store = writer.events
        events = list(store.scan())
        actors = {event.seq: store.annotation(event.seq) for event in events}

        def passes(event: Event, where: EventFilter) -> bool:
            note = actors[event.seq]
            names = [name.removeprefix("weights/") for name in touched.get(event.seq, ())]
            return (
                (not where.kinds or event.kind in where.kinds)
                and (not where.actors or (note is not None and note.actor in where.actors))
                and (where.parameter is None or any(fnmatchcase(n, where.parameter) for n in names))
                and (where.since is None or event.recorded_at >= where.since)
                and (where.until is None or event.recorded_at <= where.until)
                and (where.min_seq is None or event.seq >= where.min_seq)
                and (where.max_seq is None or event.seq <= where.max_seq)
            )

        found_some = 0
        for _ in range(300):
            where, limit = random_filter(chance, events), chance.choice([0, 1, 3, 50, 2**63 - 1])
            for newest_first in (True, False):
                expected = [event for event in events if passes(event, where)]
                if newest_first:
                    expected.reverse()
                found = store.select(where, limit=limit, newest_first=newest_first)
                assert found == expected[:limit], where
                found_some += bool(found)
        assert found_some > 100

    @pytest.mark.parametrize("crowded", [False, True])
    def test_filters_over_many_parameters_find_what_reading_everything_would(
        self, store: LedgerStore, new_writer: Any, crowded: bool
    ) -> None:
        """Some parameters are in every event, most in one; crowded, events touch all of them."""
        chance = random.Random(11)
        names = tuple(f"weights/layer.{number}" for number in range(60))
        writer = new_writer(store, parameters=names)
        writer.append()
        expected: dict[str | None, list[int]] = {None: [], "ana": [], "bo": [], "nobody": []}
        for _ in range(150):
            touched = names if crowded and chance.random() < 0.5 else chance.sample(names, 2)
            actor = chance.choices(["ana", "bo", None], [0.6, 0.05, 0.35])[0]
            event = writer.append(parameters=tuple(touched), annotation=Annotation(actor=actor))
            if any(len(name) == len(names[-1]) for name in touched):
                expected[None].append(event.seq)
                if actor:
                    expected[actor].append(event.seq)
        for actor, seqs in expected.items():
            for limit in (1, 3, 20, 2**63 - 1):
                for low, high in ((None, None), (40, 90)):
                    where = EventFilter(
                        parameter="layer.??",
                        actors=(actor,) if actor else (),
                        min_seq=low,
                        max_seq=high,
                    )
                    within = [seq for seq in seqs if (low or 0) <= seq <= (high or 200)]
                    for newest_first in (True, False):
                        found = writer.events.select(where, limit=limit, newest_first=newest_first)
                        wanted = within[::-1] if newest_first else within
                        assert [event.seq for event in found] == wanted[:limit]

    def test_a_glob_over_many_parameters_merges_them_in_order(
        self, store: LedgerStore, new_writer: Any
    ) -> None:
        names = tuple(f"weights/layer.{number}" for number in range(350))
        writer = new_writer(store, parameters=names)
        writer.append()
        order = random.Random(3).sample(names, 60)
        for name in order:
            writer.append(parameters=(name,))
        for newest_first in (True, False):
            found = writer.events.select(
                EventFilter(parameter="layer.*"),
                limit=20,
                newest_first=newest_first,
            )
            seqs = [event.seq for event in found]
            assert seqs == (list(range(60, 40, -1)) if newest_first else list(range(1, 21)))
