"""BLAKE3's own tree over the lines of a state: the digest is that of the whole text."""

import random
from operator import attrgetter

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.tensors.state import StateDigest
from weightledger.ledger.tensors.tree import CHUNK_BYTES, ChainingTree

ZERO = bytes(32)

name_of = attrgetter("name")


@settings(max_examples=60, deadline=None)
@given(st.integers(1025, 9000), st.lists(st.lists(st.integers(0, 8), min_size=1), max_size=6))
def test_a_tree_gives_blake3_of_its_text_whatever_chunks_are_replaced(
    size: int, steps: list[list[int]]
) -> None:
    text = bytearray(random.Random(size).randbytes(size))
    tree = ChainingTree(bytes(text))
    assert tree.digest == blake3(text).digest()
    for turn, numbers in enumerate(steps):
        kept, before = tree, bytes(text)
        replaced = {}
        for number in numbers:
            at = number * CHUNK_BYTES
            if at < size:
                fresh = random.Random(turn).randbytes(len(text[at : at + CHUNK_BYTES]))
                text[at : at + CHUNK_BYTES] = replaced[number] = fresh
        tree = tree.replaced(replaced)
        assert tree.digest == blake3(text).digest()
        assert kept.digest == blake3(before).digest()


@pytest.mark.parametrize("chunks", [2, 3, 4, 5, 7, 8, 9, 64, 65, 127, 860])
@pytest.mark.parametrize("more", [-1023, -64, -1, 0])
def test_a_tree_of_any_shape_gives_blake3_of_its_text(chunks: int, more: int) -> None:
    text = random.Random(chunks).randbytes(chunks * CHUNK_BYTES + more)
    if len(text) <= CHUNK_BYTES:
        pytest.skip("one chunk needs no tree")
    tree = ChainingTree(text)
    assert tree.digest == blake3(text).digest()
    for number in {0, 1, chunks // 2, chunks - 2, chunks - 1}:
        at = number * CHUNK_BYTES
        fresh = bytes(len(text[at : at + CHUNK_BYTES]))
        text = text[:at] + fresh + text[at + CHUNK_BYTES :]
        tree = tree.replaced({number: fresh})
        assert tree.digest == blake3(text).digest()


def test_a_text_of_one_chunk_needs_no_tree() -> None:
    with pytest.raises(ValueError, match="more than 1024 bytes"):
        ChainingTree(bytes(CHUNK_BYTES))


def many_specs(count: int = 900) -> list[TensorSpec]:
    return [TensorSpec(f"weights/é{n}", "float32", (n, 3)) for n in range(count)]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(0, 699), min_size=1), st.booleans()), max_size=8))
def test_a_state_kept_as_a_tree_has_the_digest_of_its_lines(
    steps: list[tuple[set[int], bool]],
) -> None:
    specs = many_specs()
    digests = {spec.name: bytes([n % 256]) * 32 for n, spec in enumerate(specs)}
    aliases = {f"weights/tied{n}": specs[n].name for n in range(9)}
    plain = StateDigest(specs, digests, aliases)
    kept = StateDigest(specs, digests, aliases)
    kept.keep_tree()
    assert kept._tree is not None
    assert kept.value == plain.value
    for turn, (numbers, looked) in enumerate(steps):
        before = kept, kept.value if looked else None
        changes = {specs[n].name: bytes([turn, n % 256] * 16) for n in numbers}
        digests |= changes
        kept, plain = kept.with_digests(changes), plain.with_digests(changes)
        if looked:
            assert kept.value == plain.value
            assert before[0].value == before[1]
    assert kept.value == plain.value == StateDigest(specs, digests, aliases).value
    assert dict(kept.digests) == digests


def test_a_change_of_one_line_hashes_no_more_lines_the_more_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed: list[int] = []
    replaced = ChainingTree.replaced

    def counting(tree: ChainingTree, chunks: dict[int, bytes]) -> ChainingTree:
        hashed.append(sum(map(len, chunks.values())))
        return replaced(tree, chunks)

    monkeypatch.setattr(ChainingTree, "replaced", counting)
    for count in (900, 9000):
        state = StateDigest(many_specs(count), dict.fromkeys(map(name_of, many_specs(count)), ZERO))
        state.keep_tree()
        for n in range(0, count, 97):
            _ = state.with_digests({f"weights/é{n}": b"x" * 32}).value
    assert max(hashed) <= 2 * CHUNK_BYTES


def test_few_lines_are_hashed_whole() -> None:
    state = StateDigest(many_specs(9), dict.fromkeys(map(name_of, many_specs(9)), ZERO))
    state.keep_tree()
    assert state._tree is None
    assert len(state.value) == 32
