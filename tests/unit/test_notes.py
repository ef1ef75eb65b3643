"""Signed notes and checkpoints: the specification's own example, and what must not be taken."""

from collections.abc import Callable

import pytest

from weightledger import verify_offline
from weightledger.ledger.audit import checkpoints, notes, proofs
from weightledger.ledger.audit.notes import COSIGNATURE, Note, SigningKey, VerifierKey
from weightledger.ledger.errors import InvalidRequest, ProofError

# The example of c2sp.org/signed-note.
VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
NOTE = (
    "This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ON"
    "ncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)

LOG = SigningKey.from_seed("example.com/log", bytes(range(32)))
WITNESS = SigningKey.from_seed("witness.example/w", bytes(range(1, 33)), COSIGNATURE)
CHECKPOINT = checkpoints.Checkpoint("example.com/log", 7, bytes(range(32)))


def test_the_specifications_example_holds() -> None:
    key = VerifierKey.parse(VKEY)
    note = notes.parse(NOTE)
    assert key.check(note) is None
    assert str(key) == VKEY
    assert str(note) == NOTE


def test_any_altered_byte_of_a_note_is_noticed() -> None:
    note = Note(CHECKPOINT.text()).signed([LOG.sign(CHECKPOINT.text())])
    written = str(note).encode()
    for at in range(len(written)):
        altered = bytearray(written)
        altered[at] ^= 1
        with pytest.raises((ProofError, UnicodeDecodeError)):
            LOG.verifier.check(notes.parse(altered.decode()))


def test_a_cosignature_says_when_and_that_cannot_be_altered() -> None:
    text = CHECKPOINT.text()
    note = Note(text).signed([LOG.sign(text), WITNESS.sign(text, 1_679_315_147)])
    again = notes.parse(str(note))
    assert WITNESS.verifier.check(again) == 1_679_315_147
    assert LOG.verifier.check(again) is None
    for at in range(8):
        (plain, signed) = again.signatures
        data = bytearray(signed.data)
        data[at] ^= 1
        late = Note(text, (plain, notes.Signature(signed.name, signed.key_id, bytes(data))))
        with pytest.raises(ProofError):
            WITNESS.verifier.check(late)


def test_a_quorum_counts_witnesses_and_not_how_often_they_are_named() -> None:
    text = CHECKPOINT.text()
    note = Note(text).signed([LOG.sign(text), WITNESS.sign(text, 1_679_315_147)])
    for known in ([WITNESS, WITNESS], [WITNESS, LOG]):  # the log is not its own witness
        keys = [one.verifier for one in known]
        proofs.require_quorum(note, keys, 1)
        with pytest.raises(ProofError, match="1 of the known"):
            proofs.require_quorum(note, keys, 2)
        theirs = [verify_offline.NoteKey(str(one)) for one in keys]
        log = verify_offline.NoteKey(str(LOG.verifier))
        verify_offline.read_checkpoint(str(note), log, theirs, 1)
        with pytest.raises(verify_offline.Fails, match="1 known"):
            verify_offline.read_checkpoint(str(note), log, theirs, 2)


def test_signatures_of_keys_that_are_not_known_are_passed_over() -> None:
    text = CHECKPOINT.text()
    stranger = SigningKey.generate("example.com/log")
    note = Note(text).signed([stranger.sign(text), LOG.sign(text)])
    assert LOG.verifier.check(note) is None
    with pytest.raises(ProofError, match="not signed by"):
        LOG.verifier.check(Note(text).signed([stranger.sign(text)]))


def test_a_key_signs_for_one_purpose() -> None:
    plain = SigningKey.from_seed("witness.example/w", bytes(range(1, 33)))
    assert plain.verifier.key_id != WITNESS.verifier.key_id
    note = Note(CHECKPOINT.text()).signed([plain.sign(CHECKPOINT.text())])
    with pytest.raises(ProofError, match="not signed by"):
        WITNESS.verifier.check(note)


def test_a_newer_signature_of_a_key_takes_the_place_of_the_older() -> None:
    text = CHECKPOINT.text()
    note = Note(text).signed([WITNESS.sign(text, 1)]).signed([WITNESS.sign(text, 2)])
    assert len(note.signatures) == 1
    assert WITNESS.verifier.check(note) == 2


def test_checkpoints_are_read_as_they_were_written() -> None:
    assert checkpoints.read(Note(CHECKPOINT.text())) == CHECKPOINT
    assert checkpoints.read(Note(CHECKPOINT.text() + "an extension\n")) == CHECKPOINT


ROOT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


@pytest.mark.parametrize(
    "text",
    [
        "only one line\n",
        f"o\n07\n{ROOT}\n",
        f"o\n-1\n{ROOT}\n",
        f"o\n99999999999999999999\n{ROOT}\n",
        "o\n7\nAAEC\n",
        "o\n7\n!\n",
        f"\n7\n{ROOT}\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(ProofError):
        checkpoints.read(Note(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text",
        "text\n",
        "text\n\n",
        "text\n\n- a b\n",
        "text\n\n— a +\n",
        "te\x00xt\n\n— a AAAA\n",
    ],
)
def test_what_is_no_note_is_refused(text: str) -> None:
    with pytest.raises(ProofError):
        notes.parse(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VerifierKey.parse("only a name"),
        lambda: VerifierKey.parse(VKEY.replace("530d903a", "530d903b")),
        lambda: VerifierKey.parse(VKEY[:-8]),
        lambda: SigningKey.generate("a name"),
        lambda: SigningKey.generate("a+b"),
    ],
)
def test_what_is_no_key_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidRequest):
        make()
