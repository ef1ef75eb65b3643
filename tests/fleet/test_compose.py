"""deploy/compose.yaml: what its services run is run here, from its own text, as processes."""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.buckets import S3Server
from tests.conftest import EMPTY, new_database
from tests.serving import Server
from tests.waiting import until
from weightledger import Ledger

FILE = Path(__file__).parents[2] / "deploy/compose.yaml"
SERVICES: dict[str, Any] = YAML(typ="safe", pure=True).load(FILE.read_text())["services"]
OURS = {name: one for name, one in SERVICES.items() if one.get("image") == "weightledger"}
KEY = "a-key-of-this-test"


def filled(word: str, environment: Mapping[str, str]) -> str:
    """A word with `${NAME:-default}` as Compose fills it in."""
    return re.sub(r"\$\{(\w+):-(.*?)\}", lambda one: environment.get(one[1]) or one[2], word)


def test_the_file_says_what_it_promises() -> None:
    assert set(SERVICES) == {"postgres", "objects", *OURS}
    assert [one["command"][0] for one in OURS.values()] == ["serve", *["follow"] * 4]
    published = [port for one in OURS.values() for port in one["ports"]]
    assert published == [f"127.0.0.1:{2242 + number}:2242" for number in range(5)]
    # Nobody is asked unless one says so, and every replica can be.
    assert filled(OURS["writer"]["command"][-1], {}) == "none"
    assert all({"--prepares", "--rolling"} <= {*one["command"]} for one in list(OURS.values())[1:])
    for one in OURS.values():
        assert "/readyz" in one["healthcheck"]["test"][-1]


def test_its_commands_make_a_fleet(
    request: pytest.FixtureRequest, tmp_path: Path, s3_server: S3Server
) -> None:
    s3_server.make_bucket("ledger")
    with (
        new_database(request, "postgresql", tmp_path, template=EMPTY) as url,
        contextlib.ExitStack() as opened,
    ):
        here = {
            **s3_server.environment,
            "WEIGHTLEDGER_DATABASE": url,
            "WEIGHTLEDGER_API_KEY": KEY,
            "WEIGHTLEDGER_HOST": "127.0.0.1",
            "WEIGHTLEDGER_PREPARE": "all",
        }
        servers: dict[str, Server] = {}
        # The writer and two of the four, the second of which hands writes on.
        for name in ("writer", "replica-1", "replica-4"):
            verb, *options = [filled(word, here) for word in OURS[name]["command"]]
            env = {variable: here[variable] for variable in OURS[name]["environment"]}
            server = Server(tmp_path / "data", *options, env=env, verb=verb)
            server.log = tmp_path / f"{name}.log"
            opened.callback(server.stop)
            servers[name] = server.start()
        key = {"Authorization": f"Bearer {KEY}"}
        with servers["replica-4"].client(**key) as http:
            body = {"parameter_name": "2.bias", "update_data": 0.5}
            done = http.post("/v1/models/incremental_update", json=body)
            assert done.status_code == 200, done.text
            seq = int(done.headers["etag"].strip('"'))
        with Ledger.open(url) as ledger:
            prepared = ledger.history("digits").event(f"seq:{seq}").body["evidence"]["prepared"]
        by = sorted(one["replica"] for one in prepared["by"])
        assert (prepared["rule"], by) == ("all", ["replica-1", "replica-4"])
        with servers["replica-1"].client(**key) as http:
            until(
                lambda: http.get("/readyz").json()["seq"] == seq,
                pid=servers["replica-1"].process.pid,
            )
            assert http.post("/invocations", json={"inputs": [[0.0] * 64]}).status_code == 200
            told = {one["replica"]: one["state"] for one in http.get("/v1/fleet").json()["data"]}
            assert told == {"replica-1": "ready", "replica-4": "ready"}
