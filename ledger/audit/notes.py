"""Signed notes, as c2sp.org/signed-note says: a text, and lines of signatures below it.

    example.com/log          the text
    …

    — NAME base64(key id ‖ signature)

A key has a name, a type and 32 bytes (Ed25519). Type 0x01 signs the text as it is; type 0x04 is a
cosignature (c2sp.org/tlog-cosignature): it signs the text below two lines with the time, which is
in the signature as well. The key id is the start of SHA-256(name LF type ‖ public key).
"""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from weightledger.ledger.errors import InvalidRequest, ProofError

PLAIN = 1
COSIGNATURE = 4

_ID_BYTES = 4
_TIME_BYTES = 8
_MOST_SIGNATURES = 64
_NAME = re.compile(r"[^\s+]+")
_FORBIDDEN = re.compile(r"[\x00-\x09\x0b-\x1f]")


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line: the name and id of a key, and what it made of the text."""

    name: str
    key_id: bytes
    data: bytes

    def line(self) -> str:
        return f"— {self.name} {base64.b64encode(self.key_id + self.data).decode()}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A text that ends in a newline, and its signatures."""

    text: str
    signatures: tuple[Signature, ...] = ()

    def __str__(self) -> str:
        return self.text + "\n" + "".join(one.line() for one in self.signatures)

    def signed(self, signatures: Iterable[Signature]) -> "Note":
        """The note with further signatures; one of the same key takes the place of the older."""
        fresh = {(one.name, one.key_id): one for one in (*self.signatures, *signatures)}
        return Note(self.text, tuple(fresh.values()))


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """What others check signatures with; written `name+id+base64(type ‖ key)`."""

    name: str
    kind: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        return sha256(f"{self.name}\n".encode() + bytes([self.kind]) + self.public).digest()[:4]

    def __str__(self) -> str:
        material = base64.b64encode(bytes([self.kind]) + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{material}"

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """Read a verifier key; InvalidRequest says what is wrong with it."""
        parts = text.strip().split("+", 2)
        if len(parts) != 3 or not _NAME.fullmatch(parts[0]):
            raise InvalidRequest(f"a verifier key is NAME+ID+KEY, got {text!r}")
        material = decoded(parts[2])
        if material is None or len(material) != 33 or material[0] not in (PLAIN, COSIGNATURE):
            raise InvalidRequest(f"the verifier key of {parts[0]!r} is no Ed25519 key")
        key = cls(parts[0], material[0], material[1:])
        if key.key_id.hex() != parts[1]:
            raise InvalidRequest(f"the verifier key of {parts[0]!r} has another id: it was altered")
        return key

    def made(self, signature: Signature) -> bool:
        """Whether a signature claims to be this key's."""
        return (signature.name, signature.key_id) == (self.name, self.key_id)

    def check(self, note: Note) -> int | None:
        """Raise ProofError unless this key signed the note.

        Gives the time of a cosignature in Unix seconds, None for a plain signature.
        """
        mine = [one for one in note.signatures if self.made(one)]
        if not mine:
            raise ProofError(f"the note is not signed by {self.name} ({self.key_id.hex()})")
        times = [self._check(note.text, one.data) for one in mine]
        return times[-1]

    def _check(self, text: str, data: bytes) -> int | None:
        time = None
        if self.kind == COSIGNATURE:
            time, data = int.from_bytes(data[:_TIME_BYTES]), data[_TIME_BYTES:]
        message = _message(text, time)
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(data, message)
        except (InvalidSignature, ValueError):
            raise ProofError(f"the signature of {self.name} does not fit the note") from None
        return time


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key with its name; its text is `weightledger-ed25519+NAME+base64(seed)`."""

    name: str
    kind: int
    private: Ed25519PrivateKey

    @classmethod
    def generate(cls, name: str, kind: int = PLAIN) -> "SigningKey":
        check_name(name)
        return cls(name, kind, Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, name: str, seed: bytes, kind: int = PLAIN) -> "SigningKey":
        """The key that these 32 bytes are."""
        check_name(name)
        return cls(name, kind, Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def verifier(self) -> VerifierKey:
        return VerifierKey(self.name, self.kind, self.private.public_key().public_bytes_raw())

    def sign(self, text: str, time: int | None = None) -> Signature:
        """A signature of a text; a cosignature names the time, in Unix seconds."""
        assert (self.kind == COSIGNATURE) == (time is not None)
        data = self.private.sign(_message(text, time))
        stamp = b"" if time is None else time.to_bytes(_TIME_BYTES)
        return Signature(self.name, self.verifier.key_id, stamp + data)


def check_name(name: str) -> None:
    """Raise InvalidRequest unless a key may have this name: no spaces, no plus."""
    if not _NAME.fullmatch(name) or _FORBIDDEN.search(name):
        raise InvalidRequest(f"a key's name has no spaces and no plus, got {name!r}")


def parse(text: str) -> Note:
    """Read a note; ProofError when it is none."""
    if _FORBIDDEN.search(text):
        raise ProofError("a note holds no control characters")
    body, separator, rest = text.rpartition("\n\n")
    if not separator or not rest.endswith("\n"):
        raise ProofError("a note is a text, an empty line, and lines of signatures")
    lines = rest[:-1].split("\n")
    if len(lines) > _MOST_SIGNATURES:
        raise ProofError(f"a note has at most {_MOST_SIGNATURES} signatures, got {len(lines)}")
    return Note(body + "\n", tuple(map(signature, lines)))


def signature(line: str) -> Signature:
    """Read one signature line, without its newline; ProofError when it is none."""
    parts = line.split(" ")
    data = decoded(parts[2]) if len(parts) == 3 else None
    if data is None or parts[0] != "—" or not _NAME.fullmatch(parts[1]) or len(data) <= _ID_BYTES:
        raise ProofError(f"this is no line of a signature: {line[:80]!r}")
    return Signature(parts[1], data[:_ID_BYTES], data[_ID_BYTES:])


def _message(text: str, time: int | None) -> bytes:
    return (text if time is None else f"cosignature/v1\ntime {time}\n{text}").encode()


def decoded(text: str) -> bytes | None:
    """The bytes of base64 as it is written: no stray bits, so no two texts for one signature."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return data if base64.b64encode(data).decode() == text else None
