"""Checkpoints, proofs and exports by the command, checked offline and against forgers."""

import base64
import contextlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests import warm
from weightledger import IncrementalUpdateRequest, Ledger, verify_offline
from weightledger.ledger.events.canonical import canonical

MODEL = "proven"


def run(folder: Path, *arguments: str, status: int = 0) -> str:
    """A command's output; with another status what it says went wrong."""
    done = warm.run(*arguments, cwd=folder, env={"NO_COLOR": "1"})
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stdout + done.stderr


def offline(folder: Path, *arguments: str, status: int = 0) -> str:
    """What the offline verifier says, run in this process: there are many to try."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["verify_offline", *arguments])
        with contextlib.redirect_stderr(said):
            assert verify_offline.main() == status, said.getvalue()
    return said.getvalue()


def test_the_verifier_is_one_file_that_needs_nothing_of_the_package(folder: Path) -> None:
    run(folder, "proof", "seq:17", "-o", "p.tlog-proof")
    shutil.copy(verify_offline.__file__, folder / "verify.py")
    handed = "import sys; sys.modules['weightledger'] = None; import runpy; sys.argv = sys.argv[1:]"
    script = f"{handed}; runpy.run_path('verify.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", script, "verify.py", "proof", "p.tlog-proof", "--key", key(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={name: text for name, text in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    assert "event 17 (updated)" in done.stdout


def write(folder: Path, count: int) -> None:
    (folder / "weightledger-data").mkdir(exist_ok=True)
    with Ledger.open(f"sqlite:///{folder}/weightledger-data/ledger.db") as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(4)})
        for number in range(count):
            log.apply(IncrementalUpdateRequest("w", 1.0, 0.5, reason=f"step {number}", actor="ada"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log of 301 events, a checkpoint of it and its verifier key."""
    folder = tmp_path_factory.mktemp("kept")
    write(folder, 300)
    (folder / "checkpoint").write_text(run(folder, "checkpoint"))
    (folder / "key").write_text(run(folder, "checkpoint", "--key"))
    return folder


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(kept, tmp_path / "copy")
    return tmp_path / "copy"


def key(folder: Path) -> str:
    return (folder / "key").read_text().strip()


def forge(folder: Path, *statements: str) -> None:
    """Change the database as its owner can, with the triggers out of the way."""
    file = folder / "weightledger-data/ledger.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        kept = triggers.fetchall()
        for name, _ in kept:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
        for _, sql in kept:
            connection.execute(sql)
        connection.commit()


def test_the_key_is_made_once_and_its_owners_alone(folder: Path) -> None:
    file = folder / "weightledger-data/signing.key"
    assert file.stat().st_mode & 0o777 == 0o600
    assert run(folder, "checkpoint", "--key").strip() == key(folder)
    file.chmod(0o640)
    assert "chmod 600" in run(folder, "checkpoint", status=1)


def test_a_key_from_outside_is_used_and_a_broken_one_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTLEDGER_SIGNING_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
    shutil.rmtree(folder / "weightledger-data/checkpoints")
    assert run(folder, "checkpoint", "--key").strip() != key(folder)
    run(folder, "checkpoint")
    monkeypatch.setenv("WEIGHTLEDGER_SIGNING_KEY", "too short")
    assert "32 bytes" in run(folder, "checkpoint", status=1)


@pytest.mark.parametrize("size", ["now", "earlier"])
def test_what_was_signed_last_counts_only_if_we_signed_it(folder: Path, size: str) -> None:
    """Else whoever writes to the folder has a log signed that was cut off since."""
    kept = (folder / "weightledger-data/checkpoints").iterdir()
    (file,) = (path for path in kept if path.name != "lock")
    if size == "now":
        text, signature = file.read_text().split("\n\n")
        at = len(signature) // 2
        other = "B" if signature[at] == "A" else "A"
        file.write_text(f"{text}\n\n{signature[:at]}{other}{signature[at + 1 :]}")
    else:
        lines = file.read_text().split("\n")
        first = sha256(b"\0" + header_of(folder, 0)).digest()
        lines[1:3] = ["1", base64.b64encode(first).decode()]
        file.write_text("\n".join(lines))
    before = file.read_bytes()
    for words in (("checkpoint",), ("proof", "seq:1", "-o", "p.tlog-proof")):
        assert "does not fit the note" in run(folder, *words, status=1)
    assert file.read_bytes() == before


