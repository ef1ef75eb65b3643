"""A witness's answers, as c2sp.org/tlog-witness says, and what it never forgets."""

import base64
import sqlite3
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_S
from weightledger.ledger.audit import checkpoints, notes, witness
from weightledger.ledger.audit.checkpoints import Checkpoint
from weightledger.ledger.audit.notes import COSIGNATURE, Note, SigningKey
from weightledger.ledger.audit.witness import SIZE, WitnessBook, WitnessReply
from weightledger.ledger.errors import InvalidRequest, StorageError
from weightledger.ledger.events import merkle

ORIGIN = "example.com/log"
KEY = SigningKey.from_seed(ORIGIN, bytes(range(32)))
OTHER_KEY = SigningKey.from_seed(ORIGIN, bytes(range(1, 33)))
LEAVES = [sha256(b"\0%d" % number).digest() for number in range(40)]
FORKED = [*LEAVES[:10], *(sha256(b"\0other %d" % number).digest() for number in range(30))]
NOW = 1_800_000_000


def perfect(leaves: list[bytes]) -> Callable[[int, int], bytes]:
    return lambda level, number: merkle.fold(leaves[number << level : (number + 1) << level])


def signed(size: int, leaves: list[bytes] = LEAVES, key: SigningKey = KEY) -> Note:
    text = Checkpoint(key.name, size, merkle.root(size, perfect(leaves))).text()
    return Note(text).signed([key.sign(text)])


def asking(
    old: int, note: Note, leaves: list[bytes] = LEAVES, proof: list[bytes] | None = None
) -> bytes:
    size = checkpoints.read(note).size
    if proof is None:
        proof = merkle.consistency_proof(old, size, perfect(leaves)) if 0 < old <= size else []
    lines = "".join(f"{base64.b64encode(one).decode()}\n" for one in proof)
    return f"old {old}\n{lines}\n{note}".encode()


def opened(folder: Path) -> WitnessBook:
    return WitnessBook("witness.example/w", folder / "w.db", [KEY.verifier], clock=lambda: NOW)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[WitnessBook]:
    made = opened(tmp_path)
    yield made
    made.close()


def latest(book: WitnessBook) -> WitnessReply:
    return book.checkpoint(sha256(ORIGIN.encode()).hexdigest())


def test_what_continues_the_last_checkpoint_is_cosigned(book: WitnessBook) -> None:
    assert latest(book).status == 404
    for old, size in ((0, 3), (3, 3), (3, 8), (8, 40)):
        answer = book.add_checkpoint(asking(old, signed(size)))
        assert answer.status == 200
        signature = notes.signature(answer.text.removesuffix("\n"))
        cosigned = signed(size).signed([signature])
        assert book.verifier.check(cosigned) == NOW
        assert latest(book) == WitnessReply(200, str(cosigned))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\xff", 400),
        (b"old 0\n", 400),
        (b"old 0\n\nno checkpoint\n", 400),
        (b"old 00\n\n%b" % str(signed(9)).encode(), 400),
        (b"old -1\n\n%b" % str(signed(9)).encode(), 400),
        (b"old 8\nAAAA\n\n%b" % str(signed(9)).encode(), 400),
        (asking(8, signed(9), proof=[bytes(32)] * 64), 400),
        (asking(8, signed(7)), 400),
        (asking(8, signed(9, key=SigningKey.from_seed("example.com/x", bytes(32)))), 404),
        (asking(8, signed(9, key=OTHER_KEY)), 403),
        (asking(8, Note(signed(9).text, signed(10).signatures)), 403),
        (asking(0, signed(9)), 409),
        (asking(7, signed(9)), 409),
        (asking(9, signed(9)), 409),
        (asking(8, signed(9), proof=[]), 422),
        (asking(8, signed(9), proof=[bytes(32)]), 422),
        (asking(8, signed(8, FORKED[::-1])), 422),
        (asking(8, signed(20, FORKED[::-1]), FORKED[::-1]), 422),
    ],
)
def test_everything_else_is_refused_and_changes_nothing(
    book: WitnessBook, body: bytes, status: int
) -> None:
    assert book.add_checkpoint(asking(0, signed(8))).status == 200
    before = latest(book)
    answer = book.add_checkpoint(body)
    assert answer.status == status, answer.text
    if status == 409:
        assert answer == WitnessReply(409, "8\n", SIZE)
    assert latest(book) == before
    assert book.add_checkpoint(asking(8, signed(9))).status == 200


