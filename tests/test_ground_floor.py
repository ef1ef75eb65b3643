"""The ground floor: what reads and checks a log runs without torch, numba and what they bring."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures import databases
from tests.test_architecture import FLOORS, PACKAGE, floor, modules, name_of
from weightledger.ledger.store.sql_store import SqlStore

# Below the engines everything is on the ground floor but for these, which move tensors.
UPSTAIRS = {
    *(f"ledger.tensors.{name}" for name in ("compiling", "lanes", "memory", "rounding", "tree")),
    *(
        f"ledger.codecs.{name}"
        for name in (
            "calling",
            "compiled",
            "compiled_check",
            "compiled_encoding",
            "compiled_frames",
            "compiled_packing",
            "compiled_pass",
            "compiled_steps",
            "factors",
            "on_device",
        )
    ),
    *(f"ledger.adapters.{name}" for name in ("adapter", "fit", "folder")),
    *(
        f"ledger.history.{name}"
        for name in ("replay", "small_replay", "steps", "rebuilding", "snapshot_tensors")
    ),
    *(f"ledger.audit.{name}" for name in ("states", "repair")),
    "ledger.history.anchor_repair",
}
ENGINES = floor("ledger.engines")[0]
LOWER = [
    name
    for name in map(name_of, modules("ledger"))
    if name != "ledger"
    and (floor(name)[0] < ENGINES or floor(name)[1] in ("ledger.audit", "ledger.ledger"))
]
# Drivers, stores and compilers are for those who open one or need one.
HEAVY = ("torch", "numba", "alembic", "fastapi", "pydantic", "obstore", "psycopg", "transformers")
OPENED = {
    "ledger.sql.postgres": "psycopg",
    "ledger.sql.postgres_ahead": "psycopg",
    "ledger.sql.postgres_alone": "psycopg",
    "ledger.sql.postgres_failures": "psycopg",
    "ledger.sql.postgres_sockets": "psycopg",
    "ledger.sql.postgres_pipeline": "psycopg",
    "ledger.sql.postgres_waiting": "psycopg",
    "ledger.sql.advisory_slots": "psycopg",
    "ledger.sql.advisory_turns": "psycopg",
    "ledger.sql.machine_turns": "psycopg",
    "ledger.sql.notifications": "psycopg",
    "ledger.blobs.buckets": "obstore",
    "ledger.blobs.objects": "obstore",
    "ledger.blobs.failures": "obstore",
}

IMPORTED = f"""
import importlib, json, sys
loaded = {{}}
for name in json.loads(sys.argv[1]):
    importlib.import_module("{PACKAGE}." + name)
    loaded[name] = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]
print(json.dumps(loaded))
"""


def imported(names: list[str]) -> dict[str, list[str]]:
    """What a fresh interpreter has loaded of HEAVY after each of these imports."""
    command = [sys.executable, "-c", IMPORTED, json.dumps(names)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    loaded: dict[str, list[str]] = json.loads(told)
    return loaded


def test_the_table_of_floors_has_a_ground_floor() -> None:
    assert len(LOWER) > 60
    assert UPSTAIRS | OPENED.keys() <= set(LOWER)
    assert {name for room in FLOORS[:3] for name in room} & {floor(name)[1] for name in LOWER}


def test_the_ground_floor_needs_no_torch_and_nothing_that_is_not_opened() -> None:
    names = [name for name in LOWER if name not in UPSTAIRS | OPENED.keys()]
    loaded = imported(names)
    assert {name: heavy for name, heavy in loaded.items() if heavy} == {}


@pytest.mark.parametrize("name", sorted(OPENED))
def test_a_driver_is_loaded_by_what_opens_it(name: str) -> None:
    assert imported([name])[name] == [OPENED[name]]


READING = """
import json, sys
from weightledger import Ledger
with Ledger.open(sys.argv[1], upgrade=False) as ledger:
    history = ledger.history(sys.argv[2])
    events = history.events()
    history.resolve("head~1"), history.versions(), history.parameters(), history.pruned
    history.store.payloads(events), history.store.annotations(range(len(events)))
print(json.dumps([name for name in json.loads(sys.argv[3]) if name in sys.modules]))
"""


def test_a_log_is_read_without_torch(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    databases.restore(url, None)
    SqlStore.open(url).close()  # brings its tables up to date
    command = [sys.executable, "-c", READING, url, databases.MODEL, json.dumps(HEAVY)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert json.loads(told) == []


ENGINE = """
import sys
import torch
from weightledger import TorchEngine
TorchEngine(torch.nn.Linear(2, 2))
print("torch._dynamo" in sys.modules)
"""


def test_a_model_that_is_not_compiled_needs_no_compiler() -> None:
    """Importing it takes as long as torch itself."""
    command = [sys.executable, "-c", ENGINE]
    assert subprocess.run(command, check=True, capture_output=True).stdout == b"False\n"
