"""Check what a ledger says without the ledger: one file, to be handed to whoever audits.

    python -m weightledger.verify_offline proof FILE --key VKEY [--witness VKEY …] [--quorum N]
    python -m weightledger.verify_offline log FILE [--key VKEY --checkpoint FILE …]
    python -m weightledger.verify_offline weights FILE --digest HEX

It needs Python's standard library, `cryptography` and, for weights, `blake3`; neither a database
nor this package. It is written apart from the package on purpose, from the published formats: RFC
6962, c2sp.org/signed-note, tlog-checkpoint, tlog-cosignature and tlog-proof, and the ledger's own
page on formats. Exit status 0: all of it holds; 1: something does not, which is named; 2: usage.
"""

import argparse
import base64
import hashlib
import json
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

CHUNK = 256 * 1024
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32",
    "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64", "C128": "complex128",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip


class Fails(Exception):
    """Something does not hold; the message says what."""


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Fails(otherwise)


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def unbase64(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        data = b""
    require(base64.b64encode(data).decode() == text, f"{what} is no base64: {text[:60]!r}")
    return data


# Signed notes and checkpoints


class NoteKey:
    """A verifier key `NAME+ID+base64(type ‖ Ed25519 key)`: type 1 of a log, 4 of a witness."""

    def __init__(self, text: str) -> None:
        parts = text.strip().split("+", 2)
        require(len(parts) == 3, f"a key is NAME+ID+KEY, got {text!r}")
        self.name, material = parts[0], unbase64(parts[2], "the key")
        require(len(material) == 33 and material[0] in (1, 4), f"{self.name} is no Ed25519 key")
        self.id = sha256(self.name.encode(), b"\n", material)[:4]
        require(self.id.hex() == parts[1], f"the id of key {self.name} is not {parts[1]}")
        self.timed, self._public = material[0] == 4, material[1:]

    def signed(self, text: str, signatures: Iterable[tuple[str, bytes]]) -> bool:
        """Whether this key signed; Fails when it says so and did not."""
        me = self.name, self.id
        mine = [data[4:] for name, data in signatures if (name, data[:4]) == me]
        for data in mine:
            message = text
            if self.timed:
                message = f"cosignature/v1\ntime {int.from_bytes(data[:8])}\n{text}"
                data = data[8:]
            try:
                Ed25519PublicKey.from_public_bytes(self._public).verify(data, message.encode())
            except InvalidSignature:
                raise Fails(f"the signature of {self.name} does not fit the checkpoint") from None
        return bool(mine)


def read_checkpoint(
    note: str, key: NoteKey, witnesses: list[NoteKey], quorum: int
) -> tuple[int, bytes]:
    """The size and root of a checkpoint that this log signed and enough witnesses cosigned."""
    text, separator, rest = note.rpartition("\n\n")
    require(bool(separator) and rest.endswith("\n"), "the checkpoint has no signatures")
    text += "\n"
    signatures = []
    for line in rest[:-1].split("\n"):
        mark, name, data = [*line.split(" "), "", ""][:3]
        require(mark == "—", f"this is no signature: {line[:60]!r}")
        signatures.append((name, unbase64(data, "a signature")))
    require(key.signed(text, signatures), f"the checkpoint is not signed by {key.name}")
    known = {(one.name, one.id): one for one in witnesses if one.timed}  # twice is once
    cosigned = sum(witness.signed(text, signatures) for witness in known.values())
    require(cosigned >= quorum, f"{cosigned} known witnesses cosigned, {quorum} are asked for")
    origin, size, root = [*text.split("\n"), "", "", ""][:3]
    require(origin == key.name, f"the checkpoint is of {origin!r}, the key of {key.name!r}")
    require(size.isascii() and size.isdigit(), f"the size is no number: {size[:40]!r}")
    return int(size), unbase64(root, "the root")


# The tree of RFC 6962


def leaf(header: bytes) -> bytes:
    return sha256(b"\0", header)


class RunningRoot:
    """The root over leaves that come one by one: the roots of its perfect subtrees."""

    def __init__(self) -> None:
        self._stack: list[tuple[int, bytes]] = []
        self.size = 0

    def add(self, hash_: bytes) -> None:
        level = 0
        while self._stack and self._stack[-1][0] == level:
            hash_ = sha256(b"\1", self._stack.pop()[1], hash_)
            level += 1
        self._stack.append((level, hash_))
        self.size += 1

    def root(self) -> bytes:
        if not self._stack:
            return sha256()
        root = self._stack[-1][1]
        for _, left in reversed(self._stack[:-1]):
            root = sha256(b"\1", left, root)
        return root


def root_from(hash_: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """What an inclusion proof leads to, from the leaf up."""
    last = size - 1
    for sibling in path:
        require(last > 0, "the proof is longer than the way to the root")
        if index & 1 or index == last:
            hash_ = sha256(b"\1", sibling, hash_)
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            hash_ = sha256(b"\1", hash_, sibling)
        index, last = index >> 1, last >> 1
    require(last == 0, "the proof is shorter than the way to the root")
    return hash_


def check_proof(text: str, key: NoteKey, witnesses: list[NoteKey], quorum: int) -> dict[str, Any]:
    """The event of a proof file, whose place in the log is proven."""
    top, _, note = text.partition("\n\n")
    first, *lines = top.split("\n")
    require(first == "c2sp.org/tlog-proof@v1", "the file is no tlog-proof")
    require(len(lines) >= 2 and lines[0].startswith("extra "), "the proof holds no event")
    header = unbase64(lines[0].removeprefix("extra "), "the event")
    number = lines[1].removeprefix("index ")
    require(number.isascii() and number.isdigit(), f"the index is no number: {number[:40]!r}")
    index, path = int(number), [unbase64(line, "a hash") for line in lines[2:]]
    size, root = read_checkpoint(note, key, witnesses, quorum)
    require(index < size, f"event {index} is not among the {size} of the checkpoint")
    computed = root_from(leaf(header), index, size, path)
    require(computed == root, "the proof does not lead to the root of the checkpoint")
    event: dict[str, Any] = json.loads(header)
    require(event["seq"] == index, f"the event says it is {event['seq']}, the proof {index}")
    return event


# An exported log


def check_log(lines: Iterator[str], until: int | None = None) -> tuple[RunningRoot, dict[str, Any]]:
    """The tree over an exported log (its first `until` events) and its last event."""
    opening = json.loads(next(lines, "{}"))
    is_log = isinstance(opening, dict) and opening.get("format") == "weightledger.log.1"
    require(is_log, "this is no exported log")
    tree, before = RunningRoot(), None
    for line in lines:
        if tree.size == until:
            break
        item = json.loads(line)
        header = item["header"].encode()
        event, seq = json.loads(header), tree.size
        require(event["seq"] == seq, f"event {seq} is missing, event {event['seq']} follows")
        require(event["model"] == opening["model"], f"event {seq} is of another model")
        if before is not None:
            require(event["prev"] == before["hash"], f"event {seq} follows another event")
            require(event["state_before"] == before["state_after"], f"event {seq}: other state")
            require(event["recorded_at"] >= before["recorded_at"], f"event {seq}: earlier time")
        for name in ("actor", "reason", "metadata"):
            check_text(item, event, name)
        hash_ = leaf(header)
        tree.add(hash_)
        before = {**event, "hash": hash_.hex()}
    require(before is not None, "the log has no event")
    assert before is not None
    return tree, before


def check_text(item: dict[str, Any], event: dict[str, Any], name: str) -> None:
    """A text beside an event is the one its header has the salted digest of, or was redacted."""
    text = item.get(name)
    if text is not None:
        salted = sha256(bytes.fromhex(item["salt"]), f"{name}\0{text}".encode()).hex()
        require(salted == event.get(name), f"event {event['seq']}: the {name} was altered")


# Weights


def state_digest(path: str) -> str:
    """The ledger's digest of the state in a safetensors file, in hex."""
    from blake3 import blake3

    lines = {}
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        for name, about in header.items():
            start, stop = about["data_offsets"]
            file.seek(8 + length + start)
            sizes = [min(CHUNK, stop - at) for at in range(start, stop, CHUNK)]
            chunks = [blake3(file.read(size)).digest() for size in sizes]
            shape = ",".join(map(str, about["shape"]))
            digest = blake3(b"".join(chunks)).hexdigest()
            full = name if name.startswith(("adapter/", "rule/")) else f"weights/{name}"
            lines[full] = f"{full}\t{DTYPES[about['dtype']]}\t{shape}\t{digest}\n"
    for alias, first in json.loads(metadata.get("weight_ledger.aliases", "{}")).items():
        # Its bytes are in the file once more, and in the state's digest they are not.
        alike = lines.get(alias, "\t").split("\t")[1:] == lines.get(first, "\t").split("\t")[1:]
        require(alike, f"{alias} has to be the same tensor as {first}")
        lines[alias] = f"{alias}\t=\t{first}\n"
    return blake3("".join(lines[name] for name in sorted(lines)).encode()).hexdigest()


def run(arguments: argparse.Namespace) -> str:
    if arguments.what == "weights":
        digest = state_digest(arguments.file)
        require(digest == arguments.digest, f"the weights have the digest {digest}")
        return f"the weights are those with the digest {digest}"
    witnesses = [NoteKey(text) for text in arguments.witness]
    with open(arguments.file, encoding="utf-8") as file:
        if arguments.what == "proof":
            key = NoteKey(arguments.key)
            event = check_proof(file.read(), key, witnesses, arguments.quorum)
            return (
                f"event {event['seq']} ({event['kind']}) of {event['model']} is in the log; "
                f"after it the state was {event['state_after']}"
            )
        size, root = None, None
        if arguments.checkpoint:
            require(arguments.key is not None, "a checkpoint is checked with --key")
            with open(arguments.checkpoint, encoding="utf-8") as checkpoint:
                note, key = checkpoint.read(), NoteKey(arguments.key)
            size, root = read_checkpoint(note, key, witnesses, arguments.quorum)
        else:
            signed = arguments.key or arguments.witness or arguments.quorum
            require(not signed, "keys are for a checkpoint: name it with --checkpoint")
        tree, last = check_log(file, size)
        require(size in (None, tree.size), f"the log ends at {tree.size}, before {size} events")
        require(root in (None, tree.root()), "the log is not the one of the checkpoint")
        return f"{tree.size} events of {last['model']} hold; the last has the hash {last['hash']}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kinds = parser.add_subparsers(dest="what", required=True)
    for what in ("proof", "log", "weights"):
        one = kinds.add_parser(what)
        one.add_argument("file")
        if what == "weights":
            one.add_argument("--digest", required=True)
            continue
        one.add_argument("--key", required=what == "proof", help="the log's verifier key")
        one.add_argument("--witness", action="append", default=[], help="a witness's verifier key")
        one.add_argument("--quorum", type=int, default=0, help="witnesses that have to cosign")
        if what == "log":
            one.add_argument("--checkpoint", help="a signed checkpoint of the log, kept elsewhere")
    try:
        print(run(parser.parse_args()))
    except OSError as error:
        print(f"not checked: {error}", file=sys.stderr)
        return 1
    except (Fails, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        problem = error if isinstance(error, Fails) else f"the file is no such file: {error!r}"
        print(f"does not hold: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
