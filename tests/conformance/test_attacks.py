"""The table of attacks, tried one by one; a server that runs as the role that can only append."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import torch
from alembic import command
from alembic.script import ScriptDirectory
from psycopg import errors

from tests.conformance import attacks
from tests.conformance.attacks import (
    AT_START,
    ATTACKS,
    BY_VERIFY,
    DENIED,
    ELSEWHERE,
    REFUSED,
    ROLES,
)
from tests.serving import serving
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import SchemaMismatch, StorageError
from weightledger.ledger.sql import redact_function, schema, triggers
from weightledger.ledger.sql.database import Database
from weightledger.ledger.sql.roles import grants
from weightledger.ledger.store.sql_store import SqlStore
from weightledger.ledger.writing.caller import Caller

MODEL = "m"
ROLE = "Ledger-Server"  # which has to be quoted

_numbers = itertools.count()


def fill(url: str) -> None:
    """Tables made by every migration in turn, and a log with each kind of row."""
    database = Database.connect(url)
    database.prepare()
    config = schema._config()
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    for revision in reversed(revisions):
        with database.change_schema() as (connection, execute):
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            there = database.backend.table_names(execute)
            missing = [name for name in triggers.PROTECTED if name not in there]
            missing += [redact_function.NAME] if revision < "0009" else []
            weak = database.backend.weaknesses(execute)
            assert [one for one in weak if not any(name in one for name in missing)] == [], revision
    assert not missing
    database.close()
    with Ledger.open(url) as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(8)})
        for value in (1.0, 2.0):
            log.apply(update(value, actor="ana", reason="because", idempotency_key=str(value)))
        log.create_version("named")


def update(value: float, **fields: Any) -> IncrementalUpdateRequest:
    return IncrementalUpdateRequest("w", value, learning_rate=1.0, update_type="additive", **fields)


def contents(url: str) -> list[Any]:
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        tables = ("events", "annotations", "touches", "models", "parameters")
        found = [
            connection.execute(sa.text(f"SELECT * FROM {name} ORDER BY 1, 2")).fetchall()
            for name in tables
        ]
    engine.dispose()
    return found


class Fresh:
    """Copies of one filled database: as URLs for whoever owns it, and for the server's role.

    Those on PostgreSQL go with the session's server; dropping each takes longer than all tests.
    """

    def __init__(self, folder: Path, server: Any, admin: psycopg.Connection[Any]) -> None:
        self._folder, self._server, self._admin = folder, server, admin
        fill(f"sqlite:///{folder}/filled.db")
        admin.execute("CREATE DATABASE filled")
        fill(server.get_uri(database="filled"))
        quoted = psycopg.sql.Identifier(ROLE).as_string(admin)
        admin.execute(f"CREATE ROLE {quoted} LOGIN")
        with psycopg.connect(server.get_uri(database="filled"), autocommit=True) as owner:
            for statement in grants(ROLE):
                owner.execute(statement)
        self.untouched_sqlite, self.untouched_postgres = self.sqlite(), self.postgres()

    def sqlite(self) -> str:
        copy = self._folder / f"{next(_numbers)}.db"
        shutil.copyfile(self._folder / "filled.db", copy)
        return f"sqlite:///{copy}"

    def postgres(self) -> tuple[str, str]:
        name = f"attacked_{next(_numbers)}"
        self._admin.execute(f"CREATE DATABASE {name} TEMPLATE filled")
        url = self._server.get_uri(database=name)
        return url, as_role(url)


def as_role(url: str) -> str:
    made = sa.make_url(url).set(username=ROLE, password=None)
    return made.render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def fresh(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: Any, postgres_admin: Any
) -> Fresh:
    return Fresh(tmp_path_factory.mktemp("attacks"), postgres_server, postgres_admin)


def edit_file(url: str) -> None:
    """Change one letter of a header in the database file itself."""
    path = Path(url.removeprefix("sqlite:///"))
    data = bytearray(path.read_bytes())
    at = data.rfind(b'"learning_rate":1')
    assert at > 0
    data[at + len(b'"learning_rate":')] = ord("2")
    path.write_bytes(data)


TRIED = [
    pytest.param(attack, role, id=f"{attack.name} - {role}")
    for attack in ATTACKS
    for role in ROLES
    if attack.outcome(role) != ELSEWHERE
]


@pytest.mark.parametrize(("attack", "role"), TRIED)
def test_attempts_end_as_the_table_says(
    fresh: Fresh, plain: Callable[[str], Any], attack: attacks.Attack, role: str
) -> None:
    expected = attack.outcome(role)
    harmless = expected in (REFUSED, DENIED)
    if role == attacks.SQLITE:
        url = who = fresh.untouched_sqlite if harmless else fresh.sqlite()
    else:
        url, server = fresh.untouched_postgres if harmless else fresh.postgres()
        who = url if role == attacks.OWNER else server
    before = contents(url)
    with Ledger.open(url) as ledger:  # one that is open already when it happens
        raised = attempt(plain(who), attack, url)
        if harmless:
            assert raised is not None, "it was not refused"
            denied = isinstance(raised, errors.InsufficientPrivilege)
            assert denied == (expected == DENIED), raised
            assert denied or "weightledger: " in str(raised)
            assert contents(url) == before
            assert verify(ledger.history(MODEL)).problem is None
            return
        assert raised is None
        try:
            problem = verify(ledger.history(MODEL)).problem
        except StorageError as error:  # a table is not there any more
            problem = str(error)
        assert problem is not None
    if expected == AT_START:
        with pytest.raises(SchemaMismatch):
            SqlStore.open(url)
    else:
        assert expected == BY_VERIFY
        SqlStore.open(url).close()


def attempt(connection: Any, attack: attacks.Attack, url: str) -> Exception | None:
    """The error that stopped it, which only the last statement may raise on its own account."""
    if attack.statements == ("",):
        edit_file(url)
        return None
    try:
        for statement in attack.statements:
            connection.execute(statement)
    except Exception as error:
        return error
    return None


def test_the_page_shows_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs/security.md").read_text()
    assert attacks.table() in page


def test_the_page_lists_the_rights() -> None:
    page = (Path(__file__).parents[2] / "docs/security.md").read_text()
    assert "\n".join(f"{statement};" for statement in grants("ledger_server")) in page


# The role that can only append


def test_a_ledger_works_in_full_as_the_role_that_can_only_append(fresh: Fresh) -> None:
    _, url = fresh.postgres()
    with Ledger.open(url) as ledger:
        log = ledger.model("other", base={"a": torch.zeros(400, 400), "b": torch.zeros(3)})
        for number in range(4):  # payloads as blobs, and a snapshot once they add up
            generator = torch.Generator().manual_seed(number)
            data = torch.randn(400, 400, generator=generator)
            log.apply(IncrementalUpdateRequest("a", data, update_type="replace", actor="ana"))
        log.snapshot()
        log.snapshot()
        names = [log.create_version(f"number {n}").name for n in range(3)]
        assert len(log.retire_versions(keep=2)) == 2
        log.rollback("seq:1", caller=Caller(reason="worse", idempotency_key="k"))
        log.record({"a": torch.ones(400, 400), "b": torch.ones(3)}, metadata={"ticket": 1})
        head = log.history.head()
        assert [version.version_id for version in log.versions()] == names[:0:-1]
        assert {p.name: p.update_count for p in log.history.parameters()} == {"a": 5, "b": 1}
    with Ledger.open(url, upgrade=False) as ledger:
        log = ledger.model("other")
        assert log.history.head() == head
        assert log.events(actors=["ana"], parameter="a", limit=2)[0].seq == 4
        assert verify(log.history).problem is None
        assert verify(ledger.history(MODEL)).problem is None


def test_a_server_runs_as_the_role_that_can_only_append(fresh: Fresh, tmp_path: Path) -> None:
    _, url = fresh.postgres()
    model = "tests.faults.models:factory"
    options = ("--model", model, "--database", url, "--checkpoint-interval", "2")
    for start in range(2):
        with serving(tmp_path / "data", *options) as server, server.client() as http:
            for n in range(3):
                sent = {"parameter_name": "0.weight", "update_data": 0.1 * (n + start + 1)}
                assert http.post("/v1/models/incremental_update", json=sent).status_code == 200
            made = http.post("/v1/models/create_version", json={"description": "kept"})
            back = http.post("/v1/models/rollback", json={"version_id": "head~1"})
            assert (made.status_code, back.status_code) == (200, 200)
            assert http.post("/v1/models/verify", json={}).status_code == 200
    with Ledger.open(url) as ledger:
        assert verify(ledger.history(model)).problem is None


def test_who_may_not_make_tables_is_told_who_does(fresh: Fresh, postgres_admin: Any) -> None:
    name = f"attacked_{next(_numbers)}"
    postgres_admin.execute(f"CREATE DATABASE {name}")
    url = as_role(fresh._server.get_uri(database=name))
    with pytest.raises(StorageError, match=r"permission denied.*weightledger db upgrade"):
        SqlStore.open(url)


def test_an_event_that_a_rule_swallows_is_not_acknowledged(fresh: Fresh) -> None:
    url, server = fresh.postgres()
    with Ledger.open(server) as ledger:
        log = ledger.model(MODEL)
        head, live = log.history.head(), log.live
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute("CREATE RULE r AS ON INSERT TO events DO INSTEAD NOTHING")
        with pytest.raises(StorageError, match="without storing it"):
            log.apply(update(3.0))
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute("DROP RULE r ON events")
        assert (log.history.head(), log.live) == (head, live)
        assert log.apply(update(3.0)).seq == head.seq + 1
        assert verify(log.history).problem is None
