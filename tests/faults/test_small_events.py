"""Small events on PostgreSQL, also some that are recorded together: by few statements, each as if
alone."""

import threading
from collections.abc import Iterator, Sequence

import psycopg
import pytest
import torch

from tests.waiting import until
from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import NotFound, SeqTaken, StorageError
from weightledger.ledger.events import UPDATED, Event
from weightledger.ledger.events.bodies import VersionCreated, body_of
from weightledger.ledger.sql import postgres, turns
from weightledger.ledger.sql.turns import Lock, Statement
from weightledger.ledger.sql.writing import WritingConnections
from weightledger.ledger.store.attached import Append
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.commands import Pin

MODEL = "m"
NAMES = ["a", "b"]

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def turns_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE_S", 600.0)


@pytest.fixture
def holder(database_url: str) -> Iterator[Log]:
    with Ledger.open(database_url) as ledger:
        yield ledger.model(MODEL, base={name: torch.zeros(8) for name in NAMES})


@pytest.fixture(params=["beside neighbours", "from another machine"])
def log(
    request: pytest.FixtureRequest,
    database_url: str,
    holder: Log,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Log]:
    with Ledger.open(database_url) as ledger:
        with monkeypatch.context() as elsewhere:
            if request.param == "from another machine":
                elsewhere.setattr(postgres, "MachineLock", lambda _model_id, everywhere: everywhere)
            made = ledger.model(MODEL)
        for name in NAMES:
            made.apply(one(name))
        yield made


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many statements each message that writes small events brings."""
    made: list[int] = []
    alone, ending = WritingConnections.alone, WritingConnections.ending

    def noting_alone(its: WritingConnections, sql: str, params: Sequence[object]) -> object:
        made.append(1)
        return alone(its, sql, params)

    def noting_ending(its: WritingConnections, lock: Lock, them: Sequence[Statement]) -> object:
        made.append(len(them))
        return ending(its, lock, them)

    monkeypatch.setattr(WritingConnections, "alone", noting_alone)
    monkeypatch.setattr(WritingConnections, "ending", noting_ending)
    return made


def one(name: str, actor: str | None = None, reason: str | None = None) -> IncrementalUpdateRequest:
    return IncrementalUpdateRequest(name, 1.0, learning_rate=1.0, actor=actor, reason=reason)


def together(log: Log, holder: Log, requests: Sequence[object]) -> list[object]:
    """What became of updates that came while another one had the turn, in the order of coming."""
    given: dict[int, object] = {}

    def write(at: int, request: object) -> None:
        try:
            if isinstance(request, IncrementalUpdateRequest):
                given[at] = log.apply(request)
            else:
                given[at] = log.apply_batch(request)
        except Exception as error:
            given[at] = error

    threads = [
        threading.Thread(target=write, args=(at, request)) for at, request in enumerate(requests)
    ]
    queue = log._writer._queue
    with holder.history.store.turn():
        for count, thread in enumerate(threads, 1):
            thread.start()
            until(lambda: len(queue) >= count, "it is in the queue", cpu_s=20)  # noqa: B023
    for thread in threads:
        thread.join()
    return [given[at] for at in range(len(requests))]


def all_is_there(log: Log, holder: Log, expected: dict[str, int]) -> None:
    for each in (log, holder):
        each.catch_up()
        state = each.state()
        for name, count in expected.items():
            assert torch.equal(state[name], torch.full((8,), float(count)))
        counts = {item.name: item.update_count for item in each.history.parameters()}
        assert counts == expected
    assert verify(holder.history).problem is None


def test_some_are_one_statement(log: Log, holder: Log, sent: list[int]) -> None:
    """Of two parameters in turns, and of one in the other's place, with words and without."""
    asked = [
        one("a", "ann", "why"),
        one("b"),
        one("a"),
        one("a", reason="only that"),
        one("b", "bob"),
        one("a", "ann"),
    ]
    given = together(log, holder, asked)
    assert all(isinstance(event, Event) for event in given), given
    seqs = [event.seq for event in given if isinstance(event, Event)]
    assert seqs == [*range(seqs[0], seqs[0] + len(asked))]
    assert sent[-1] == 1 and len(sent) <= 2, "at most one more, where the turn had to be asked for"
    words = holder.history.store.annotations(seqs)
    for seq, request in zip(seqs, asked, strict=True):
        said = words.get(seq)
        assert (said.actor if said else None, said.reason if said else None) == (
            request.actor,
            request.reason,
        )
    all_is_there(log, holder, {"a": 1 + 4, "b": 1 + 2})


