"""Commands over HTTP say what they say on the database; who asks and why goes with a write."""

import getpass
import re
from pathlib import Path

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from tests.api.test_command import as_json, inside, ok
from tests.serving import Server, serving
from weightledger.api.cli import output
from weightledger.api.cli.moves import move


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory):
    """A server with some history."""
    with serving(tmp_path_factory.mktemp("remote") / "data") as server:
        at = ("--url", server.url)
        ok("update", "2.bias", "--data", "0.001", "-m", "why: ü =1", "--actor", "Zoë", *at)
        ok("update", "2.bias", "--data", "0.001", "--metadata", '{"loss": 0.25}', *at)
        ok("version", "create", "named", "-m", "for the audit", *at)
        ok("rollback", "--to", "update_1", *at)
        ok("update", "0.bias", "--data", "0.0001", *at)
        inside("update", "2.weight", "--data", "0", "--type", "replace", *at)
        ok("version", "pin", "v1", "-m", "keep", *at)
        yield server


READS = [
    ("status",),
    ("log",),
    ("log", "-n", "2"),
    ("log", "--kind", "updated", "--kind", "rolled_back"),
    ("log", "--parameter", "0.*"),
    ("log", "--actor", "Zoë"),
    ("log", "--since", "1h", "--until", "2999-01-01"),
    ("log", "--since", "2999-01-01"),
    ("show", "head"),
    ("show", "v1"),
    ("show", "update_2"),
    ("show", "2"),
    ("version", "list"),
    ("version", "show", "v1"),
    ("rollback", "--to", "v1", "--dry-run"),
]


@pytest.mark.parametrize("words", READS, ids=" ".join)
def test_a_server_and_its_database_say_the_same(busy: Server, words: tuple[str, ...]) -> None:
    assert as_json(*words, "--url", busy.url) == as_json(*words, "--data-dir", str(busy.folder))


def test_a_state_comes_as_a_file_either_way(busy: Server, tmp_path: Path) -> None:
    ways = {"url": ("--url", busy.url), "folder": ("--data-dir", str(busy.folder))}
    tensors, facts = {}, {}
    for name, way in ways.items():
        file = tmp_path / name
        facts[name] = as_json("replay", "--to", "v1", "-o", str(file), *way)
        with safe_open(file, "pt") as opened:
            facts[name]["metadata"] = opened.metadata()
            tensors[name] = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        facts[name].pop("file")
    assert facts["url"] == facts["folder"]
    assert all(bool((tensors["url"][key] == one).all()) for key, one in tensors["folder"].items())
    assert list(busy.folder.glob("tmp*")) == []
    status, _, err = inside("replay", "--to", "v9", "-o", str(tmp_path / "x"), *ways["url"])
    assert (status, "Version v9 not found" in err) == (1, True)
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.part").exists()


def test_who_and_why_are_kept_and_shown(busy: Server) -> None:
    at = ("--url", busy.url)
    first = as_json("show", "update_1", *at)
    assert (first["actor"], first["reason"]) == ("Zoë", "why: ü =1")
    assert as_json("show", "update_2", *at)["actor"] == getpass.getuser()
    assert as_json("show", "v1", *at)["reason"] == "for the audit"
    table = ok("log", "--metadata", "loss", *at)
    assert "Zoë" in table and "why: ü =1" in table and "0.25" in table
    assert "(HEAD) additive 0.bias" in table
    assert "(v1) additive 2.bias" in table
    assert "refused: replace 2.weight lr 0.01" in table
    assert "rolled back to update_1 " in table
    for line in table.splitlines()[1:]:
        assert any(event in line for event in ok("log", "-q", *at).split())


