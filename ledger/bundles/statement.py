"""What is signed of a folder, as OpenSSF's model-signing writes and verifies it (its version 1).

An in-toto statement lists the SHA-256 of every file; it is signed with ECDSA in a DSSE envelope,
which a Sigstore bundle carries. See github.com/sigstore/model-transparency.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from weightledger.ledger.errors import InvalidRequest, ProofError

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_OURS = "weight_ledger"

_HASHES = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
_USE = b"weightledger: OpenSSF model signing, P-256"
# FIPS 186-5, A.2.1: 64 bits more than the order, so that the remainder has no bias.
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_WIDE_BYTES = 40


@dataclass(frozen=True, slots=True)
class Statement:
    """A folder's name, the SHA-256 of each file by its name, what is not signed, and which state of
    which log it is."""

    name: str
    files: Mapping[str, bytes]
    ignored: tuple[str, ...]
    facts: Mapping[str, str]

    def to_json(self) -> bytes:
        """The bytes that are signed."""
        ordered = sorted(self.files.items())
        root = sha256(b"".join(digest for _, digest in ordered)).hexdigest()
        statement = {
            "_type": _STATEMENT,
            "subject": [{"name": self.name, "digest": {"sha256": root}}],
            "predicateType": _PREDICATE,
            "predicate": {
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": False,
                    "ignore_paths": list(self.ignored),
                },
                "resources": [
                    {"name": name, "algorithm": "sha256", "digest": digest.hex()}
                    for name, digest in ordered
                ],
                _OURS: dict(self.facts),
            },
        }
        return json.dumps(statement, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, payload: bytes) -> "Statement":
        """The statement of signed bytes."""
        value = json.loads(payload)
        predicate = value["predicate"]
        files = {one["name"]: bytes.fromhex(one["digest"]) for one in predicate["resources"]}
        ignored = tuple(predicate["serialization"]["ignore_paths"])
        return cls(value["subject"][0]["name"], files, ignored, predicate[_OURS])


def key_from_seed(seed: bytes) -> ec.EllipticCurvePrivateKey:
    """The key that belongs to a ledger's signing key: who has that has this one."""
    wide = HKDF(hashes.SHA256(), _WIDE_BYTES, salt=None, info=_USE).derive(seed)
    return ec.derive_private_key(int.from_bytes(wide) % (_ORDER - 1) + 1, ec.SECP256R1())


def key_from_file(file: Path) -> ec.EllipticCurvePrivateKey:
    """A key of your own, in PEM, without a password; InvalidRequest unless it can be used."""
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidRequest(f"{file} is no private key in PEM: {error}", param="key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.key_size not in _HASHES:
        raise InvalidRequest(f"{file} is no key of P-256, P-384 or P-521", param="key")
    return key


def public_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """What others verify with."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def sign(statement: Statement, key: ec.EllipticCurvePrivateKey) -> str:
    """A Sigstore bundle over a statement."""
    payload = statement.to_json()
    signature = key.sign(_encoded(payload), ec.ECDSA(_HASHES[key.key_size]))
    bundle = {
        "mediaType": _BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": _hint(key)}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": _base64(payload),
            "payloadType": _PAYLOAD,
            "signatures": [{"sig": _base64(signature), "keyid": ""}],
        },
    }
    return json.dumps(bundle, separators=(",", ":"))


def read(text: str, key: ec.EllipticCurvePrivateKey) -> Statement:
    """The statement of a bundle that this key has signed; ProofError for any other."""
    try:
        envelope: Any = json.loads(text)["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
        key.public_key().verify(signature, _encoded(payload), ec.ECDSA(_HASHES[key.key_size]))
        return Statement.from_json(payload)
    except InvalidSignature:
        raise ProofError("the bundle is not signed by this key") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ProofError(f"the bundle cannot be read: {error!r}") from None


def _encoded(payload: bytes) -> bytes:
    """What DSSE signs (its pre-authentication encoding)."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)


def _hint(key: ec.EllipticCurvePrivateKey) -> str:
    return sha256(public_pem(key).encode()).hexdigest()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
