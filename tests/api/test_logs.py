"""What a server logs and counts: one line an event, whatever strangers write into it."""

import json
import logging
import os
import pty
import re
import sys
import termios

import pytest
import sqlalchemy as sa
from rich.cells import cell_len

from tests import patient
from tests.conftest import new_database
from tests.serving import Server, serving
from tests.waiting import until
from weightledger.api.plain_text import plain
from weightledger.api.rest.observing import Writes
from weightledger.api.server.logs import JsonLines, Lines, TerminalLines

UPDATE = "/v1/models/incremental_update"
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ [\w.]+: .*")


def update(value: object = 0.001, **more: object) -> dict:
    return {"parameter_name": "2.bias", "update_data": value, **more}


def entry(message: str, *args: object, error: bool = False) -> logging.LogRecord:
    exc_info = None
    if error:
        try:
            raise ValueError("first\nsecond postgresql://u:hunter2-Zx9@h/x")
        except ValueError:
            exc_info = sys.exc_info()
    return logging.LogRecord("weightledger.x", logging.INFO, __file__, 1, message, args, exc_info)


@pytest.mark.parametrize(
    "text", ["a\nb", "a\r\nINFO forged: line", "\x1b]0;owned\x07", "\x9b31m", "\u2028", "\u202e"]
)
def test_a_line_stays_a_line(text: str) -> None:
    line = Lines().format(entry("refused: %s", text))
    assert LINE.fullmatch(line)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u202e]", line)
    told = json.loads(JsonLines().format(entry("refused: %s", text)))
    assert told["message"] == f"refused: {text}"


def test_a_traceback_is_one_line_without_secrets() -> None:
    line = Lines().format(entry("failed", error=True))
    assert LINE.fullmatch(line)
    assert "ValueError: first\\nsecond" in line
    assert "hunter2" not in line + JsonLines().format(entry("failed", error=True))


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_on_a_terminal_what_informs_takes_one_line_and_what_warns_is_whole(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "w") as terminal:
        termios.tcsetwinsize(theirs, (24, columns))
        monkeypatch.setattr(sys, "stderr", terminal)
        for text in ("short", "x" * 50, "長い名前" * 30, "a\nb" * 60):
            record = entry("digits: %s", text)
            record.name = "weightledger.ledger.manager"
            line = TerminalLines().format(record)
            assert re.match(r"\d\d:\d\d:\d\dZ INFO manager: digits: ", line)
            assert cell_len(line) <= columns
            whole = f"INFO manager: digits: {plain(text)}"
            assert whole in line or (line.endswith("…") and columns - cell_len(line) <= 1)
            record.levelno, record.levelname = logging.WARNING, "WARNING"
            assert plain(text) in TerminalLines().format(record)


