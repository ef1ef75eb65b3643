"""What a server and commands tell of random histories is what a program finds out that has nothing
but plain arrays and what it asked for: over restarts and kills, with retries and conditions."""

import csv
import io
import json
import random
from pathlib import Path

import httpx2
import pytest

from tests import warm
from tests.api.conversation import NAMES, Conversation, Served, pages
from tests.debug.arrays import Bits
from tests.serving import Server

KINDS = (
    *("update", "update", "update", "batch", "wrong", "again"),
    *("name", "back", "pin", "retire"),
)
MODEL = "tests.api.conversation:Served"
# Versions are named and retired by who asks alone.
OPTIONS = ("--model", MODEL, "--max-versions", "1000", "--checkpoint-interval", "100000")


def test_a_server_tells_what_arrays_say(tmp_path: Path) -> None:
    history(tmp_path, seed=3, steps=50)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 120))
def test_so_it_does_of_many_histories(tmp_path: Path, seed: int) -> None:
    history(tmp_path, seed, steps=80)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_so_it_does_of_logs_with_more_than_a_block_of_events(tmp_path: Path, seed: int) -> None:
    history(tmp_path, seed, steps=1500, kinds=(*KINDS, *["update"] * 10))


def history(folder: Path, seed: int, steps: int, kinds: tuple[str, ...] = KINDS) -> None:
    random_ = random.Random(seed)
    server = Server(folder / "data", *OPTIONS).start()
    try:
        with server.client() as http:
            state = {name: Bits.of(one) for name, one in Served().state_dict().items()}
            first = http.get("/v1/models/updates").json()["data"][::-1]
            talk = Conversation.begun(state, first)
            for number in range(steps):
                if number in (steps // 3, 2 * steps // 3):
                    server.kill() if number == steps // 3 else server.stop()
                    server.start()
                talk.step(http, random_, kinds)
            talk.heard(http, random_)
            talk.questions(http, random_, 5)
            commands(folder, server, talk, http, random_)
    finally:
        server.stop()


def commands(
    folder: Path, server: Server, talk: Conversation, http: httpx2.Client, random_: random.Random
) -> None:
    """The same in a terminal, from the database and through the server."""
    whole = list(pages(http, {}, 100))
    one, other = (f"seq:{random_.choice(talk.truth.seqs)}" for _ in range(2))
    name = random_.choice(NAMES)
    asked = {"from": one, "to": other}
    differing = http.get("/v1/models/diff", params=asked).json()
    touched = http.get("/v1/models/blame", params={"parameter": name, "limit": 100}).json()
    changed = {tensor["name"]: str(tensor["changed"]) for tensor in differing["by_tensor"]}
    for at in (["--data-dir", str(server.folder)], ["--url", server.url]):
        told = json.loads(command("log", "-n", "100000", "--json", *at))
        assert [{key: item[key] for key in whole[0]} for item in told] == whole
        assert json.loads(command("diff", one, other, "--json", *at)) == differing
        rows = csv.DictReader(io.StringIO(command("diff", one, other, "--csv", *at)))
        assert {row["name"]: row["changed"] for row in rows} == changed
        assert json.loads(command("blame", name, "-n", "100", "--json", *at)) == touched
    file = folder / "state.safetensors"
    command("replay", "--to", one, "-o", str(file), "--data-dir", str(server.folder))
    talk.same_weights(file.read_bytes(), int(one.removeprefix("seq:")))


def command(*words: str) -> str:
    ran = warm.run(*words)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
