"""Every way to alter a log of 30 events that we know of, and what notices it.

one bit anywhere in an event        its own hash
the same, with the hash put right   a field, the next event, or the checkpoint
one bit in the checkpoint           its signature
rows swapped, dropped, doubled      the order
cut off, forged with all hashes     a checkpoint kept elsewhere, and the next signature
the same by who holds the key       the witness
signed by another key               the verifier key
an old checkpoint shown again       the witness
"""

import base64
import contextlib
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from weightledger import IncrementalUpdateRequest, Ledger, verify_offline
from weightledger.ledger.audit import chain, checkpoints, exports, notes
from weightledger.ledger.audit.notes import Note, SigningKey, VerifierKey
from weightledger.ledger.audit.signing import Signer, require_continuation
from weightledger.ledger.audit.tree import EventTree
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.audit.witness import WitnessBook
from weightledger.ledger.errors import CorruptLedger, ProofError
from weightledger.ledger.events import leaf_hash, merkle
from weightledger.ledger.sql.sqlite_driver import driver
from weightledger.ledger.store.facts import Facts

MODEL = "m"
EVENTS = 30


class World:
    """A log, its signer, and a checkpoint with its key that were kept elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signer = Signer.open(folder)
        self.open()

    def open(self) -> None:
        self.ledger = Ledger.open(f"sqlite:///{self.folder}/ledger.db", guarded=False)
        self.store = self.ledger.store.model(MODEL)

    def forge(self, forging: "Callable[[World], None]") -> None:
        """Nobody else has the file open meanwhile."""
        self.close()
        forging(self)
        self.open()

    def close(self) -> None:
        self.ledger.close()

    @property
    def problem(self) -> str | None:
        return verify(self.ledger.history(MODEL), states=False).problem


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(6)})
        log.create_initial_version()
        for number in range(EVENTS - 4):
            said: dict[str, Any] = {"actor": "ada", "reason": "r", "metadata": {"n": number}}
            log.apply(IncrementalUpdateRequest("w", float(number), 1.0, **said))
        log.rollback("head~2")
        log.create_version("last")
        assert log.history.head().seq == EVENTS - 1
        Signer.open(folder).checkpoint(log.history.store)
    return folder


@pytest.fixture
def world(kept: Path, tmp_path: Path) -> Iterator[World]:
    shutil.copytree(kept, tmp_path / "copy")
    made = World(tmp_path / "copy")
    yield made
    made.close()


@pytest.fixture(scope="module")
def true(kept: Path) -> Iterator[World]:
    """The log as it was, to read."""
    made = World(kept)
    yield made
    made.close()


@pytest.fixture(scope="module")
def checkpoint(true: World) -> Note:
    note = true.signer.last(true.store)
    assert note is not None
    return note


@pytest.fixture(scope="module")
def key(true: World) -> VerifierKey:
    return true.signer.key(true.store).verifier


def places(true: World) -> tuple[list[Any], list[chain.ChainPosition]]:
    """The rows of the log with what is beside them, and where the log stands before each."""
    (page,) = true.store.raw(0, EVENTS)
    before, place = [], chain.ChainPosition()
    for row in page:
        before.append(place)
        place = chain.check_page([row], MODEL, place)
    return page, before


def flips(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        for bit in range(8):
            yield data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def drawn(data: bytes) -> Iterator[bytes]:
    """One bit of every byte."""
    chance = random.Random(7)
    for at in range(len(data)):
        yield data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def noticed(row: Any, place: chain.ChainPosition) -> tuple[int | None, bool] | None:
    """At which event it is noticed, and whether as a text; hundreds of thousands ask."""
    try:
        chain.check_page([row], MODEL, place)
    except CorruptLedger as error:
        return error.seq, "not the one recorded" in str(error)
    return None


HEADER, HASH, STATE = (Facts._fields.index(one) for one in ("header", "event_hash", "state_after"))
TEXTS = range(len(Facts._fields), len(Facts._fields) + 4)  # and their salt


def test_every_bit_of_an_event_is_noticed_by_its_own_hash_or_row(true: World) -> None:
    """Of one of each kind; of one that is as another was, a bit of every byte."""
    kinds: Counter[str] = Counter()
    for seq, kind in enumerate(event.kind for event in true.ledger.history(MODEL).events()):
        kinds[kind] += 1
        own_hash_or_row_notices(true, seq, flips if kinds[kind] == 1 else drawn)
    assert len(kinds) == 4


@pytest.mark.soak
def test_every_bit_of_every_event_is_noticed_by_its_own_hash_or_row(true: World) -> None:
    for seq in range(EVENTS):
        own_hash_or_row_notices(true, seq, flips)


def own_hash_or_row_notices(
    true: World, seq: int, flipping: Callable[[bytes], Iterator[bytes]]
) -> None:
    page, before = places(true)
    row = page[seq]
    for column in (HEADER, HASH, STATE):
        for flipped in flipping(row[column]):
            altered = (*row[:column], flipped, *row[column + 1 :])
            assert noticed(altered, before[seq]) == (seq, False)


def test_every_bit_of_what_people_said_is_noticed(true: World) -> None:
    page, before = places(true)
    for seq, row in enumerate(page):
        for column in TEXTS:
            text = row[column]
            data = text.encode() if isinstance(text, str) else text
            for flipped in flips(data or b""):
                with contextlib.suppress(UnicodeDecodeError):
                    value = flipped.decode() if isinstance(text, str) else flipped
                    altered = (*row[:column], value, *row[column + 1 :])
                    assert noticed(altered, before[seq]) == (seq, True)


@pytest.mark.parametrize("seq", [0, 1, EVENTS // 2, EVENTS - 1])
def test_every_bit_under_a_new_hash_is_noticed_by_a_field_the_next_event_or_the_checkpoint(
    true: World, checkpoint: Note, seq: int
) -> None:
    page, before = places(true)
    hashes = [row[HASH] for row in page]
    signed = checkpoints.read(checkpoint)
    by: Counter[str] = Counter()
    for header in drawn(page[seq][HEADER]):
        altered = list(page[seq])
        altered[HEADER], altered[HASH] = header, leaf_hash(header)
        try:
            place = chain.check_page([tuple(altered)], MODEL, before[seq])
        except CorruptLedger:
            by["a field"] += 1
            continue
        if seq + 1 < EVENTS:
            with pytest.raises(CorruptLedger) as told:
                chain.check_page([page[seq + 1]], MODEL, place)
            assert told.value.seq == seq + 1
            by["the next event"] += 1
        forged = [*hashes[:seq], altered[HASH], *hashes[seq + 1 :]]
        assert plain_root(forged) != signed.root
        by["the checkpoint"] += 1
    # What an update's body says has no other witness than the chain and the tree.
    assert by["a field"] and by["the checkpoint"], by
    assert plain_root(hashes) == signed.root


def plain_root(hashes: list[bytes]) -> bytes:
    return merkle.root(
        len(hashes), lambda level, at: merkle.fold(hashes[at << level : (at + 1) << level])
    )


def test_every_bit_of_the_checkpoint_is_noticed_by_its_signature(
    checkpoint: Note, key: VerifierKey
) -> None:
    theirs = verify_offline.NoteKey(str(key))
    for flipped in flips(str(checkpoint).encode()):
        with pytest.raises((ProofError, UnicodeDecodeError)):
            key.check(notes.parse(flipped.decode()))
        with pytest.raises((verify_offline.Fails, UnicodeDecodeError)):
            verify_offline.read_checkpoint(flipped.decode(), theirs, [], 0)


def test_the_offline_verifier_notices_a_bit_in_each_byte_of_the_export(
    true: World, checkpoint: Note
) -> None:
    """Whole logs, so one bit of a byte: which one is drawn."""
    lines = list(exports.lines(true.store))
    signed = checkpoints.read(checkpoint)
    tree, _ = verify_offline.check_log(iter(lines))
    assert tree.root() == signed.root
    for number in (1, EVENTS // 2, EVENTS):
        data = lines[number].encode()
        for flipped in drawn(data):
            try:
                altered = [*lines[:number], flipped.decode(), *lines[number + 1 :]]
                tree, _ = verify_offline.check_log(iter(altered))
            except (verify_offline.Fails, ValueError, KeyError, TypeError):
                continue
            assert (
                tree.root() != signed.root
                or tree.size != signed.size
                or says_the_same(data, flipped)
            ), flipped


def says_the_same(data: bytes, flipped: bytes) -> bool:
    """Whether the flip wrote a digit of the salt as a capital, or took a text away by renaming it,
    which is what redaction may do."""
    names = (b'"actor"', b'"reason"', b'"metadata"')
    renamed = any(data.count(name) > flipped.count(name) for name in names)
    return renamed or data.lower() == flipped.lower()


# Whole logs forged in the database


def altered(world: World, *statements: str) -> None:
    """As who owns the file can, with the triggers out of the way."""
    with contextlib.closing(driver.connect(world.folder / "ledger.db")) as connection:
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
        for _, sql in triggers:
            connection.execute(sql)
        connection.commit()


SEQ = "event_key & 1099511627775"


def swap(world: World) -> None:
    with contextlib.closing(driver.connect(world.folder / "ledger.db")) as connection:
        rows = dict(
            connection.execute(f"SELECT {SEQ}, hex(header) || ':' || hex(event_hash) FROM events")
        )
    statements = []
    for one, other in ((7, 8), (8, 7)):
        header, hash_ = rows[other].split(":")
        statements.append(
            f"UPDATE events SET header = x'{header}', event_hash = x'{hash_}' WHERE {SEQ} = {one}"
        )
    altered(world, *statements)


def dropped(world: World) -> None:
    altered(world, *(f"DELETE FROM {one} WHERE {SEQ} = 9" for one in BESIDE))


def cut(world: World) -> None:
    altered(
        world,
        *(f"DELETE FROM {one} WHERE {SEQ} >= 20" for one in BESIDE),
        f"DELETE FROM listed_versions WHERE {SEQ} >= 20",
    )


def another_end(world: World) -> None:
    """The last ten events again, otherwise: the same length, all hashes right."""
    cut(world)
    with Ledger.open(f"sqlite:///{world.folder}/ledger.db") as ledger:
        log = ledger.model(MODEL)
        for number in range(10):
            log.apply(IncrementalUpdateRequest("w", -float(number), 1.0, actor="mallory"))


BESIDE = ("touches", "annotations", "events")


@pytest.mark.parametrize(
    ("forge", "by_chain", "by_checkpoint"),
    [
        (swap, "event 7", None),
        (dropped, "event 9 is missing", None),
        (cut, None, "cut off"),
        (another_end, None, "not those that were signed"),
    ],
)
def test_a_forged_log_is_noticed(
    world: World,
    checkpoint: Note,
    forge: Callable[[World], None],
    by_chain: str | None,
    by_checkpoint: str | None,
) -> None:
    world.forge(forge)
    problem = world.problem
    if by_chain is not None:
        assert problem is not None and by_chain in problem
        return
    assert problem is None  # whole in itself: only who kept something else can tell
    with pytest.raises(ProofError, match=by_checkpoint):
        require_continuation(world.store, checkpoints.read(checkpoint))
    with pytest.raises(ProofError, match=by_checkpoint):
        world.signer.checkpoint(world.store)


def asked(world: World, book: WitnessBook, old: int, note: Note) -> Any:
    size = checkpoints.read(note).size
    proof = EventTree(world.store).consistency_proof(old, size) if 0 < old <= size else []
    lines = "".join(f"{base64.b64encode(one).decode()}\n" for one in proof)
    return book.add_checkpoint(f"old {old}\n{lines}\n{note}".encode())


@pytest.mark.parametrize("forge", [cut, another_end])
def test_who_holds_the_key_too_is_caught_by_the_witness(
    world: World, checkpoint: Note, key: VerifierKey, forge: Callable[[World], None], tmp_path: Path
) -> None:
    book = WitnessBook("w", tmp_path / "w.db", [key])
    assert asked(world, book, 0, checkpoint).status == 200
    world.forge(forge)
    shutil.rmtree(world.folder / "checkpoints")
    forged = world.signer.checkpoint(world.store)
    size = checkpoints.read(forged).size
    key.check(forged)  # signed as well as any
    for old in (0, size):
        answer = asked(world, book, old, forged)
        assert answer.status in (409, 422), answer
    with Ledger.open(f"sqlite:///{world.folder}/ledger.db") as ledger:
        log = ledger.model(MODEL)
        while log.history.head().seq < EVENTS + 3:
            log.apply(IncrementalUpdateRequest("w", 1.0, 1.0))
    longer = world.signer.checkpoint(world.store)
    assert asked(world, book, EVENTS, longer).status == 422
    book.close()


def test_an_old_checkpoint_shown_again_is_refused_by_the_witness(
    world: World, checkpoint: Note, key: VerifierKey, tmp_path: Path
) -> None:
    book = WitnessBook("w", tmp_path / "w.db", [key])
    with Ledger.open(f"sqlite:///{world.folder}/ledger.db") as ledger:
        ledger.model(MODEL).apply(IncrementalUpdateRequest("w", 1.0, 1.0))
    newer = world.signer.checkpoint(world.store)
    assert asked(world, book, 0, newer).status == 200
    answer = asked(world, book, EVENTS, checkpoint)
    assert (answer.status, answer.text) == (409, f"{EVENTS + 1}\n")
    assert asked(world, book, 0, checkpoint).status == 409
    book.close()


def test_another_key_signs_for_nobody(world: World, checkpoint: Note, key: VerifierKey) -> None:
    stranger = SigningKey.generate(key.name)
    forged = Note(checkpoint.text).signed([stranger.sign(checkpoint.text)])
    with pytest.raises(ProofError, match="not signed by"):
        key.check(forged)
    with pytest.raises(verify_offline.Fails, match="not signed by"):
        verify_offline.read_checkpoint(str(forged), verify_offline.NoteKey(str(key)), [], 0)
    (file,) = [one for one in (world.folder / "checkpoints").iterdir() if one.name != "lock"]
    file.write_text(str(forged))
    with pytest.raises(ProofError, match="signed with another key"):
        world.signer.checkpoint(world.store)
