"""What was written beside events can be taken away: everywhere, and the log stays provable."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import torch

from tests.api.test_command import inside
from weightledger import Caller, IncrementalUpdateRequest, InvalidRequest, Ledger, verify_offline
from weightledger.ledger.audit import exports
from weightledger.ledger.audit.signing import Signer
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import SchemaMismatch
from weightledger.ledger.events.bodies import Redaction, body_of
from weightledger.ledger.history.redactions import seqs_of_actor
from weightledger.ledger.log import Log
from weightledger.ledger.redaction import redact
from weightledger.ledger.sql.roles import grants
from weightledger.ledger.store import EventFilter, blocks, columns

ANA, WHY, TICKET = "Ana-Zimmermann", "Zimmermann-asked", "patient-4711"
DPO = Caller(actor="dpo", reason="erasure request 118")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 4)
    monkeypatch.setattr(columns, "PAGE", 2)


def update(n: int, **fields: Any) -> IncrementalUpdateRequest:
    words = {"actor": ANA, "reason": f"{WHY} {n}", "metadata": {"who": TICKET}, **fields}
    return IncrementalUpdateRequest("w", float(n), 1.0, **words)


def written(ledger: Ledger) -> Log:
    log = ledger.model("m", base={"w": torch.zeros(4)})
    for n in range(1, 6):
        log.apply(update(n, idempotency_key=f"k{n}"))
    log.apply(update(6, actor="bo", reason="by bo", metadata=None))
    log.create_version("named", caller=Caller(actor=ANA))
    return log


def texts(log: Log, seq: int) -> tuple[str | None, ...]:
    note = log.history.store.annotation(seq)
    return (None, None, None) if note is None else (note.actor, note.reason, note.metadata)


def test_the_text_goes_and_every_hash_stays(database_url: str) -> None:
    with Ledger.open(database_url) as ledger:
        log = written(ledger)
        store = log.history.store
        assert len(log.events(text="asked")) == 5  # its blocks are written
        before = {event.seq: event.hash for event in store.scan()}
        (said,) = log.redact("update_2", caller=DPO)
        assert texts(log, 2) == (None, None, None)
        assert texts(log, 3) == (ANA, f"{WHY} 3", f'{{"who":"{TICKET}"}}')
        note = store.annotation(2)
        assert note is not None and note.salt == b""
        assert body_of(said, Redaction) == Redaction((2,), ("actor", "reason", "metadata"))
        assert texts(log, said.seq) == ("dpo", "erasure request 118", None)
        assert {event.seq: event.hash for event in store.scan(0, said.seq)} == before
        assert ledger.store.weaknesses() == []
        report = verify(log.history)
        assert (report.problem, report.events) == (None, said.seq + 1)
        # Neither search nor counts know of it any more, in this process or another one.
        with Ledger.open(database_url) as other:
            for history in (log.history, other.history("m")):
                for where in (
                    {"text": f"{WHY} 2"},
                    {"actors": [ANA], "max_seq": 2, "min_seq": 2},
                    {"metadata": {"who": TICKET}, "max_seq": 2, "min_seq": 2},
                ):
                    assert history.events(EventFilter(**where)) == []
                assert len(history.events(EventFilter(text="asked"))) == 4
                assert len(history.events(EventFilter(actors=[ANA], parameter="w"))) == 4
                one = EventFilter(min_seq=2, max_seq=2)
                assert [count.actor for count in history.activity(one)] == [None]
        assert verify(log.history).ok


def test_a_process_that_has_asked_before_forgets_what_another_one_takes_away(
    database_url: str,
) -> None:
    def actors(events: Any) -> set[str | None]:
        return {one.actor for one in events}

    with Ledger.open(database_url) as ledger, Ledger.open(database_url) as other:
        log = written(ledger)
        history = other.history("m")
        asked = EventFilter(text="asked")
        assert len(history.events(asked)) == 5
        assert actors(history.activity(EventFilter())) == {None, ANA, "bo"}
        known = history.store._filtering._memory  # type: ignore[attr-defined]
        redact(log.history, seqs_of_actor(log.history.store, ANA), caller=DPO)
        assert history.events(asked) == []
        assert actors(history.activity(EventFilter())) == {None, "bo", "dpo"}
        assert history.store._filtering._memory is not known  # type: ignore[attr-defined]


def test_a_retry_is_answered_as_before(database_url: str) -> None:
    with Ledger.open(database_url) as ledger:
        log = written(ledger)
        first = log.history.event("update_2")
        log.redact("update_2")
        assert log.apply(update(2, idempotency_key="k2")) == first


def test_some_fields_and_everything_of_a_person(database_url: str) -> None:
    with Ledger.open(database_url) as ledger:
        log = written(ledger)
        log.redact("update_1", texts=["metadata"])
        assert texts(log, 1) == (ANA, f"{WHY} 1", None)
        assert verify(log.history).ok
        seqs = seqs_of_actor(log.history.store, ANA)
        assert seqs == [8, 5, 4, 3, 2, 1]
        (said,) = redact(log.history, seqs, ["actor"], caller=DPO)
        assert said.body["events"] == sorted(seqs)
        assert seqs_of_actor(log.history.store, ANA) == []
        assert log.events(actors=[ANA]) == []
        assert texts(log, 3) == (None, f"{WHY} 3", f'{{"who":"{TICKET}"}}')
        assert verify(log.history).ok
        numbers = [event.number for event in log.events(kinds=["redacted"])]
        assert numbers == [1, 0]


@pytest.mark.parametrize(
    ("seqs", "fields"),
    [([1], []), ([1], ["description"]), ([0], ["actor"]), ([6], ["metadata"]), ([99], ["actor"])],
)
def test_what_is_not_there_cannot_be_redacted(sqlite_url: str, seqs: Any, fields: Any) -> None:
    with Ledger.open(sqlite_url) as ledger:
        log = written(ledger)
        head = log.history.head()
        with pytest.raises(InvalidRequest):
            redact(log.history, seqs, fields)
        assert log.history.head() == head


def test_a_text_that_goes_without_an_event_is_damage(
    database_url: str, plain: Callable[[str], Any]
) -> None:
    with Ledger.open(database_url) as ledger:
        log = written(ledger)
        log.redact("update_2", texts=["reason"])
        database = ledger.store._database  # type: ignore[attr-defined]
        with database.write() as execute:
            database.backend.unprotect(execute, ["annotations"])
            execute(
                "UPDATE annotations SET metadata = NULL WHERE reason IS NULL AND kind = 'updated'"
            )
            database.backend.protect(execute, ["annotations"])
        report = verify(log.history)
        assert (report.bad_seq, report.problem) == (
            2,
            "event 2: its metadata is not the one recorded",
        )


def test_nothing_of_it_is_left_in_the_file(tmp_path: Path, sqlite_url: str) -> None:
    with Ledger.open(sqlite_url) as ledger:
        log = written(ledger)
        redact(log.history, seqs_of_actor(log.history.store, ANA))
    with Ledger.open(sqlite_url) as ledger, ledger.store._database.session() as execute:
        execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("ledger.db*") if path.is_file())
    for secret in (ANA, WHY, TICKET):
        assert secret.encode() not in kept


def test_a_log_exported_afterwards_is_checked_without_the_ledger(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(sqlite_url) as ledger:
        log = written(ledger)
        store = log.history.store
        signer = Signer.open(tmp_path, None)
        early = str(signer.checkpoint(store))
        log.redact("update_2", "update_3")
        file, note = tmp_path / "log.jsonl", tmp_path / "early.checkpoint"
        file.write_text("".join(exports.lines(store)), "utf-8")
        note.write_text(early)
        key = str(signer.key(store).verifier)
    assert "Zimmermann-asked 2" not in file.read_text("utf-8")
    arguments = ["log", str(file), "--key", key, "--checkpoint", str(note)]
    monkeypatch.setattr(sys, "argv", ["verify_offline", *arguments])
    assert verify_offline.main() == 0


def test_by_command(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    with Ledger.open(url) as ledger:
        written(ledger)
    at = ("--data-dir", str(tmp_path), "--json")
    status, out, err = inside("redact", "--of", ANA, "--dry-run", *at)
    assert status == 0, err
    assert len(json.loads(out)["events"]) == 6
    asked = ("redact", "update_2", "--field", "reason", "-m", "request 118", "--actor", "dpo")
    status, out, err = inside(*asked, *at)
    assert status == 0, err
    (name,) = json.loads(out)["recorded_as"]
    shown = json.loads(inside("show", "update_2", *at)[1])
    assert (shown["reason"], shown["actor"], shown["redacted"]) == (None, ANA, ["reason"])
    event = json.loads(inside("show", name, *at)[1])
    assert (event["kind"], event["actor"], event["reason"]) == ("redacted", "dpo", "request 118")
    assert inside("redact", *at)[0] == 2
    assert inside("redact", "update_2", "--field", "name", *at)[0] == 2
    status, _, err = inside("redact", "update_2", "--field", "reason", *at)
    assert status == 1 and "none of these events has reason" in err


@pytest.fixture(scope="module")
def roles(
    postgres_server: Any, postgres_admin: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A ledger's database as its owner, a server and a follower reach it."""
    name = "redacted"
    postgres_admin.execute(f"CREATE DATABASE {name}")
    url = postgres_server.get_uri(database=name)
    with Ledger.open(url) as ledger:
        written(ledger)
    urls = {"owner": url}
    with psycopg.connect(url, autocommit=True) as owner:
        for role in ("server", "follower"):
            postgres_admin.execute(f"CREATE ROLE redacting_{role} LOGIN")
            for statement in grants(f"redacting_{role}", follower=role == "follower"):
                owner.execute(statement)
            made = sa.make_url(url).set(username=f"redacting_{role}", password=None)
            urls[role] = made.render_as_string(hide_password=False)
    yield urls
    postgres_admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    for role in ("server", "follower"):
        postgres_admin.execute(f"DROP ROLE redacting_{role}")


