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
    ("metrics", "--json"): set(),
    ("version", "show", "v0"): set(),  # there is none, which is told as soon
    ("rollback", "--to", "seq:0", "--dry-run"): set(),
    ("export", "-o", "/dev/null"): set(),
    ("config", "show"): {"sqlalchemy"},
    ("config", "list"): {"sqlalchemy"},
    ("db", "role", "someone"): set(),
}
# What measured, judged or tried something is for those who ask for it.
UNASKED = {("log", "-n", "5"), ("log", "-n", "5", "--json"), ("show", "head"), ("version", "list")}
MONITORING = "weightledger.ledger.monitoring"
WITHOUT_LEDGER = HEAVY | {"sqlalchemy", "psycopg", "numpy", "pydantic", "httpx2", "obstore"}

# Each command runs in a process that was forked when there was what finds a command, and what the
# test says that many may import.
_REPORT = """
import importlib, sys, json, os
from weightledger.api.cli import main
for name in json.loads(sys.argv[2]):
    importlib.import_module(name)
where = sys.stdout.fileno()
for number, words in enumerate(json.loads(sys.argv[1])):
    if os.fork():
        if os.waitstatus_to_exitcode(os.wait()[1]) not in (0, 1):
            sys.exit(f"{words} failed")
        continue
    sys.argv = ["weightledger", *words]
    sys.stdout = open(os.devnull, "w")
    status = 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code or 0
    os.write(where, json.dumps([words, sorted(sys.modules)]).encode() + b"\\n")
    os._exit(status)
"""


def imported(
    *commands: tuple[str, ...], folder: Path | None = None, shared: tuple[str, ...] = ()
) -> dict[str, set[str]]:
    """The modules that each of these commands has imported when it ends, and those `shared`."""
    ran = subprocess.run(
        [sys.executable, "-c", _REPORT, json.dumps(commands), json.dumps(shared)],
        capture_output=True,
        text=True,
        env={**os.environ, "WEIGHTLEDGER_DATA_DIR": str(folder or "nowhere")},
    )
    assert ran.returncode == 0, ran.stderr
    lines = map(json.loads, ran.stdout.splitlines())
    told = {" ".join(words): set(modules) for words, modules in lines}
    assert set(told) == {" ".join(words) for words in commands}
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.make_folder(tmp_path_factory.mktemp("imports") / "data")


def test_every_command_that_reads_is_tried() -> None:
    others = {
        "serve",
        "follow",
        "rollout",
        "fleet",
        "update",
        "learn",
        "gc",
        "rules",
        "repair",
        "replay",
        "verify",
    } | {
        *("backup", "restore", "move", "import", "checkpoint", "proof", "diff", "blame", "bisect"),
        *("activity", "keys", "trials", "redact", "step", "consistency", "witness"),
        *("rotate-signing-key", "approvals", "reproduce", "hold", "sign"),
    }
    assert set(COMMANDS) - {args[0] for args in READING} == others


def test_a_command_that_reads_imports_nothing_large(folder: Path) -> None:
    told = imported(*READING, folder=folder)
    assert READING.keys() > UNASKED
    unasked = {args: {MONITORING} if args in UNASKED else set() for args in READING}
    large = {" ".join(args): HEAVY | more | unasked[args] for args, more in READING.items()}
    assert {args: told[args] & large[args] for args in told if told[args] & large[args]} == {}


def test_what_needs_no_ledger_imports_none() -> None:
    told = imported(("--help",), ("--version",))
    assert {args: names & WITHOUT_LEDGER for args, names in told.items()} == {
        "--help": set(),
        "--version": set(),
    }


_SPIN = """
import os, sys
from weightledger.api.cli import main
assert "numpy" not in sys.modules
sys.argv = ["weightledger", "--version"]
try:
    main()
finally:
    print(os.environ["OPENBLAS_THREAD_TIMEOUT"], "numpy" in sys.modules)
"""


@pytest.mark.parametrize("set_by", ["weightledger", "who calls it"])
def test_the_threads_of_numpy_are_told_not_to_spin_before_it_is_imported(set_by: str) -> None:
    """They read it when they are started, by the import."""
    env = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    if set_by == "who calls it":
        env["OPENBLAS_THREAD_TIMEOUT"] = "20"
    ran = subprocess.run(
        [sys.executable, "-c", _SPIN], check=True, capture_output=True, text=True, env=env
    )
    expected = "4" if set_by == "weightledger" else "20"
    assert ran.stdout.splitlines()[-1] == f"{expected} False"


def test_the_help_of_every_command_imports_nothing_large() -> None:
    # The help of some is made of the rules', or of what judges states.
    names = [name for name in COMMANDS if name not in ("rules", "learn", "bisect")]
    shared = ("sqlalchemy", "numpy", "rich.console", "rich.panel", "rich.table")
    told = imported(*((name, "--help") for name in names), shared=shared)
    assert {args: modules & HEAVY for args, modules in told.items() if modules & HEAVY} == {}
