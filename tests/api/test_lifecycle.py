"""Start and stop as an operator sees them: addresses, what is said, and an orderly end."""

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import httpx2
import pytest
from safetensors.torch import save_file

from tests import patient, warm
from tests.api.test_command import as_json, inside, ok
from tests.serving import COLD, Server, serving
from tests.text_models import save_llama
from tests.waiting import PATIENCE_S, until
from weightledger import Ledger
from weightledger.api.server.digits import digits_module, load_digits
from weightledger.ledger.config import DynamicUpdateConfig
from weightledger.ledger.http import client
from weightledger.ledger.sql import presence
from weightledger.ledger.sql.presence import Announced, announce, servers

# Of whoever writes, a server or not; they say nothing of the ledger, and are left there.
LOCKS = {"ledger.db-writer", "ledger.db-turns", "ledger.db-reserve"}
UPDATE = "/v1/models/incremental_update"


@pytest.mark.parametrize(
    ("number", "command"), [(signal.SIGTERM, COLD), (signal.SIGINT, None)], ids=["TERM", "INT"]
)
def test_told_to_stop_it_finishes_closes_and_says_so(
    number: int, command: tuple[str, ...] | None, tmp_path: Path
) -> None:
    server = Server(tmp_path / "data", command=command).start()
    assert server.process is not None
    acknowledged: list[str] = []
    failures: list[Exception] = []

    def write() -> None:
        body = {"parameter_name": "2.bias", "update_data": 1e-6}
        with contextlib.suppress(httpx2.HTTPError), server.client() as http:
            while True:
                reply = http.post(UPDATE, json=body).json()
                if "data" not in reply:
                    failures.append(RuntimeError(reply))
                    return
                acknowledged.append(reply["data"]["update_id"])

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    until(lambda: len(acknowledged) > 20, pid=server.process.pid)
    server.process.send_signal(number)
    assert server.process.wait(PATIENCE_S) == 0
    for writer in writers:
        writer.join()
    assert failures == []
    assert server.output().splitlines()[-1].endswith("stopped")
    assert "Traceback" not in server.output()
    kept = {path.name for path in server.folder.iterdir()} - LOCKS
    assert kept == {"ledger.db", "signing.key", "checkpoints"}
    # The file alone is the whole ledger.
    (tmp_path / "copy").mkdir()
    shutil.copy(server.folder / "ledger.db", tmp_path / "copy")
    copied = ok("log", "-n", "100000", "-q", "--data-dir", str(tmp_path / "copy")).split()
    assert set(acknowledged) <= set(copied)
    ok("verify", "--data-dir", str(tmp_path / "copy"))


def test_a_stream_ends_with_a_last_event(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "tiny-llama", max_position_embeddings=200_000, eos_token_id=None)
    with serving(tmp_path / "data", "--model", str(model)) as server:
        assert server.process is not None
        asked = {"model": "tiny-llama", "prompt": "x", "max_tokens": 100_000, "stream": True}
        with (
            server.client() as http,
            http.stream("POST", "/v1/completions", json=asked) as reply,
        ):
            lines = reply.iter_lines()
            assert next(lines).startswith("data: {")
            server.process.terminate()
            said = [line.removeprefix("data: ") for line in lines if line]
        error = json.loads(said[-1])["error"]
        assert error["message"].startswith("the server is stopping")
        assert server.process.wait(PATIENCE_S) == 0