def test_a_server_whose_role_can_only_append_redacts_what_its_event_says(
    roles: dict[str, str],
) -> None:
    with Ledger.open(roles["server"]) as ledger:
        history = ledger.history("m")
        redact(history, [2], ["reason", "actor"], caller=DPO)
        note = history.store.annotation(2)
        assert note is not None
        assert (note.actor, note.reason) == (None, None)
        assert note.metadata == f'{{"who":"{TICKET}"}}'
        redact(history, [2], ["metadata"])
        note = history.store.annotation(2)
        assert note is not None and (note.metadata, note.salt) == (None, b"")
        assert history.store.annotation(3).actor == ANA
        assert history.events(EventFilter(actors=[ANA], max_seq=2, min_seq=2)) == []
        assert len(history.events(EventFilter(actors=[ANA], parameter="w"))) == 4
        assert verify(history).ok
        assert ledger.store.weaknesses() == []


_HEADER = """'{"body":{"events":[3],"texts":["actor"]},"kind":"redacted","seq":%d}'::bytea"""
_FORGED = (
    "INSERT INTO events (event_key, model_id, kind, recorded_at, node, changes_state, forward_only,"
    " state_after, payload_size, header, event_hash) SELECT max(event_key) + 1, 1, 'redacted', 0,"
    f" 0, 0, 0, ''::bytea, 0, {_HEADER % 99}, HASH FROM events"
)
_CALL = "SELECT weightledger_redact(max(event_key)) FROM events"