def header_of(folder: Path, seq: int) -> bytes:
    """The bytes of an event that are hashed."""
    with Ledger.open(f"sqlite:///{folder}/weightledger-data/ledger.db", upgrade=False) as ledger:
        return ledger.history(MODEL).require(seq).header


def test_a_proof_holds_offline_and_no_altered_one(folder: Path) -> None:
    facts = json.loads(run(folder, "proof", "seq:17", "-o", "p.tlog-proof", "--json"))
    assert "event 17 (updated)" in offline(folder, "proof", "p.tlog-proof", "--key", key(folder))
    text = (folder / "p.tlog-proof").read_text()
    assert len(text) - text.index("index ") < 1024  # all but the event itself
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if not line:
            continue
        other = "B" if line[-2] == "A" else "A"
        altered = [*lines[:number], line[:-2] + other + line[-1], *lines[number + 1 :]]
        (folder / "altered").write_text("\n".join(altered))
        assert "does not hold" in offline(
            folder, "proof", "altered", "--key", key(folder), status=1
        )
    digest = facts["state_after"]
    run(folder, "proof", "seq:17", "-o", "again", "--digest", digest)
    wrong = run(folder, "proof", "seq:18", "-o", "wrong", "--digest", digest, status=1)
    assert "the state was" in wrong
    assert not (folder / "wrong").exists()


def test_an_export_holds_offline_and_no_altered_one(folder: Path) -> None:
    run(folder, "export", "-o", "log.jsonl")
    asked = ("--key", key(folder), "--checkpoint", "checkpoint")
    assert "301 events" in offline(folder, "log", "log.jsonl", *asked)
    lines = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    attempts = {
        "an actor": [*lines[:9], lines[9].replace("ada", "bob"), *lines[10:]],
        "an event left out": [*lines[:9], *lines[10:]],
        "two swapped": [*lines[:9], lines[10], lines[9], *lines[11:]],
        "cut off": lines[:-3],
        "a number": [*lines[:9], lines[9].replace('changed\\":4', 'changed\\":3'), *lines[10:]],
        "nothing but the opening": lines[:1],
        "another model's": [lines[0].replace(MODEL, "other"), *lines[1:]],
    }
    for what, altered in attempts.items():
        assert altered != lines, what
        (folder / "altered").write_text("".join(altered))
        said = offline(folder, "log", "altered", *asked, status=1)
        assert "does not hold" in said, what
    # What came after the checkpoint is not in question.
    write(folder, 5)
    run(folder, "export", "-o", "longer.jsonl")
    assert "301 events" in offline(folder, "log", "longer.jsonl", *asked)


def test_what_cannot_be_checked_is_not_passed(folder: Path) -> None:
    """A key without the checkpoint that it is for would be ignored, and a cut log be whole."""
    run(folder, "export", "-o", "log.jsonl")
    for asked in (("--key", key(folder)), ("--key", "nonsense"), ("--quorum", "1")):
        said = offline(folder, "log", "log.jsonl", *asked, status=1)
        assert "name it with --checkpoint" in said
    said = offline(folder, "log", "nowhere.jsonl", status=1)
    assert said.startswith("not checked: ") and "nowhere.jsonl" in said


def test_weights_are_those_of_a_state(folder: Path) -> None:
    run(folder, "replay", "--to", "seq:3", "-o", "w.safetensors")
    digest = json.loads(run(folder, "show", "seq:3", "--json"))["state_after"]
    assert digest in offline(folder, "weights", "w.safetensors", "--digest", digest)
    other = json.loads(run(folder, "show", "seq:4", "--json"))["state_after"]
    assert "does not hold" in offline(
        folder, "weights", "w.safetensors", "--digest", other, status=1
    )


