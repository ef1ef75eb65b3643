"""The command: reading without a server, writing with and without one, exit statuses."""

import contextlib
import csv
import getpass
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.serving import Server
from weightledger import Ledger
from weightledger.api.cli import main


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "weightledger", *args],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )


def inside(*args: str) -> tuple[int, str, str]:
    """Run the command in this process, which spares it importing torch: status, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr(sys, "argv", ["weightledger", *args])
        main()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def ok(*args: str) -> str:
    status, out, err = inside(*args)
    assert status == 0, err
    return out


def as_json(*args: str):
    return json.loads(ok(*args, "--json"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> str:
    """A data folder that a server has made and left."""
    server = Server(tmp_path_factory.mktemp("command") / "data").start()
    server.stop()
    return str(server.folder)


def test_a_session_without_a_server(stopped: str, tmp_path: Path) -> None:
    at = ("--data-dir", stopped)
    start = as_json("status", *at)
    assert (start["model"], start["server"]) == ("digits", None)
    done = as_json("update", "2.bias", "--data", "0.001", "--lr", "1", *at, "--offline")
    assert done["success"] is True
    named = as_json("version", "create", "half a step", *at, "--offline")["version_id"]
    listed = as_json("version", "list", *at)
    assert [(v["version_id"], v["is_active"]) for v in listed] == [
        (named, True),
        (listed[1]["version_id"], False),
    ]
    assert as_json("version", "show", named, *at)["description"] == "half a step"
    assert ok("version", "list", "-q", *at).split() == [v["version_id"] for v in listed]
    back = as_json("rollback", "--to", "head~1", *at, "--offline")
    assert back["to"]["digest"] == start["digest"] == as_json("status", *at)["digest"]
    assert back["undone"] == [done["update_id"]]
    log = as_json("log", *at)
    assert [e["kind"] for e in log[:3]] == ["rolled_back", "version_created", "updated"]
    assert as_json("show", done["update_id"], *at)["facts"]["parameter"] == "2.bias"
    assert len(as_json("log", "--parameter", "2.*", *at)) == 1
    assert as_json("log", "-n", "1", *at) == log[:1]
    rows = list(csv.reader(io.StringIO(ok("log", "--csv", *at))))
    assert rows[0] == ["seq", "recorded_at", "id", "kind", "what", "delta_norm", "actor", "reason"]
    assert len(rows) == len(log) + 1
    out = tmp_path / "w.safetensors"
    ok("replay", "--to", named, "-o", str(out), *at)
    before = tmp_path / "b.safetensors"
    ok("replay", "--to", "seq:0", "-o", str(before), *at)
    with safe_open(out, "pt") as new, safe_open(before, "pt") as old:
        assert new.metadata()["model"] == "digits"
        moved = new.get_tensor("2.bias") - old.get_tensor("2.bias")
        assert moved.tolist() == pytest.approx([0.001] * 10, abs=1e-6)
    report = as_json("verify", *at)
    assert (report["result"], report["first_bad_event"]) == ("ok", None)
    assert report["head_digest"] == start["digest"]


def test_writing_goes_to_the_server_that_holds_the_folder(server: Server) -> None:
    at = ("--data-dir", str(server.folder))
    seq = as_json("status", *at)["state_seq"]
    assert as_json("status", *at)["server"] == server.url
    done = as_json("update", "2.bias", "--data", "[" + "0.001," * 9 + "0.001]", *at)
    assert "accuracy" in done["post_metrics"]
    version = as_json("version", "create", "from the command", *at)["version_id"]
    assert as_json("rollback", "--to", "head~1", *at)["undone"] == [done["update_id"]]
    with server.client() as http:
        assert http.get("/readyz").json()["seq"] > seq
        assert http.get("/v1/models/versions").json()["versions"][0]["version_id"] == version
    assert as_json("verify", "--live", *at)["live_digest"]


def test_a_write_without_a_server_meets_the_evaluator_or_says_that_there_is_none(
    stopped: str, tmp_path: Path
) -> None:
    at = ("--data-dir", stopped, "--offline")
    status, out, err = inside("update", "2.weight", "--data", "0", "--type", "replace", *at)
    assert (status, "Automatic rollback" in out) == (1, True)
    assert "the evaluator of digits judges updates" in err
    refused = as_json("show", "head", "--data-dir", stopped)
    assert refused["kind"] == "update_rejected"
    assert refused["actor"] == getpass.getuser()
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.model("mine", base={"w": torch.zeros(2)})
    at = ("--data-dir", str(tmp_path), "--offline")
    status, out, err = inside("update", "w", "--data", "1", "--type", "replace", "-m", "why", *at)
    assert status == 0
    assert "offline: no evaluator is configured for mine: nothing is evaluated" in err
    written = as_json("show", "update_1", "--data-dir", str(tmp_path))
    assert (written["actor"], written["reason"]) == (getpass.getuser(), "why")
    assert written["facts"]["evidence"]["evaluated"] is False
    for words in (
        ("update", "w", "--data", "1"),
        ("rollback", "--to", "head"),
        ("version", "create", "x"),
        ("version", "pin", "v0"),
        ("version", "unpin", "v0"),
        ("version", "retire", "v0"),
    ):
        before = ok("log", "-q", "--data-dir", str(tmp_path))
        status, _, err = inside(*words, "--data-dir", str(tmp_path))
        assert (status, "--offline" in err) == (1, True)
        assert ok("log", "-q", "--data-dir", str(tmp_path)) == before


def test_a_refused_update_exits_1(server: Server) -> None:
    ran = command(
        "update", "2.weight", "--data", "0", "--type", "replace", "--data-dir", str(server.folder)
    )
    assert ran.returncode == 1
    assert "Automatic rollback" in ran.stdout


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (("status", "--data-dir", "/nonexistent"), 1, "no ledger in /nonexistent"),
        (("log", "--since", "teatime", "--data-dir", "{}"), 2, "--since takes 30m, 1h, 2d"),
        (("log", "--kind", "update", "--data-dir", "{}"), 2, "there is no kind 'update'"),
        (("show", "update_99_1", "--data-dir", "{}"), 1, "Update update_99_1 not found"),
        (("replay", "--to", "nowhere", "-o", "x", "--data-dir", "{}"), 1, "Position 'nowhere' not"),
        (("update", "2.bias", "--data", "{", "--data-dir", "{}"), 2, "--data takes JSON"),
        (("update", "2.bias", "--data", "1", "--data-dir", "{}"), 1, "--offline"),
        (("verify", "--live", "--data-dir", "{}"), 1, "or name one with --url"),
        (("version", "show", "v77_1", "--data-dir", "{}"), 1, "Version v77_1 not found"),
        (("status", "--model", "other", "--data-dir", "{}"), 1, "registered: digits"),
        (("replay", "-o", "/nonexistent/x", "--data-dir", "{}"), 1, "no folder /nonexistent"),
        (("log", "--json", "--csv", "--data-dir", "{}"), 2, "only one"),
        (("version", "list", "-q", "--csv", "--data-dir", "{}"), 2, "only one"),
        (("log", "--database", "postgresql://u@127.0.0.1:1/x"), 1, "refused Is the server"),
        (("serve", "--model", "nonsense"), 1, "module:factory"),
        (("serve", "--model", "nonsense:factory"), 1, "No module named 'nonsense'"),
        (("serve", "--port", "99999"), 2, "flag --port"),
        (("log", "-n", "0"), 2, ""),
        (("frobnicate",), 2, ""),
        (("rollback",), 2, ""),
    ],
)
def test_errors_are_one_line_and_a_status(
    stopped, tmp_path, monkeypatch, args, status, message
) -> None:
    monkeypatch.setenv("WEIGHTLEDGER_DATA_DIR", str(tmp_path / "data"))
    ended, _, said = inside(*(arg.replace("{}", stopped) for arg in args))
    assert ended == status
    assert message in said
    errors = [line for line in said.splitlines() if " INFO " not in line]  # the server's log
    assert status == 2 or len(errors) == 1


def test_an_error_of_a_real_process_is_one_line_too() -> None:
    ran = command("status", "--data-dir", "/nonexistent")
    assert ran.returncode == 1
    expected = (
        "weightledger: no ledger in /nonexistent; name its place with --data-dir or --database, or"
        " start one there with: weightledger serve --data-dir /nonexistent"
    )
    assert ran.stderr.splitlines() == [expected]


def test_commands_and_options_are_described() -> None:
    said = ok("--help")
    for name in (
        "serve",
        "status",
        "update",
        "version",
        "rollback",
        "log",
        "show",
        "replay",
        "verify",
    ):
        assert name in said
        assert "Usage" in ok(name, "--help")


def test_pins_and_gc_without_a_server(tmp_path: Path) -> None:
    server = Server(tmp_path / "data").start()
    server.stop()
    where = ("--data-dir", str(server.folder))
    ok("update", "2.bias", "--data", "1", "--lr", "0.000001", "--offline", *where)
    version = as_json("version", "create", "golden", "--offline", *where)["version_id"]
    ok("version", "pin", version, "--offline", *where)
    pinned = {one["version_id"]: one["pinned"] for one in as_json("version", "list", *where)}
    assert pinned[version] is True
    assert list(pinned.values()).count(True) == 1
    for options in (("--dry-run",), ()):
        report = as_json("gc", *options, *where)
        assert report["dry_run"] == bool(options)
        assert (report["states_retained"], report["states_pruned"]) == (2, 0)
    assert as_json("verify", *where)["result"] == "ok"
    ok("version", "unpin", "v1", "--offline", *where)
    assert not as_json("version", "show", "v1", *where)["pinned"]
    ok("version", "retire", "v0", "-m", "superseded", "--offline", *where)
    assert [one["version_id"] for one in as_json("version", "list", *where)] == [version]
    status, _, err = inside("gc", "--grace", "1", *where)
    assert (status, "at least 3600" in err) == (1, True)


@pytest.mark.parametrize("output", [">/dev/full", ">&-", "| head -c 1"])
def test_output_that_cannot_be_written_is_no_traceback(output: str) -> None:
    """A full disk is said; a stream that was closed before is nowhere, as for other programs."""
    line = f'"{sys.executable}" -m weightledger config list {output}'
    done = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    if "full" in output:
        assert done.returncode == 1
        assert done.stderr == (
            "weightledger: the output could not be written whole: No space left on device\n"
        )
    else:
        assert (done.returncode in {0, 1}, done.stderr) == (True, "")