@pytest.mark.parametrize(
    ("role", "statements", "refusal"),
    [
        ("server", ["UPDATE annotations SET actor = NULL"], "permission denied"),
        ("server", ["ALTER TABLE annotations DISABLE TRIGGER ALL"], "must be owner"),
        ("server", ["SELECT weightledger_redact((1::bigint << 40) | 3)"], "no event says"),
        ("server", ["SELECT weightledger_redact(-1)"], "no event says"),
        ("server", ["SELECT weightledger_redact(NULL)"], "no event says"),
        ("server", [_FORGED.replace("HASH", "sha256(''::bytea)"), _CALL], "no event says"),
        # Whole under its hash, and says to be another event.
        (
            "server",
            [_FORGED.replace("HASH", f"sha256(decode('00', 'hex') || {_HEADER % 99})"), _CALL],
            "no event says",
        ),
        (
            "server",
            [
                "CREATE TEMP TABLE events AS SELECT 8::bigint AS event_key, 'redacted' AS kind,"
                f" {_HEADER % 8} AS header, sha256(decode('00', 'hex') || {_HEADER % 8})"
                " AS event_hash",
                "SELECT weightledger_redact(8)",
            ],
            "no event says",
        ),
        (
            "server",
            [
                "CREATE OR REPLACE FUNCTION weightledger_redact(redaction bigint) RETURNS void"
                " LANGUAGE sql AS 'SELECT 1'"
            ],
            "permission denied|must be owner",
        ),
        ("follower", [_CALL], "permission denied for function"),
    ],
)
def test_the_function_takes_away_nothing_that_no_event_of_the_log_says(
    roles: dict[str, str], role: str, statements: list[str], refusal: str
) -> None:
    with psycopg.connect(roles[role]) as connection, connection.cursor() as cursor:
        with pytest.raises(psycopg.Error, match=refusal):
            for statement in statements:
                cursor.execute(statement)
        connection.rollback()
    with Ledger.open(roles["owner"]) as ledger:
        assert ledger.history("m").store.annotation(3).actor == ANA


def test_a_changed_function_is_named_when_opening(roles: dict[str, str]) -> None:
    with psycopg.connect(roles["owner"], autocommit=True) as owner:
        for change, back in (
            ("GRANT EXECUTE ON FUNCTION {} TO PUBLIC", "REVOKE EXECUTE ON FUNCTION {} FROM PUBLIC"),
            (
                "ALTER FUNCTION {} RESET search_path",
                "ALTER FUNCTION {} SET search_path = pg_catalog, public, pg_temp",
            ),
            ("ALTER FUNCTION {} SECURITY INVOKER", "ALTER FUNCTION {} SECURITY DEFINER"),
        ):
            owner.execute(change.format("weightledger_redact"))
            with pytest.raises(SchemaMismatch, match="weightledger_redact is missing or was"):
                Ledger.open(roles["owner"])
            owner.execute(back.format("weightledger_redact"))
        Ledger.open(roles["owner"]).close()