def test_the_first_checkpoint_has_no_proof_and_an_empty_log_the_empty_root(
    book: WitnessBook,
) -> None:
    assert book.add_checkpoint(asking(0, signed(8), proof=[bytes(32)])).status == 422
    text = Checkpoint(ORIGIN, 0, bytes(32)).text()
    assert book.add_checkpoint(asking(0, Note(text).signed([KEY.sign(text)]))).status == 422
    text = Checkpoint(ORIGIN, 0, merkle.EMPTY_ROOT).text()
    assert book.add_checkpoint(asking(0, Note(text).signed([KEY.sign(text)]))).status == 200


def test_a_fork_is_refused_whichever_came_first(book: WitnessBook) -> None:
    assert book.add_checkpoint(asking(0, signed(20, FORKED), FORKED)).status == 200
    assert book.add_checkpoint(asking(20, signed(30))).status == 422
    assert book.add_checkpoint(asking(20, signed(30, FORKED), FORKED)).status == 200


def test_signatures_that_it_does_not_know_are_passed_over_and_not_kept(book: WitnessBook) -> None:
    note = signed(8)
    stranger = SigningKey.from_seed("example.com/other", bytes(32))
    assert book.add_checkpoint(asking(0, note.signed([stranger.sign(note.text)]))).status == 200
    assert stranger.name not in latest(book).text


def test_it_remembers_what_it_cosigned_when_it_is_started_again(tmp_path: Path) -> None:
    book = opened(tmp_path)
    assert book.add_checkpoint(asking(0, signed(8))).status == 200
    key, last = book.verifier, latest(book)
    book.close()
    book = opened(tmp_path)
    assert (book.verifier, latest(book)) == (key, last)
    assert book.add_checkpoint(asking(0, signed(3, FORKED), FORKED)).status == 409
    book.close()


def test_it_keeps_a_checkpoint_before_it_signs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, it knows what it may have signed, and shows no cosignature of it."""

    def killed(self: SigningKey, text: str, time: int | None = None) -> None:
        raise SystemExit("killed")

    book = opened(tmp_path)
    request = asking(0, signed(8))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(witness.SigningKey, "sign", killed)
        book.add_checkpoint(request)
    book.close()
    book = opened(tmp_path)
    assert latest(book).status == 404
    assert book.add_checkpoint(asking(0, signed(8, FORKED[::-1]))).status == 409
    assert book.add_checkpoint(asking(8, signed(8))).status == 200
    assert latest(book).status == 200
    book.close()


def test_of_two_that_ask_at_once_one_is_told_what_the_other_did(book: WitnessBook) -> None:
    """Or a witness would sign two forks of one length."""
    bodies = [asking(0, signed(9)), asking(0, signed(9, FORKED[::-1]))] * 4
    together = threading.Barrier(len(bodies), timeout=PATIENCE_S)
    answers: list[WitnessReply] = []

    def ask(body: bytes) -> None:
        together.wait()
        answers.append(book.add_checkpoint(body))

    threads = [threading.Thread(target=ask, args=(body,)) for body in bodies]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(answer.status for answer in answers) == [200] + [409] * 7


def test_a_log_may_have_several_keys(tmp_path: Path) -> None:
    keys = [KEY.verifier, OTHER_KEY.verifier]
    book = WitnessBook("witness.example/w", tmp_path / "w.db", keys)
    assert book.add_checkpoint(asking(0, signed(3))).status == 200
    assert book.add_checkpoint(asking(3, signed(8, key=OTHER_KEY))).status == 200
    book.close()


def test_what_it_cannot_work_with_is_refused_at_start(tmp_path: Path) -> None:
    cosigner = SigningKey.generate("w", COSIGNATURE).verifier
    with pytest.raises(InvalidRequest, match="a log"):
        WitnessBook("w", tmp_path / "w.db", [])
    with pytest.raises(InvalidRequest, match="of a witness"):
        WitnessBook("w", tmp_path / "w.db", [cosigner])
    with pytest.raises(InvalidRequest, match="no spaces"):
        WitnessBook("a name", tmp_path / "w.db", [KEY.verifier])
    (tmp_path / "text").write_text("this is no database" * 100)
    with pytest.raises(StorageError, match="cannot be used"):
        WitnessBook("w", tmp_path / "text", [KEY.verifier])
    opened(tmp_path).close()
    (tmp_path / "w.db.key").chmod(0o644)
    with pytest.raises(InvalidRequest, match="chmod 600"):
        opened(tmp_path)


def test_another_ones_database_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "w.db") as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(StorageError, match="something else"):
        opened(tmp_path)
