"""Bits flipped in a SQLite file: whatever a query can see of them, `verify` finds.

A flip is aimed at bytes that the file uses: page headers, cell pointers, cells and overflow pages.
One that no query can see (the file's change counters, the time at which a blob was last put, a byte
between cells) is nobody's to find, so what every table and every index says is compared.
"""

import asyncio
import contextlib
import itertools
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from weightledger import (
    Caller,
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    Ledger,
    TorchEngine,
)
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import LedgerError
from weightledger.ledger.sql.sqlite_driver import driver
from weightledger.ledger.writing.commands import Pin

MODEL = "m"
NOBODYS = {"touched_at"}  # the time at which a blob was last put
# Alembic's own, which names the revision; a flip may make its name a blob.
NOBODYS_TABLES = {"alembic_version", b"alembic_version"}
_LEAF_INDEX, _LEAF_TABLE, _INNER_INDEX, _INNER_TABLE = 10, 13, 2, 5
_HEADERS = {_LEAF_INDEX: 8, _LEAF_TABLE: 8, _INNER_INDEX: 12, _INNER_TABLE: 12}
_FILE_HEADER = 100


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with something in every table and every index, closed."""
    folder = tmp_path_factory.mktemp("flips")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    manager = DynamicModelManager(
        TorchEngine(net), MODEL, config=DynamicUpdateConfig(backup_dir=folder)
    )
    log = manager.log
    log.create_initial_version()
    for number in range(270):
        name = ("0.weight", "0.bias", "1.weight", "1.bias")[number % 4]
        fields: dict[str, Any] = {}
        if number % 7 == 0:
            fields = {"actor": "ana", "reason": "because", "metadata": {"n": number}}
        if number % 5 == 0:
            fields["idempotency_key"] = f"key {number}"
        log.apply(IncrementalUpdateRequest(name, float(number % 3), 1.0, **fields))
    version = asyncio.run(manager.create_version("second"))
    log.execute(Pin(version))
    log.rollback("seq:200", caller=Caller(actor="bo"))
    log.apply(IncrementalUpdateRequest("0.bias", 3.4e38, 1.0, "multiplicative"))
    log.snapshot()
    log.create_version("third")
    log.retire_versions(keep=2)
    manager.close()
    path = folder / "ledger.db"
    connection = driver.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = DELETE").fetchall()
    connection.close()
    return path


def used(data: bytes) -> list[int]:
    """The places of the bytes that a file uses, its own header apart."""
    size = int.from_bytes(data[16:18], "big")
    places: list[int] = []
    for page in range(0, len(data), size):
        start = page + (_FILE_HEADER if page == 0 else 0)
        header = _HEADERS.get(data[start])
        if header is None:  # an overflow page
            places += range(page, page + size)
            continue
        cells = int.from_bytes(data[start + 3 : start + 5], "big")
        content = int.from_bytes(data[start + 5 : start + 7], "big") or 65536
        places += range(start, start + header + 2 * cells)
        places += range(page + content, page + size)
    return places


def seen(path: Path) -> Any:
    """What queries see: every table without its indexes, and through each of them."""
    connection = driver.connect(path)
    try:
        told: list[Any] = []
        tables = connection.execute("SELECT * FROM sqlite_master").fetchall()
        told.append([row for row in tables if row[2] not in NOBODYS_TABLES])
        for kind, name, table, _, sql in tables:
            if kind == "table":
                columns = [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
                shown = ", ".join(column for column in columns if column not in NOBODYS)
                told.append(
                    connection.execute(f"SELECT {shown} FROM {name} NOT INDEXED").fetchall()
                )
            elif kind == "index" and sql:
                where = sql.partition(" WHERE ")[2] or "true"
                columns = sql.partition("(")[2].partition(")")[0]
                query = f"SELECT {columns} FROM {table} INDEXED BY {name} WHERE {where}"
                told.append(connection.execute(query).fetchall())
        return told
    except driver.Error as error:
        return repr(error)
    finally:
        connection.close()


def outcome(path: Path) -> str:
    """How verifying a file ends."""
    try:
        with Ledger.open(f"sqlite:///{path}", upgrade=False, guarded=False) as ledger:
            names = ledger.models()
            if names != [MODEL]:
                return "noticed: another model"
            report = verify(ledger.history(MODEL))
            return "unnoticed" if report.ok else "noticed by verify"
    except LedgerError as error:
        return f"noticed: {type(error).__name__}"
    except Exception as error:
        return f"not an error of ours: {error!r}"


def flips(data: bytes, count: int, seed: int) -> Iterator[tuple[int, int]]:
    """Places and bits, no two the same."""
    chance = random.Random(seed)
    places = used(data)
    return iter({(chance.choice(places), chance.randrange(8)) for _ in range(count)})


@pytest.mark.parametrize("count", [40, pytest.param(2_000, marks=pytest.mark.soak)])
def test_no_flipped_bit_that_a_query_can_see_goes_unnoticed(
    file: Path, tmp_path: Path, count: int
) -> None:
    data = file.read_bytes()
    expected = seen(file)
    assert outcome(file) == "unnoticed"
    path = tmp_path / "flipped.db"
    outcomes: Counter[str] = Counter()
    missed: list[tuple[int, int, str]] = []
    for place, bit in flips(data, count, seed=count):
        changed = bytearray(data)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        told = outcome(path)
        if told == "unnoticed":
            told = "unnoticed" if seen(path) != expected else "not to be seen"
        outcomes[told.partition(":")[0]] += 1
        if told == "unnoticed" or told.startswith("not an error"):
            missed.append((place, bit, told))
    print(f"{count} flips: {dict(outcomes)}")  # noqa: T201
    assert missed == [], missed


# What a flipped bit of a record's header makes of a value, and what nobody meant.
VALUES = [7, -5, 2**62, 1.5, "abc", "a\0b", b"abc", None]


@pytest.mark.parametrize("values", [VALUES[4:5], pytest.param(VALUES, marks=pytest.mark.soak)])
def test_a_value_of_another_type_in_any_column_is_damage(
    file: Path, tmp_path: Path, values: list[object]
) -> None:
    path = tmp_path / "changed.db"
    connection = driver.connect(file)
    tables = [
        (table, column, declared)
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for _, column, declared, *_ in connection.execute(f"PRAGMA table_info({table})")
        if column not in NOBODYS
    ]
    connection.close()
    outcomes: dict[tuple[str, str, object], str] = {}
    for table, column, declared in tables:
        of_text = "TEXT" in declared or "CHAR" in declared
        for value in [b"\xff" if of_text and value == "abc" else value for value in values]:
            shutil.copy(file, path)
            if put(path, table, column, value):
                outcomes[table, column, value] = outcome(path)
    wrong = {case: told for case, told in outcomes.items() if not told.startswith("noticed")}
    assert len(outcomes) > 40
    assert wrong == {}


def test_a_catalogue_entry_of_another_type_is_damage(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "changed.db"
    with contextlib.closing(driver.connect(file)) as connection:
        entries = connection.execute("SELECT name, tbl_name FROM sqlite_master").fetchall()
    names = [name for name, table in entries if table not in NOBODYS_TABLES]
    outcomes: dict[tuple[str, str], str] = {}
    for name, column in itertools.product(names[::3], ("type", "name", "tbl_name")):
        shutil.copy(file, path)
        with contextlib.closing(driver.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute(
                f"UPDATE sqlite_master SET {column} = CAST({column} AS BLOB) WHERE name = ?",
                (name,),
            )
        outcomes[name, column] = outcome(path)
    wrong = {case: told for case, told in outcomes.items() if not told.startswith("noticed")}
    assert len(outcomes) > 40
    assert wrong == {}


def put(path: Path, table: str, column: str, value: object) -> bool:
    """Write a value into a row in the middle of a table; whether SQLite took it as it is."""
    connection = driver.connect(path, isolation_level=None)
    try:
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        middle = f"LIMIT 1 OFFSET (SELECT count(*) / 2 FROM {table})"
        rows = connection.execute(f"SELECT * FROM {table} {middle}")
        names = [name for name, *_ in rows.description]
        row = rows.fetchone()
        if row is None:
            return False
        connection.execute(
            f"UPDATE {table} SET {column} = ? WHERE {' AND '.join(f'{n} IS ?' for n in names)}",
            (value, *row),
        )
        for _, sql in triggers:
            connection.execute(sql)
        kept = connection.execute(f"SELECT {column} FROM {table}").fetchall()
        return row[names.index(column)] != value and (value,) in kept
    except driver.IntegrityError:
        return False
    finally:
        connection.close()
