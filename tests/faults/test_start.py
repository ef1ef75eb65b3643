"""What a server refuses to start on: a held folder, damage, a foreign database, other weights.

Refusals exit with status 1 and a message that says what is wrong; `verify` names the first bad
event, also where a start does not look.
"""

import contextlib
import io
import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import uvicorn

from tests.faults import folders, models
from tests.faults.folders import ABANDONED, BACK, BLOB, HEAD, INLINE, MODEL
from tests.serving import Server, serving
from weightledger.api.cli import main
from weightledger.api.server.folder import holder
from weightledger.ledger.events import leaf_hash
from weightledger.ledger.sql.roles import grants
from weightledger.ledger.tensors.digest import chunk_digests, root
from weightledger.ledger.tensors.lanes import lanes

Damage = Callable[[sqlite3.Connection], None]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.make_folder(tmp_path_factory.mktemp("start") / "data")


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return folders.copy_folder(pristine, tmp_path / "data")


def refused(folder: Path, *options: str, model: str = MODEL) -> str:
    """`serve` in this process, which must give up with status 1; its message."""
    status, _, err = command(
        "serve", "--data-dir", str(folder), "--model", model, "--port", "0", *options
    )
    assert status == 1, err
    return err.splitlines()[-1].removeprefix("weightledger: ")


def starts(folder: Path) -> bool:
    """Whether `serve` in this process comes as far as listening."""
    try:
        refused(folder)
    except Started:
        return True
    return False


class Started(BaseException):
    """The server would listen now."""


