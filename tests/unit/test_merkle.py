"""The tree: proofs are made and checked as RFC 6962 says, by other people's cases and by hand."""

import base64
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightledger.ledger.errors import ProofError
from weightledger.ledger.events import merkle

FIXTURE = Path(__file__).parent.parent / "fixtures/merkle/rfc6962.json"
CASES = json.loads(FIXTURE.read_text())["cases"]

SIZES = st.integers(1, 300)


def bytes_of(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def check(name: str, case: dict[str, Any]) -> None:
    proof = [bytes_of(one) for one in case["proof"] or ()]
    if name.startswith("inclusion"):
        leaf, index, size = bytes_of(case["leafHash"]), case["leafIdx"], case["treeSize"]
        merkle.check_inclusion(leaf, index, size, proof, bytes_of(case["root"]))
    else:
        first, second = case["size1"], case["size2"]
        roots = bytes_of(case["root1"]), bytes_of(case["root2"])
        merkle.check_consistency(first, second, proof, *roots)


def takes_any_root(name: str, case: dict[str, Any]) -> bool:
    """Whether a case is about trees of one size whose roots are no hashes: here they have to be."""
    return name.startswith("consistency") and len(bytes_of(case["root1"])) != merkle.HASH_BYTES


@pytest.mark.parametrize("name", CASES)
def test_transparency_devs_cases(name: str) -> None:
    case = CASES[name]
    if case["wantErr"] or takes_any_root(name, case):
        with pytest.raises(ProofError):
            check(name, case)
    else:
        check(name, case)


def leaves(count: int) -> list[bytes]:
    return [sha256(b"\0%d" % number).digest() for number in range(count)]


def perfect(hashes: list[bytes]) -> merkle.Perfect:
    return lambda level, number: merkle.fold(hashes[number << level : (number + 1) << level])


def plainly(hashes: list[bytes]) -> bytes:
    """The definition of section 2.1, word for word."""
    if not hashes:
        return sha256().digest()
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    return sha256(b"\1" + plainly(hashes[:k]) + plainly(hashes[k:])).digest()


@pytest.mark.parametrize("size", range(70))
def test_a_root_is_what_the_definition_says(size: int) -> None:
    hashes = leaves(size)
    assert merkle.root(size, perfect(hashes)) == plainly(hashes)


@given(SIZES, st.data())
def test_every_proof_of_inclusion_holds_and_no_altered_one(size: int, data: st.DataObject) -> None:
    hashes = leaves(size)
    index = data.draw(st.integers(0, size - 1))
    proof = merkle.inclusion_proof(index, size, perfect(hashes))
    root = plainly(hashes)
    merkle.check_inclusion(hashes[index], index, size, proof, root)
    assert len(proof) <= size.bit_length()
    for altered in alterations(proof, data):
        refused(
            lambda altered=altered: merkle.check_inclusion(  # type: ignore[misc]
                hashes[index], index, size, altered, root
            )
        )
    if size > 1:
        other = (index + 1) % size
        refused(lambda: merkle.check_inclusion(hashes[other], index, size, proof, root))


@given(SIZES, st.data())
def test_every_proof_of_consistency_holds_and_no_altered_one(
    size: int, data: st.DataObject
) -> None:
    hashes = leaves(size)
    first = data.draw(st.integers(0, size))
    proof = merkle.consistency_proof(first, size, perfect(hashes))
    roots = plainly(hashes[:first]), plainly(hashes)
    merkle.check_consistency(first, size, proof, *roots)
    for altered in alterations(proof, data):
        refused(
            lambda altered=altered: merkle.check_consistency(  # type: ignore[misc]
                first, size, altered, *roots
            )
        )
    if 0 < first < size:
        fork = plainly([*hashes[: first - 1], sha256(b"forged").digest()])
        refused(lambda: merkle.check_consistency(first, size, proof, fork, roots[1]))


def alterations(proof: list[bytes], data: st.DataObject) -> list[list[bytes]]:
    """The proof with a bit flipped, a hash more, a hash fewer, and one that is too short."""
    altered = [[*proof, bytes(32)], [bytes(32), *proof]]
    if proof:
        at, bit = data.draw(st.integers(0, len(proof) - 1)), data.draw(st.integers(0, 255))
        flipped = bytearray(proof[at])
        flipped[bit // 8] ^= 1 << bit % 8
        altered += [[*proof[:at], bytes(flipped), *proof[at + 1 :]], proof[:-1], proof[1:]]
        altered.append([*proof[:at], proof[at][:31], *proof[at + 1 :]])
    return altered


def refused(check: Callable[[], None]) -> None:
    with pytest.raises(ProofError):
        check()


def test_proofs_are_asked_for_within_the_tree() -> None:
    hashes = leaves(4)
    for index, size in ((4, 4), (-1, 4), (0, 0)):
        refused(
            lambda index=index, size=size: (
                merkle.inclusion_proof(  # type: ignore[misc]
                    index, size, perfect(hashes)
                )
                and None
            )
        )
    refused(lambda: merkle.consistency_proof(5, 4, perfect(hashes)) and None)