def test_many_are_a_few_in_one_message(log: Log, holder: Log, sent: list[int]) -> None:
    given = together(log, holder, [one(NAMES[at % 2], f"actor {at}") for at in range(40)])
    assert all(isinstance(event, Event) for event in given), given
    assert sent[-1] == 3, "16, 16 and 8"
    all_is_there(log, holder, {"a": 21, "b": 21})
    events = [event for event in holder.history.store.scan() if event.kind == UPDATED]
    words = holder.history.store.annotations([event.seq for event in events])
    assert [words[event.seq].actor for event in events[2:]] == [f"actor {at}" for at in range(40)]


def test_one_of_several_parameters_is_a_statement_of_its_own(
    log: Log, holder: Log, sent: list[int]
) -> None:
    both = [one(name) for name in NAMES]
    given = together(log, holder, [one("a"), one("a"), both, both, one("b")])
    assert all(isinstance(event, Event) for event in given), given
    assert sent[-1] == 4
    all_is_there(log, holder, {"a": 1 + 4, "b": 1 + 3})


@pytest.mark.parametrize("log", ["beside neighbours"], indirect=True)
def test_what_stands_behind_one_that_is_not_written_is_not_written(
    log: Log, holder: Log, monkeypatch: pytest.MonkeyPatch, sent: list[int]
) -> None:
    for _ in range(4):
        log.apply(one("a"))
    del sent[:]
    monkeypatch.setattr(log.history.store._turnstile._lock, "condition", "false")
    given = together(log, holder, [one(NAMES[at % 2]) for at in range(20)])
    assert all(isinstance(event, Event) for event in given), given
    assert sent == [2, 2], "once in vain"
    all_is_there(log, holder, {"a": 15, "b": 11})


