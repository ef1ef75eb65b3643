"""`verify` in levels: what each reads, where it goes on; and a signing key that is rotated."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.api.test_command import inside
from tests.api.test_proofs import forge
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.audit import checkpoints, marks, notes
from weightledger.ledger.audit.notes import VerifierKey
from weightledger.ledger.audit.witness import WitnessBook
from weightledger.ledger.events import SIGNING_KEY_ROTATED

MODEL = "levels"


def write(folder: Path, count: int) -> None:
    (folder / "weightledger-data").mkdir(exist_ok=True)
    with Ledger.open(f"sqlite:///{folder}/weightledger-data/ledger.db") as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(4)})
        for _ in range(count):
            log.apply(IncrementalUpdateRequest("w", 1.0, 0.5, actor="ada"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    write(folder, 300)
    return folder


@pytest.fixture
def folder(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(kept, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def verified(*options: str, status: int = 0) -> dict[str, Any]:
    got, out, err = inside("verify", "--json", *options)
    assert got == status, out + err
    return dict(json.loads(out))


def mark() -> dict[str, Any]:
    (file,) = Path("weightledger-data/verified").iterdir()
    return dict(json.loads(file.read_text()))


def test_each_level_says_what_it_covered(folder: Path) -> None:
    quick = verified("--quick")
    assert (quick["ok"], quick["level"], quick["events"], quick["states"]) == (
        True,
        "quick",
        301,
        0,
    )
    full = verified()
    assert (full["level"], full["events"], full["states"]) == ("full", 301, 301)
    assert full["tree_root"] == quick["tree_root"]
    for since in (0, 1, 255, 256, 300, 301):
        part = verified("--since", str(since))
        assert (part["since"], part["events"]) == (since, 301 - since)
        assert part["states"] == 301 - since
        assert part["tree_root"] == full["tree_root"]
    _, _, err = inside("verify", "--since", "302")
    assert "the log has 301 events" in err
    assert inside("verify", "--since", "3", "--resume")[0] == 1


def test_it_goes_on_where_it_came_to(folder: Path) -> None:
    assert verified("--resume", "--quick")["events"] == 301
    assert mark()["events"] == 301
    assert verified("--resume", "--quick")["events"] == 0
    # States were not rebuilt yet, so a whole verification begins at the beginning.
    assert verified("--resume")["states"] == 301
    write(folder, 5)
    again = verified("--resume")
    assert (again["since"], again["events"], again["states"]) == (301, 5, 5)
    assert (mark()["events"], mark()["states"]) == (306, True)
    verified("--quick")
    assert mark()["states"]  # what was known says more


def test_what_is_left_out_is_not_taken_for_verified(folder: Path) -> None:
    assert verified("--since", "200")["events"] == 101
    assert not Path("weightledger-data/verified").exists()


def test_a_log_that_is_not_the_one_verified_before_is_noticed(folder: Path) -> None:
    verified("--quick")
    forge(
        folder,
        *(
            f"DELETE FROM {table} WHERE event_key & 1099511627775 > 290"
            for table in ("touches", "annotations", "events")
        ),
    )
    assert "cut off" in verified("--quick", "--resume", status=1)["result"]
    write(folder, 20)
    said = verified("--quick", "--resume", status=1)["result"]
    assert "not those that were verified before" in said
    assert verified("--quick")["ok"]  # whole in itself
    next(Path("weightledger-data/verified").iterdir()).write_text("{")
    assert verified("--quick", "--resume")["events"] == 311  # a mark that is none is no mark


def test_an_interrupted_verification_keeps_how_far_it_came(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weightledger.api.cli.verification as command

    kept: list[int] = []
    writes = marks.write

    def stopped(where: Path, store: Any, one: marks.VerifiedMark) -> None:
        writes(where, store, one)
        kept.append(one.events)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_MARK_EVERY_S", 0.0)
    monkeypatch.setattr(command.marks, "write", stopped)
    assert inside("verify")[0] != 0
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert kept == [1]
    assert verified("--resume")["events"] == 300


def test_without_witnesses_nothing_is_witnessed(folder: Path) -> None:
    said = verified("--quick", "--witnessed", status=1)["result"]
    assert "no witness is configured" in said


# The signing key


def command(*words: str, status: int = 0) -> str:
    got, out, err = inside(*words)
    assert got == status, out + err
    return out if status == 0 else err


def test_a_key_is_rotated_and_the_old_one_vouches_for_it(folder: Path, tmp_path: Path) -> None:
    old = VerifierKey.parse(command("checkpoint", "--key"))
    Path("monday").write_text(command("checkpoint"))
    book = WitnessBook("w", tmp_path / "w.db", [old])
    first = notes.parse(Path("monday").read_text())
    assert book.add_checkpoint(f"old 0\n\n{first}".encode()).status == 200
    command("rotate-signing-key", "-m", "yearly", "--actor", "ada")
    new = VerifierKey.parse(command("checkpoint", "--key"))
    assert new.name == old.name and new.public != old.public
    both = notes.parse(command("checkpoint"))
    old.check(both)
    new.check(both)
    assert checkpoints.read(both).size == 302
    shown = json.loads(command("log", "-n", "1", "--json"))[0]
    assert (shown["kind"], shown["actor"], shown["reason"]) == (
        SIGNING_KEY_ROTATED,
        "ada",
        "yearly",
    )
    assert (shown["facts"]["old"], shown["facts"]["new"]) == (old.public.hex(), new.public.hex())
    # A checkpoint of before is still checked, by the key that the log says was used.
    assert "monday holds" in verified("--quick", "--checkpoint", "monday")["checkpoint"]
    # Nobody but who was told of the new key takes what it signs alone.
    write(folder, 1)
    alone = notes.parse(command("checkpoint"))
    new.check(alone)
    proof = json.loads(command("consistency", "301", "303", "--json"))["hashes"]
    body = "\n".join(["old 301", *proof, "", str(alone)])
    assert book.add_checkpoint(body.encode()).status == 403
    book.close()
    assert verified()["ok"]


def test_a_lost_key_is_not_made_again_without_a_word(folder: Path) -> None:
    command("checkpoint")
    Path("weightledger-data/signing.key").unlink()
    for words in (("checkpoint",), ("rotate-signing-key",)):
        assert "is gone, and has signed checkpoints" in command(*words, status=1)
    command("rotate-signing-key", "--lost")
    new = VerifierKey.parse(command("checkpoint", "--key"))
    new.check(notes.parse(command("checkpoint")))
    shown = json.loads(command("log", "-n", "1", "--json"))[0]
    assert shown["facts"]["old"] is None
    # Also then a log that was cut off is not signed again.
    Path("weightledger-data/signing.key").unlink()
    forge(
        folder,
        "DELETE FROM annotations WHERE event_key & 1099511627775 = 301",
        "DELETE FROM events WHERE event_key & 1099511627775 = 301",
    )
    assert "cut off" in command("rotate-signing-key", "--lost", status=1)


def test_a_key_that_cannot_be_read_is_named(folder: Path) -> None:
    Path("weightledger-data/signing.key").mkdir()
    assert "signing.key cannot be read" in command("checkpoint", status=1)
    Path("weightledger-data/signing.key").rmdir()
    Path("weightledger-data/signing.key").write_bytes(b"\xff\xfe")
    Path("weightledger-data/signing.key").chmod(0o600)
    assert "signing.key cannot be read" in command("checkpoint", status=1)


def test_a_given_key_is_not_the_folders_to_rotate(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTLEDGER_SIGNING_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
    assert "not the data folder's" in command("rotate-signing-key", status=1)