def test_ids_are_whole_at_80_columns(busy: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    at = ("--url", busy.url)
    ids = ok("log", "-q", *at).split()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    monkeypatch.setattr(output, "_WIDE", 80)
    lines = ok("log", *at).splitlines()
    assert max(map(len, lines)) <= 80
    assert [one for line in lines for one in ids if one in line.split()] == ids


def test_refusals_rollbacks_and_marks_have_a_colour(
    busy: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    lines = ok("log", "--url", busy.url).splitlines()
    for words, colour in (("refused", "31"), ("rolled back", "33"), ("(HEAD)", "1;36")):
        assert any(f"\x1b[{colour}m" in line for line in lines if words in line), words
    monkeypatch.setenv("NO_COLOR", "1")
    plain = ok("log", "--url", busy.url)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", plain)


def test_the_current_version_is_honest(busy: Server) -> None:
    status = as_json("status", "--url", busy.url)
    assert status["current_version"].startswith("v0_")
    assert status["updates_since_version"] == 2  # one is undone
    assert f"{status['current_version']} +2" in ok("status", "--url", busy.url)


def test_a_rollback_says_from_where_to_where_and_what_it_undid(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server:
        at = ("--url", server.url)
        ids = [as_json("update", "2.bias", "--data", "0", *at)["update_id"] for _ in range(3)]
        planned = as_json("rollback", "--to", "update_1", "--dry-run", *at)
        assert (planned["undone"], planned["redone"]) == ([ids[2], ids[1]], [])
        assert as_json("log", "-n", "1", *at)[0]["id"] == ids[2]
        done = as_json("rollback", "--to", "update_1", *at)
        assert {**done, "dry_run": True} == planned
        back = as_json("rollback", "--to", ids[2], *at)
        assert (back["undone"], back["redone"]) == ([], ids[1:])


def test_with_a_key_the_actor_is_its_name(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--api-key", "wl_k") as server:
        at = ("--url", server.url, "--api-key", "wl_k")
        ok("update", "2.bias", "--data", "0", "-m", "why", *at)
        event = as_json("log", "-n", "1", *at)[0]
        assert (event["actor"], event["reason"]) == ("api-key", "why")
        status, _, err = inside("update", "2.bias", "--data", "0", "--actor", "me", *at)
        assert (status, "the actor is the key's name" in err) == (1, True)
        for key in ((), ("--api-key", "wl_other")):
            status, _, err = inside("status", "--url", server.url, *key)
            assert status == 1
            assert err.strip().endswith("; give one with --api-key or WEIGHTLEDGER_API_KEY")


def test_who_is_no_ledger_is_not_called_silent(busy: Server) -> None:
    """Somebody else's server may answer anything; this one has a page there."""
    status, _, err = inside("status", "--url", busy.url + "/ui/login?next=")
    assert status == 1
    assert "answered, but not as a ledger does: is that its address?" in err


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("x-reason", "%FF", 400),
        ("x-reason", "a" * 501, 400),
        ("x-actor", "a" * 501, 400),
        ("x-reason", "%C3%BC", 200),
        ("x-reason", "100%", 200),
        ("x-reason", b"caf\xe9", 400),  # Latin-1, or anything else
        ("x-actor", "policy:safe", 400),
        ("x-actor", "oidc%3Aana", 400),
    ],
)
def test_the_headers_of_a_write(
    http: httpx2.Client, header: str, value: str | bytes, status: int
) -> None:
    body = {"parameter_name": "2.bias", "update_data": 0}
    reply = http.post("/v1/models/incremental_update", json=body, headers={header: value})
    assert reply.status_code == status
    if status == 400:
        assert reply.json()["error"]["param"] == header.title()


def test_who_and_why_may_be_bare_utf_8(http: httpx2.Client) -> None:
    """As curl sends what was typed; it was recorded as the Latin-1 that servers take it for."""
    body = {"parameter_name": "2.bias", "update_data": 0}
    headers = {"x-actor": "Zoë".encode(), "x-reason": "caf\u00e9 🔥".encode()}
    reply = http.post("/v1/models/incremental_update", json=body, headers=headers)
    event = http.get(f"/v1/models/updates/{reply.json()['data']['update_id']}").json()
    assert (event["actor"], event["reason"]) == ("Zoë", "caf\u00e9 🔥")


class Log:
    """State changes that go on or back, as the events of a source."""

    def __init__(self, turns: list[tuple[bool, int]]) -> None:
        self.parents: dict[int, int] = {}
        self.items = [{"id": "e0", "seq": 0, "node": 0, "facts": {}, "state_after": ""}]
        at, nodes = 0, [0]
        for seq, (back, choice) in enumerate(turns, 1):
            if back:
                at = nodes[choice % len(nodes)]
            else:
                self.parents[seq] = at
                at = seq
                nodes.append(seq)
            item = {"id": f"e{seq}", "seq": seq, "node": at, "facts": {}, "state_after": ""}
            self.items.append(item)

    def events(self, query, number):
        most = int(query["max_seq"])
        return [one for one in reversed(self.items) if one["seq"] <= most][: min(number, 3)]

    def event(self, name):
        return self.items[int(name.removeprefix("seq:"))]

    def up(self, node: int) -> list[int]:
        way = [node]
        while way[-1]:
            way.append(self.parents[way[-1]])
        return way


@settings(max_examples=300)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=25), st.data())
def test_the_way_between_two_states_is_through_their_common_ancestor(turns, data) -> None:
    log = Log(turns)
    last = len(log.items) - 1
    start, to = (data.draw(st.integers(0, last)) for _ in range(2))
    found = move(log, f"seq:{start}", f"seq:{to}")
    down, up = log.up(log.items[start]["node"]), log.up(log.items[to]["node"])
    common = next(node for node in down if node in up)
    assert found["undone"] == [f"e{node}" for node in down[: down.index(common)]]
    assert found["redone"] == [f"e{node}" for node in reversed(up[: up.index(common)])]


def test_no_name_makes_another_path(busy) -> None:
    """`show ..` told of the models that are served, and exited 0."""
    at = ("--url", busy.url)
    for name in ("", "..", "v0/weights"):
        for command in (("show",), ("version", "pin")):
            status, out, err = inside(*command, name, *at)
            assert (status, out) == (1, ""), (command, name)
            assert f"{name!r} not found" in err