@pytest.mark.parametrize("log", ["beside neighbours"], indirect=True)
def test_what_stands_behind_anothers_event_is_not_written(
    log: Log, holder: Log, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer from elsewhere had its turn at the first statement, wrote as many events as that was
    to write, and let it go before the second."""
    for _ in range(4):
        log.apply(one("a"))
    alone, ending = WritingConnections.alone, WritingConnections.ending
    vain: list[object] = []
    with Ledger.open(database_url) as ledger:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(postgres, "MachineLock", lambda _model_id, everywhere: everywhere)
            far = ledger.model(MODEL)

        def late(its: WritingConnections, lock: Lock, them: Sequence[Statement]) -> object:
            if vain or len(them) == 1:
                return ending(its, lock, them)
            for _ in range(16):
                far.apply(one("b"))
            vain.append(alone(its, *them[1]))
            raise SeqTaken("as the first statement says")

        monkeypatch.setattr(WritingConnections, "ending", late)
        given = together(log, holder, [one(NAMES[at % 2]) for at in range(20)])
    assert all(isinstance(event, Event) for event in given), given
    assert vain == [[(0, 0)]]
    all_is_there(log, holder, {"a": 15, "b": 27})


def test_an_event_of_a_writer_without_turns_is_not_written_over(
    log: Log, holder: Log, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(database_url) as ledger:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(postgres, "MachineLock", lambda _model_id, everywhere: everywhere)
            rude = ledger.model(MODEL)
        rude.apply(one("a"))
        append = log.history.store.append

        def late(*items: Append) -> None:
            monkeypatch.undo()
            turnstile = rude.history.store._turnstile
            turnstile._stuck, turnstile._stuck_in = True, turnstile._lock.under_way()
            rude.apply(one("b", "rude"))
            append(*items)

        monkeypatch.setattr(log.history.store, "append", late)
        given = together(log, holder, [one(NAMES[at % 2]) for at in range(20)])
        assert all(isinstance(event, Event) for event in given), given
        all_is_there(log, holder, {"a": 12, "b": 12})


def test_some_that_a_trigger_swallows_are_not_acknowledged(
    log: Log, holder: Log, database_url: str
) -> None:
    head = holder.history.head()
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(
            "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN RETURN NULL; END $$"
        )
        owner.execute(
            "CREATE TRIGGER a BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION swallow()"
        )
        given = together(log, holder, [one("a"), one("b")])
        owner.execute("DROP TRIGGER a ON events")
    assert [str(error) for error in given if isinstance(error, StorageError)], given
    assert all("stored 0 of them" in str(error) for error in given), given
    assert holder.history.head() == head
    log.apply(one("a"))
    all_is_there(log, holder, {"a": 2, "b": 1})


def test_a_version_is_named_by_one_statement(log: Log, holder: Log, sent: list[int]) -> None:
    """On the list with what it names, its words beside it, and pinned and retired as any other."""
    log.create_version("the state before", caller=Caller("ann", reason="why"))
    log.apply(one("a"))
    del sent[:]
    named = log.create_version("the state after", caller=Caller("bob", reason="why not"))
    for back_and_forth in ("v1", "v2"):
        log.rollback(back_and_forth)
    assert sent == [1, 1, 1]
    words = holder.history.store.annotations([named.seq])
    assert (words[named.seq].actor, words[named.seq].reason) == ("bob", "why not")
    listed = {one.number: (one.seq, one.node) for one in holder.history.store.listed_versions()}
    assert listed[2] == (named.seq, named.seq - 1)
    log.execute(Pin("v2", pinned=True))
    log.retire_version("v0")
    assert [one.pinned for one in holder.history.store.listed_versions()] == [0, 1]
    all_is_there(log, holder, {"a": 2, "b": 1})


def test_who_names_a_version_asks_nothing_before(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.create_version("early")
    for _ in range(4):
        log.apply(one("a"))
    store = type(log.history.store)
    monkeypatch.setattr(store, "last_seq", lambda _store: pytest.fail("it asks for the head"))
    named = log.create_version("late")
    log.execute(Pin(named.name, pinned=True))
    assert body_of(named, VersionCreated).names.seq == named.seq - 1


def test_what_others_wrote_before_is_in_the_state_that_a_version_names(
    log: Log, holder: Log
) -> None:
    """Though who names it has not heard of that."""
    early = log.create_version("early")
    for _ in range(4):
        log.apply(one("a"))
    theirs = holder.apply(one("b"))
    named = log.create_version("late")
    assert isinstance(theirs, Event)
    assert body_of(named, VersionCreated).names.seq == theirs.seq
    holder.retire_version(early.name)
    with pytest.raises(NotFound, match="retired already"):
        log.retire_version(early.name)
    all_is_there(log, holder, {"a": 5, "b": 2})


@pytest.mark.parametrize("log", ["beside neighbours"], indirect=True)
def test_a_version_is_not_named_in_anothers_turn(
    log: Log, holder: Log, monkeypatch: pytest.MonkeyPatch, sent: list[int]
) -> None:
    log.create_version("early")
    for _ in range(4):
        log.apply(one("a"))
    before = holder.history.store.listed_versions()
    del sent[:]
    monkeypatch.setattr(log.history.store._turnstile._lock, "condition", "false")
    log.create_version("late")
    assert sent == [1, 1], "once in vain"
    listed = holder.history.store.listed_versions()
    assert len(listed) == len(before) + 1
    all_is_there(log, holder, {"a": 5, "b": 1})