def command(*args: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()

    def listen(_server: uvicorn.Server, sockets: object = None) -> None:
        raise Started

    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr(sys, "argv", ["weightledger", *args])
        patch.setattr(uvicorn.Server, "run", listen)
        main()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def verified(folder: Path, *options: str) -> tuple[int, str, str]:
    """`weightledger verify`: its status, the first bad event and the result it prints."""
    status, out, err = command("verify", "--data-dir", str(folder), *options)
    facts = dict(line.split(None, 1) for line in out.splitlines() if len(line.split(None, 1)) == 2)
    return status, facts.get("first_bad_event", ""), facts.get("result", out + err)


# The folder


def test_a_folder_has_one_server_and_is_free_when_it_dies(folder: Path) -> None:
    with serving(folder, "--model", MODEL) as first:
        message = refused(folder, "--port", "0")
        assert message == (
            f"data folder {folder} is held by process {first.process.pid} at {first.url}"
        )
        first.kill()
        assert starts(folder)


def test_a_server_that_cannot_start_exits_with_status_1_and_leaves_the_folder(
    folder: Path,
) -> None:
    with folders.without_triggers(folder) as connection:
        folders.flip(connection, "events", "payload", folders.event(INLINE))
    output = Server(folder, "--model", MODEL).refuse_to_start()
    assert f"weightledger: payload of event {INLINE} does not match its digest" in output
    assert "Traceback" not in output
    assert holder(folder) is None


def test_an_undamaged_folder_starts_and_verifies(folder: Path) -> None:
    assert starts(folder)
    assert verified(folder) == (0, "-", "ok")


# Damage


def payload_blob_of(connection: sqlite3.Connection, seq: int) -> str:
    """Selects the part that holds the payload of an event."""
    where = folders.event(seq)
    (found,) = connection.execute(f"SELECT header FROM events WHERE {where}").fetchone()
    (ref,) = json.loads(found)["payload"]
    return f"digest = x'{ref['digest']}'"


def tensor_blob_of(name: str) -> str:
    """Selects the part that holds a tensor of the first state."""
    bits = lanes(models.factory().state_dict()[name], name)
    return f"digest = x'{root(chunk_digests(bits)).hex()}'"


def snapshot_tensor(connection: sqlite3.Connection) -> None:
    folders.flip(connection, "blob_parts", "data", tensor_blob_of("2.weight"))


def snapshot_manifest(connection: sqlite3.Connection) -> None:
    digest = connection.execute("SELECT manifest FROM snapshots WHERE node = 0").fetchone()[0]
    folders.flip(connection, "blob_parts", "data", f"digest = x'{digest.hex()}'")


def missing_snapshot_tensor(connection: sqlite3.Connection) -> None:
    where = tensor_blob_of("2.weight")
    assert connection.execute(f"DELETE FROM blob_parts WHERE {where}").rowcount == 1
    assert connection.execute(f"DELETE FROM blobs WHERE {where}").rowcount == 1


def payload(seq: int) -> Damage:
    return lambda connection: folders.flip(connection, "events", "payload", folders.event(seq))


def payload_blob(connection: sqlite3.Connection) -> None:
    folders.flip(connection, "blob_parts", "data", payload_blob_of(connection, BLOB))


def missing_payload_blob(connection: sqlite3.Connection) -> None:
    where = payload_blob_of(connection, BLOB)
    assert connection.execute(f"DELETE FROM blob_parts WHERE {where}").rowcount == 1
    assert connection.execute(f"DELETE FROM blobs WHERE {where}").rowcount == 1


def header(seq: int) -> Damage:
    return lambda connection: folders.flip(connection, "events", "header", folders.event(seq))


def column(name: str, seq: int) -> Damage:
    def change(connection: sqlite3.Connection) -> None:
        where = folders.event(seq)
        assert connection.execute(f"UPDATE events SET {name} = {name} + 1 WHERE {where}").rowcount

    return change


def deleted(seq: int) -> Damage:
    def delete(connection: sqlite3.Connection) -> None:
        assert connection.execute(f"DELETE FROM events WHERE {folders.event(seq)}").rowcount == 1

    return delete


def rewritten(seq: int) -> Damage:
    """Other facts under a hash that fits them: only the next event's link to this one shows it."""

    def rewrite(connection: sqlite3.Connection) -> None:
        where = folders.event(seq)
        (old,) = connection.execute(f"SELECT header FROM events WHERE {where}").fetchone()
        new = old.replace(b'"learning_rate":0.01', b'"learning_rate":0.02')
        assert new != old
        connection.execute(
            f"UPDATE events SET header = ?, event_hash = ? WHERE {where}", (new, leaf_hash(new))
        )

    return rewrite


ON_THE_WAY = [
    pytest.param(snapshot_tensor, 0, id="snapshot tensor"),
    pytest.param(missing_snapshot_tensor, 0, id="missing snapshot tensor"),
    pytest.param(snapshot_manifest, 0, id="snapshot manifest"),
    pytest.param(payload(INLINE), INLINE, id="inline payload"),
    pytest.param(payload_blob, BLOB, id="payload blob"),
    pytest.param(missing_payload_blob, BLOB, id="missing payload blob"),
    pytest.param(header(INLINE), INLINE, id="header"),
    pytest.param(header(HEAD), HEAD, id="header of the head"),
    pytest.param(column("recorded_at", BLOB), BLOB, id="column beside a header"),
    pytest.param(deleted(BLOB), BLOB, id="deleted event"),
]


@pytest.mark.parametrize(("damage", "seq"), ON_THE_WAY)
def test_damage_on_the_way_to_the_head_stops_the_start_and_is_named(
    folder: Path, damage: Damage, seq: int
) -> None:
    with folders.without_triggers(folder) as connection:
        damage(connection)
    message = refused(folder)
    assert f"event {seq}" in message
    status, first_bad, result = verified(folder)
    assert (status, first_bad) == (1, str(seq))
    assert result.startswith("BAD: ")


OFF_THE_WAY = [
    pytest.param(payload(ABANDONED), ABANDONED, id="payload of an abandoned branch"),
    pytest.param(header(ABANDONED), ABANDONED, id="header of an abandoned branch"),
    pytest.param(deleted(ABANDONED), ABANDONED, id="deleted event of an abandoned branch"),
    pytest.param(header(BACK), BACK, id="header of a rollback"),
    pytest.param(deleted(BACK), BACK, id="deleted rollback"),
    pytest.param(rewritten(INLINE), BLOB, id="rewritten event with its hash"),
]


@pytest.mark.parametrize(("damage", "seq"), OFF_THE_WAY)
def test_damage_elsewhere_is_found_by_verify(folder: Path, damage: Damage, seq: int) -> None:
    with folders.without_triggers(folder) as connection:
        damage(connection)
    assert starts(folder)
    status, first_bad, result = verified(folder)
    assert (status, first_bad) == (1, str(seq))
    assert result.startswith("BAD: ")


def test_a_changed_reason_is_found_by_verify(folder: Path) -> None:
    with folders.without_triggers(folder) as connection:
        connection.execute("UPDATE annotations SET reason = 'better'")
    assert starts(folder)
    assert verified(folder)[:2] == (1, str(BACK))


# The database


def test_a_missing_trigger_stops_the_start(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "ledger.db")) as connection:
        connection.execute("DROP TRIGGER events_no_delete")
    assert "events_no_delete" in refused(folder)
    for options in ((), ("--quick", "--jobs", "2")):
        status, first_bad, result = verified(folder, *options)
        assert (status, first_bad) == (1, "-")
        assert result.startswith("BAD: ") and "trigger events_no_delete is missing" in result


