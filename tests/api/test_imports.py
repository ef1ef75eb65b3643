"""What a command imports, and so how soon it answers. Counted, not timed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import folders
from weightledger.api.cli import COMMANDS

# The large ones; each costs more than the whole of a short command.
HEAVY = {
    "torch",
    "numba",
    "fastapi",
    "starlette",
    "uvicorn",
    "alembic",
    "pydantic_settings",
    "transformers",
    "sklearn",
    "prometheus_client",
    "weightledger.api.rest",
    "weightledger.rules",
}
# Those that a command which reads events needs besides, where it reads them.
READING = {
    ("status",): set(),
    ("log", "-n", "5"): set(),
    ("log", "-n", "5", "--json"): set(),
    ("show", "head"): set(),
    ("version", "list"): set(),
    ("version", "show", "v0"): set(),  # there is none, which is told as soon
    ("rollback", "--to", "seq:0", "--dry-run"): set(),
    ("export", "-o", "/dev/null"): set(),
    ("config", "show"): {"sqlalchemy"},
    ("config", "list"): {"sqlalchemy"},
    ("db", "role", "someone"): set(),
}
WITHOUT_LEDGER = HEAVY | {"sqlalchemy", "psycopg", "numpy", "pydantic", "httpx2", "obstore"}

_REPORT = """
import sys, json, atexit
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
sys.argv = ["weightledger", *json.loads(sys.argv[1])]
from weightledger.api.cli import main
main()
"""


def imported(*args: str, folder: Path | None = None) -> set[str]:
    """The modules that a command has imported when it ends."""
    ran = subprocess.run(
        [sys.executable, "-c", _REPORT, json.dumps(args)],
        capture_output=True,
        text=True,
        env={**os.environ, "WEIGHTLEDGER_DATA_DIR": str(folder or "nowhere")},
    )
    assert ran.returncode in (0, 1), ran.stderr
    return set(json.loads(ran.stderr.splitlines()[-1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.make_folder(tmp_path_factory.mktemp("imports") / "data")


def test_every_command_that_reads_is_tried() -> None:
    others = {"serve", "update", "learn", "gc", "rules", "repair", "replay", "verify"} | {
        *("backup", "restore", "move", "import", "checkpoint", "proof", "diff"),
    }
    assert set(COMMANDS) - {args[0] for args in READING} == others


@pytest.mark.parametrize("args", READING, ids=" ".join)
def test_a_command_that_reads_imports_nothing_large(args: tuple[str, ...], folder: Path) -> None:
    assert not imported(*args, folder=folder) & (HEAVY | READING[args])


@pytest.mark.parametrize("args", [("--help",), ("--version",)], ids=" ".join)
def test_what_needs_no_ledger_imports_none(args: tuple[str, ...]) -> None:
    assert not imported(*args) & WITHOUT_LEDGER


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_imports_nothing_large(name: str) -> None:
    if name in ("rules", "learn"):
        return  # their help is made of the rules'
    assert not imported(name, "--help") & HEAVY