def test_a_tied_tensor_is_the_one_it_is_tied_to(tmp_path: Path) -> None:
    """The file has it twice and the digest once: the other one's bytes are compared, too."""
    tied = {"weight_ledger.aliases": json.dumps({"weights/b": "weights/a"})}
    weights, file = torch.arange(4.0), tmp_path / "w.safetensors"
    save_file({"a": weights, "b": weights.clone()}, file, metadata=tied)
    digest = verify_offline.state_digest(str(file))
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        module = torch.nn.ParameterDict({"a": torch.nn.Parameter(weights)})
        module["b"] = module["a"]
        assert digest == ledger.model("tied", base=module).history.head().state_after.hex()
    save_file({"a": weights, "b": weights + 1}, file, metadata=tied)
    with pytest.raises(verify_offline.Fails, match="weights/b has to be the same"):
        verify_offline.state_digest(str(file))


def test_what_is_no_such_file_is_said_to_be_none(folder: Path) -> None:
    run(folder, "replay", "--to", "seq:3", "-o", "w.safetensors")
    whole = (folder / "w.safetensors").read_bytes()
    for asked, content, said in (
        (("log",), b"", "no exported log"),
        (("log",), b"[]\n", "no exported log"),
        (("log",), b"\xff\n", "no such file"),
        (("weights", "--digest", "0" * 64), b"", "no such file"),
        (("weights", "--digest", "0" * 64), whole[:40], "no such file"),
        (("proof", "--key", key(folder)), b"", "no tlog-proof"),
    ):
        (folder / "other").write_bytes(content)
        what, *rest = asked
        assert "does not hold: " in offline(folder, what, "other", *rest, status=1)
        assert said in offline(folder, what, "other", *rest, status=1)


def test_verify_says_that_a_checkpoint_holds(folder: Path) -> None:
    assert "checkpoint holds" in run(folder, "verify", "--quick", "--checkpoint", "checkpoint")


def test_a_log_that_was_cut_off_is_whole_in_itself_and_still_noticed(folder: Path) -> None:
    forge(
        folder,
        "DELETE FROM events WHERE event_key & 1099511627775 > 290",
        "DELETE FROM touches WHERE event_key & 1099511627775 > 290",
        "DELETE FROM annotations WHERE event_key & 1099511627775 > 290",
    )
    run(folder, "verify")
    said = run(folder, "verify", "--checkpoint", "checkpoint", status=1)
    assert "cut off" in said
    assert "holds" not in said
    assert "cut off" in run(folder, "checkpoint", status=1)


def test_an_event_forged_with_all_its_hashes_is_noticed(folder: Path) -> None:
    """The last event again, by another actor, everything about it recomputed."""
    file = folder / "weightledger-data/ledger.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        (header,) = connection.execute(
            "SELECT header FROM events ORDER BY event_key DESC LIMIT 1"
        ).fetchone()
    fields = json.loads(header)
    fields["body"]["learning_rate"] = 0.25
    forged = canonical(fields)
    hash_ = sha256(b"\0" + forged).digest()
    forge(
        folder,
        f"UPDATE events SET header = x'{forged.hex()}', event_hash = x'{hash_.hex()}'"
        " WHERE event_key = (SELECT max(event_key) FROM events)",
    )
    run(folder, "verify", "--quick")
    said = run(folder, "verify", "--quick", "--checkpoint", "checkpoint", status=1)
    assert "not those that were signed" in said
    assert "not those that were signed" in run(folder, "checkpoint", status=1)
    run(folder, "export", "-o", "log.jsonl")
    asked = ("--key", key(folder), "--checkpoint", "checkpoint")
    assert "not the one of the checkpoint" in offline(folder, "log", "log.jsonl", *asked, status=1)


def test_a_checkpoint_of_another_log_or_key_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write(other, 1)
    (folder / "theirs").write_text(run(other, "checkpoint"))
    theirs = run(other, "checkpoint", "--key").strip()
    assert "not signed by" in run(folder, "verify", "--checkpoint", "theirs", status=1)
    said = run(folder, "verify", "--checkpoint", "theirs", "--key", theirs, status=1)
    assert "the checkpoint is of" in said
    assert "cannot be read" in run(folder, "verify", "--checkpoint", "nowhere", status=1)
    assert "verifier key" in run(
        folder, "verify", "--checkpoint", "checkpoint", "--key", "x", status=1
    )