def test_tables_are_made_by_their_owner_and_rights_are_printed(tmp_path: Path) -> None:
    assert command("db", "upgrade", "--data-dir", str(tmp_path / "new"))[0] == 0
    with folders.opened(tmp_path / "new") as ledger:
        assert ledger.models() == []
    status, out, _ = command("db", "role", 'the "server"')
    assert status == 0
    assert out.splitlines() == [f"{statement};" for statement in grants('the "server"')]
    assert 'TO "the ""server""";' in out


def test_a_database_of_a_newer_release_stops_the_start(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "ledger.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    message = refused(folder)
    assert "revision 9999" in message
    assert "newer release" in message


def test_a_database_of_another_application_stops_the_start_and_stays_as_it_is(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(folder / "ledger.db")) as connection:
        connection.execute("CREATE TABLE invoices (id INTEGER)")
    before = (folder / "ledger.db").read_bytes()
    message = refused(folder)
    assert "belongs to another application" in message
    assert "invoices" in message
    assert (folder / "ledger.db").read_bytes() == before


def test_a_file_that_is_no_database_stops_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "ledger.db").write_bytes(b"not a database, just some words " * 100)
    assert "is not a SQLite database" in refused(folder)


# The weights


def test_unknown_weights_stop_the_start_unless_the_ledgers_are_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(models.SEED, "2")
    message = refused(folder)
    assert "equal no state of the ledger" in message
    for name in ("0.bias", "0.weight", "2.bias", "2.weight"):
        assert name in message
    assert "--on-mismatch ledger" in message

    with folders.opened(folder) as ledger:
        module = models.factory()
        module.load_state_dict(ledger.history(MODEL).state("head"))
        digest = ledger.history(MODEL).head().state_after.hex()
    inputs = torch.linspace(-1, 1, 400)
    with (
        serving(folder, "--model", MODEL, "--on-mismatch", "ledger") as server,
        server.client() as http,
    ):
        reply = http.post("/invocations", json={"inputs": [inputs.tolist()]})
        verified_live = http.post("/v1/models/verify", json={})
    assert reply.headers["x-weights-digest"] == digest == verified_live.json()["digest"]
    with torch.inference_mode():
        assert torch.equal(torch.tensor(reply.json()["predictions"]), module(inputs[None]))


def test_weights_that_differ_in_one_tensor_are_refused_by_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = models.factory()
    with folders.opened(folder) as ledger:
        module.load_state_dict(ledger.history(MODEL).state("head"))
    torch.nn.init.zeros_(module[2].bias)
    monkeypatch.setattr(models, "factory", lambda: module)
    assert "different from its head: 2.bias. " in refused(folder)


@pytest.mark.parametrize("position", ["seq:0", "seq:4", "head"])
def test_the_weights_of_any_known_state_are_taken_and_brought_to_the_head(
    folder: Path, monkeypatch: pytest.MonkeyPatch, position: str
) -> None:
    module = models.factory()
    with folders.opened(folder) as ledger:
        module.load_state_dict(ledger.history(MODEL).state(position))
    monkeypatch.setattr(models, "factory", lambda: module)
    assert starts(folder)


def test_a_model_of_another_shape_stops_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(models.OUTPUTS, "5")
    for options in ((), ("--on-mismatch", "ledger")):
        message = refused(folder, *options)
        assert message.endswith("names, dtypes, shapes or ties differ: 2.bias, 2.weight")


def test_a_model_with_other_names_stops_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = models.factory()
    named = torch.nn.ModuleDict({"first": layers[0], "last": layers[2]})
    monkeypatch.setattr(models, "factory", lambda: named)
    message = refused(folder)
    for name in ("0.bias", "0.weight", "first.bias", "last.weight"):
        assert name in message