def test_a_server_on_a_terminal_writes_lines_for_people(tmp_path) -> None:
    """And when stderr is a file, lines for programs, which the tests above read."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 90))
    server = Server(tmp_path / "data")
    with os.fdopen(theirs, "wb") as terminal:
        server.start(terminal)
    try:
        with server.client(**{"x-request-id": "r" * 100}) as http:
            http.post(UPDATE, json=update()).raise_for_status()
    finally:
        server.stop()
    with os.fdopen(ours, "rb") as screen:
        lines = os.read(screen.fileno(), 1 << 16).decode().splitlines()
    entries = [line for line in lines if re.match(r"\d\d:\d\d:\d\dZ ", line)]
    assert len(entries) > 4 and all(len(line) <= 90 for line in entries)
    shown = [line for line in lines if "applied update_1" in line]
    assert len(shown) == 1
    assert re.match(r"\d\d:\d\d:\d\dZ INFO manager: digits: applied update_1_\d+ \(seq ", shown[0])
    assert shown[0].endswith("…")


def test_an_outage_of_writes_is_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    writes = Writes(lambda: now)
    caplog.set_level(logging.INFO)
    writes.succeeded()
    writes.failed("unavailable")  # too many readers: nothing is wrong
    assert writes.outage is None
    for _ in range(3):
        writes.failed("storage_full")
    assert writes.outage is not None
    assert (writes.outage.since, writes.outage.refused) == (100.0, 3)
    now = 107.0
    writes.succeeded()
    writes.succeeded()
    assert writes.outage is None
    assert [record.message for record in caplog.records] == [
        "writes fail: storage_full",
        "writes go through again after 7.0 s; 3 were refused",
    ]


def test_every_event_is_a_line_with_who_and_why(tmp_path) -> None:
    options = ("--api-key", "wl_k", "--log-format", "json")
    with serving(tmp_path / "data", *options) as server:
        auth = {"authorization": "Bearer wl_k"}
        with server.client(**auth) as http:
            sent = {"x-request-id": "req-1"}
            applied = http.post(UPDATE, json=update(), headers=sent).json()["data"]["update_id"]
            ruin = update(0, parameter_name="2.weight", update_type="replace")
            refused = http.post(UPDATE, json=ruin, headers={"x-request-id": "req-2"}).json()
            assert not refused["success"]
            back = {"version_id": "head~1"}
            http.post("/v1/models/rollback", json=back, headers={"x-request-id": "req-3"})
            metrics = http.get("/metrics").text
    entries = [json.loads(line) for line in server.output().splitlines() if line[0] == "{"]
    told = {one["kind"]: one for one in entries if "kind" in one}
    assert all(one["logger"].startswith(("weightledger", "uvicorn")) for one in entries)
    assert {one["time"][-1] for one in entries} == {"Z"}
    assert told["updated"]["event"] == applied
    assert told["updated"]["request_id"] == "req-1"
    assert told["updated"]["actor"] == "api-key"
    assert told["updated"]["logger"] == "weightledger.ledger.manager"
    assert told["update_rejected"]["level"] == "WARNING"
    assert "accuracy" in told["update_rejected"]["message"]
    assert told["rolled_back"]["request_id"] == "req-3"
    assert "to head~1" in told["rolled_back"]["message"]
    for series in (
        'weightledger_requests_total{method="POST",route="/v1/models/rollback",status="200"} 1.0',
        'weightledger_queue_depth{model_name="digits",queue="writes"} 0.0',
        'weightledger_held_versions{model_name="digits"} 0.0',
        'weightledger_ready{model_name="digits"} 1.0',
        'weightledger_writes_failing{model_name="digits"} 0.0',
    ):
        assert series in metrics
    build = r'weightledger_build_info\{database="SQLite [\d.]+",version="[\w.]+"\} 1.0'
    assert re.search(build, metrics)


def test_the_log_is_as_quiet_as_it_is_told_to_be(tmp_path) -> None:
    with serving(tmp_path / "data", "--log-level", "warning") as server:
        patient.post(server.url + UPDATE, json=update()).raise_for_status()
    lines = [line for line in server.output().splitlines() if LINE.fullmatch(line)]
    assert not [line for line in lines if " INFO " in line]


def test_reading_goes_on_while_writes_fail_and_says_so(request, tmp_path) -> None:
    """The database lets nobody write, then lets nobody in at all."""
    with new_database(request, "postgresql", tmp_path) as url:
        admin = request.getfixturevalue("postgres_admin")
        name = sa.make_url(url).database
        with serving(tmp_path / "data", "--database", url) as server, server.client() as http:
            drop = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            admin.execute(drop, (name,))
            reply = http.post(UPDATE, json=update())
            assert reply.status_code == 503, reply.text
            until(lambda: http.get("/readyz").status_code == 200)
            health = http.get("/health").json()
            assert health["status"] == "degraded"
            assert health["writes"]["status"] == "failing"
            assert health["writes"]["code"] == "storage_unavailable"
            assert health["database"].startswith("PostgreSQL ")
            admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
            admin.execute(drop, (name,))
            until(lambda: http.post(UPDATE, json=update()).status_code == 200)
            assert http.get("/health").json()["writes"] == {"status": "ok"}
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            admin.execute(drop, (name,))
            until(lambda: http.get("/readyz").status_code == 503)
            shown = http.get("/metrics")
            assert shown.status_code == 200
            assert "weightledger_ready" in shown.text
            assert 'weightledger_ready{model_name="digits"} 0.0' in shown.text
            assert "weightledger_head_seq" not in shown.text
            assert 'weightledger_failed_writes_total{code="storage_unavailable"' in shown.text
            until(lambda: "cannot follow the log: " in server.output())
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            until(lambda: "the log can be followed again after" in server.output())
            assert http.get("/readyz").status_code == 200
        assert "writes fail: storage_unavailable" in server.output()
        assert "writes go through again after" in server.output()