def test_told_to_stop_while_it_starts_it_stops(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(dict(digits_module().state_dict()), folder / "model.safetensors")
    options = ("--engine", "vllm", "--engine-url", "http://127.0.0.1:9", "--model", str(folder))
    server = Server(tmp_path / "data", *options)
    starting = threading.Thread(target=_start, args=(server,))
    starting.start()
    until(lambda: server.log.exists() and "waiting for vllm" in server.output())
    assert server.process is not None
    server.process.terminate()
    assert server.process.wait(PATIENCE_S) == 0
    starting.join()
    assert server.output().splitlines()[-1].endswith("stopped")
    assert list(server.folder.iterdir()) == []


def _start(server: Server) -> None:
    with contextlib.suppress(RuntimeError):
        server.start()


def test_port_0_is_named_as_what_it_became(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "weightledger", "serve", "--port", "0", "--data-dir", "data"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            block: list[str] = []
            while not block or not block[-1].startswith("  stop"):
                line = process.stdout.readline()
                assert line, block
                block.append(line)
            said = dict(re.findall(r"^  (\w+) +(.*)$", "".join(block), re.M))
            url = said["address"]
            assert not url.endswith(":0")
            assert patient.get(f"{url}/readyz").status_code == 200
            data = tmp_path / "data"
            assert said["docs"] == f"{url}/docs"
            assert said["dashboard"] == f"{url}/"
            assert said["data"] == str(data)
            assert said["access"] == "no API key: loopback only"
            assert said["model"].startswith("digits at seq 0")
            assert said["stop"] == f"Ctrl-C, or: kill {process.pid}"
            assert as_json("status", "--data-dir", str(data))["server"] == url
            assert json.loads((data / "serve.lock").read_text())["url"] == url
            ok("update", "2.bias", "--data", "0", "--data-dir", str(data))
        finally:
            process.terminate()  # what fails here must not wait for it for ever
        assert process.wait(PATIENCE_S) == 0


def test_an_idle_connection_outlives_the_clients_own_patience(tmp_path: Path) -> None:
    """httpx keeps idle connections for five seconds; a server that closes its end then loses the
    request that is sent in the same moment."""
    with serving(tmp_path / "data") as server:
        wire = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
        wire.connect()
        wire.auto_open = 0  # a second request goes through the first connection or fails
        with contextlib.closing(wire):
            for pause_s in (5.5, 0.0):
                wire.request("GET", "/livez")
                reply = wire.getresponse()
                reply.read()
                assert reply.status == 200
                # The seconds are the property itself: nothing else tells that they are over.
                time.sleep(pause_s)


def test_a_port_in_use_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        at = ("--data-dir", str(tmp_path / "data"))
        status, _, err = inside("serve", "--port", str(port), *at)
    assert status == 1
    assert f"port {port} of 127.0.0.1 is in use" in err.splitlines()[-1]
    assert not (tmp_path / "data").exists()
    status, _, err = inside("serve", "--host", "no such host", "--api-key", "k", *at)
    assert (status, "is no address here" in err) == (1, True)


def test_the_built_in_model_needs_no_scikit_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    module, evaluator = load_digits(tmp_path)
    assert evaluator(module).metrics["accuracy"] > 0.95
    own = {name: tensor + 1 for name, tensor in module.state_dict().items()}
    save_file(own, tmp_path / "digits.safetensors")  # as earlier releases left it
    assert bool((load_digits(tmp_path)[0].state_dict()["0.bias"] == own["0.bias"]).all())


PATHS = ["run?lr=1", "run?lr=2", "a%20b", "a#b", "a b", "ü", "a&b=c;d", "100%", "a:b", "[x]", "'\""]


def test_folders_of_any_name_are_folders_of_their_own(tmp_path: Path) -> None:
    for name in PATHS:
        config = DynamicUpdateConfig(backup_dir=tmp_path / name)
        (tmp_path / name).mkdir()
        blobs = tmp_path / name / "blobs ?#%"
        with Ledger.open(config.url, blob_url=str(blobs)) as ledger:
            ledger.model(name, base=digits_module())
            ledger.model(name).snapshot()
        with announce(config.url, f"http://127.0.0.1/{len(name)}"):
            found = servers(config.url)
        assert found == [Announced(f"http://127.0.0.1/{len(name)}", socket.gethostname())]
        assert servers(config.url) == []
        left = {path.name for path in (tmp_path / name).iterdir()}
        assert left - LOCKS == {"ledger.db", blobs.name}
    assert {path.name for path in tmp_path.iterdir()} == set(PATHS)
    for name in PATHS:
        at = ("--data-dir", str(tmp_path / name))
        assert as_json("status", *at)["model"] == name
        with contextlib.closing(sqlite3.connect(tmp_path / name / "ledger.db")) as connection:
            assert connection.execute("SELECT count(*) FROM models").fetchone() == (1,)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_this_machine_is_reached_without_a_proxy(
    server: Server, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
        monkeypatch.setenv(name.lower(), proxy)
    for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
        assert as_json("status", "--url", url)["model"] == "digits"
        ok("update", "2.bias", "--data", "0", "--url", url)
        with client(url) as http:
            assert http.get("/livez").status_code == 200
    status, _, err = inside("status", "--url", "http://example.invalid:80")
    assert status == 1
    assert len(err.splitlines()) == 1
    assert "example.invalid" in err


@pytest.mark.parametrize("url", ["127.0.0.1:2242", "ftp://x", "http://", "http://[::1", "x"])
def test_a_url_that_is_none_is_refused_in_one_line(url: str) -> None:
    status, _, err = inside("status", "--url", url)
    assert (status, len(err.splitlines())) == (1, 1)
    assert "is no server's URL" in err


HOLDER = """
import signal, sys
from weightledger.ledger.sql.presence import announce
with announce(sys.argv[1], "http://127.0.0.1:1"):
    signal.pause()
"""


def test_a_held_folder_is_free_when_its_holder_dies(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    with (tmp_path / "log").open("wb") as log:
        holder = warm.begin(url, program=HOLDER, log=log)
    try:
        until(lambda: servers(url), pid=holder.pid)
    finally:
        holder.kill()
        holder.wait()
    until(lambda: servers(url) == [], "the server ends the session")
    with announce(url, "http://127.0.0.1:2"):
        assert [one.url for one in servers(url)] == ["http://127.0.0.1:2"]


def test_a_session_that_fails_in_any_way_does_not_hold_a_server_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> NoReturn:
        raise RuntimeError("no more threads")

    monkeypatch.setattr(presence.Database, "connect", fails)
    with announce("postgresql://nobody@localhost/none", "http://127.0.0.1:1"):
        assert "commands will not find this server: no more threads" in caplog.text


def test_a_url_too_long_to_announce_is_asked_for(postgres_admin, postgres_server) -> None:
    """PostgreSQL cuts a session's name at 63 bytes; half a URL would lead elsewhere."""
    url = postgres_server.get_uri(database="migrated")
    with announce(url, "http://" + "a" * 60 + ":2242"):
        (found,) = servers(url)
        assert found.url == ""
        status, _, err = inside("update", "w", "--data", "0", "--database", url)
        assert (status, "name it with --url" in err) == (1, True)
    until(lambda: servers(url) == [], "the server ends the session")


def test_a_server_on_another_machines_loopback_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    with Ledger.open(url) as ledger:
        ledger.model("m", base=digits_module())
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        held = announce(url, "http://127.0.0.1:2242")
        held.__enter__()
    try:
        status, _, err = inside("update", "0.bias", "--data", "0", "--data-dir", str(tmp_path))
        assert (status, "is served on elsewhere at http://127.0.0.1:2242" in err) == (1, True)
    finally:
        held.__exit__(None, None, None)


def test_a_session_that_the_database_ended_is_opened_again(
    postgres_admin, postgres_server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "_CHECK_S", 0.05)
    url = postgres_server.get_uri(database="migrated")
    with announce(url, "http://127.0.0.1:2242"):
        ended = postgres_admin.execute(
            "SELECT pg_terminate_backend(pid), pid FROM pg_stat_activity"
            " WHERE application_name LIKE 'weightledger %'"
        ).fetchall()
        assert len(ended) == 1
        again = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'weightledger %'"
        until(lambda: {row[0] for row in postgres_admin.execute(again)} - {ended[0][1]})
        assert [one.url for one in servers(url)] == ["http://127.0.0.1:2242"]
