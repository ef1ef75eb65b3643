"""Digests: the documented byte formats, recomputed here with plain BLAKE3, and cheap refreshing."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from weightledger.ledger.errors import NotFound, UnsupportedModel
from weightledger.ledger.tensors.digest import (
    CHUNK_BYTES,
    checksum,
    chunk_digests,
    content_digest,
    hash_many,
    no_checksums,
    rehash,
    root,
    touched_chunks,
    unchanged,
)
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.tensors.state import StateDigest

SIZES = [0, 1, CHUNK_BYTES - 4, CHUNK_BYTES, CHUNK_BYTES + 4, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 8]


def by_hand(data: bytes) -> bytes:
    parts = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    return blake3(b"".join(blake3(part).digest() for part in parts)).digest()


def noise(size: int) -> bytes:
    return np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_a_tensor_digest_is_blake3_over_the_digests_of_256_kib_chunks(size: int) -> None:
    data = noise(size)
    for form in (data, bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        assert content_digest(form) == by_hand(data)
    for dtype in ("u1", "u4"):
        if size % np.dtype(dtype).itemsize == 0:
            chunks = chunk_digests(np.frombuffer(data, dtype))
            assert len(chunks) == 32 * -(-size // CHUNK_BYTES)
            assert root(chunks) == by_hand(data)


def test_frozen_tensor_digests() -> None:
    assert CHUNK_BYTES == 262144
    assert content_digest(b"").hex() == (
        "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    )
    assert content_digest(bytes(range(256)) * 2048).hex() == FROZEN_TENSOR


def test_hashing_with_threads_gives_the_same_digests() -> None:
    tensors = [np.frombuffer(noise(size), np.uint8) for size in [*SIZES, 40 * CHUNK_BYTES + 1]]
    with ThreadPoolExecutor(2) as pool:
        assert hash_many(tensors, pool) == [chunk_digests(lanes) for lanes in tensors]


@given(
    missing=st.sampled_from([0, 1, CHUNK_BYTES // 8 - 1]),
    picks=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([0, 1, CHUNK_BYTES // 8 - 1])), max_size=6
    ),
)
def test_refreshing_gives_what_hashing_anew_gives(
    missing: int, picks: list[tuple[int, int]]
) -> None:
    lanes = np.zeros(4 * CHUNK_BYTES // 8 - missing, np.uint64)
    chunks = chunk_digests(lanes)
    indices = np.unique(np.array([c * CHUNK_BYTES // 8 + at for c, at in picks], np.int32))
    indices = indices[indices < len(lanes)]
    lanes[indices] = 1
    rehash(chunks, lanes, touched_chunks(indices, lanes.size, lanes.itemsize).tolist())
    assert chunks == chunk_digests(lanes)
    expected = sorted({int(index) * 8 // CHUNK_BYTES for index in indices})
    assert touched_chunks(indices, len(lanes), 8).tolist() == expected


def test_refreshing_hashes_only_the_touched_chunks() -> None:
    lanes = np.zeros(3 * CHUNK_BYTES, np.uint8)
    chunks = bytearray(96)
    written = np.array([CHUNK_BYTES, 2 * CHUNK_BYTES - 1], np.int64)
    rehash(chunks, lanes, touched_chunks(written, lanes.size, lanes.itemsize).tolist())
    assert chunks == bytes(32) + blake3(bytes(CHUNK_BYTES)).digest() + bytes(32)


SPECS = [
    TensorSpec("weights/z", "int64", ()),
    TensorSpec("weights/fc.weight", "float32", (10, 64)),
    TensorSpec("weights/é", "bfloat16", (0,)),
    TensorSpec("weights/\U0001f600", "bool", (2, 3, 4)),
    TensorSpec("weights/\uffee", "bool", (1,)),
]
DIGESTS = {spec.name: bytes([number]) * 32 for number, spec in enumerate(SPECS)}
ALIASES = {"weights/head.weight": "weights/fc.weight", "weights/a": "weights/z"}
LINES = [
    "weights/a\t=\tweights/z\n",
    f"weights/fc.weight\tfloat32\t10,64\t{'01' * 32}\n",
    "weights/head.weight\t=\tweights/fc.weight\n",
    f"weights/z\tint64\t\t{'00' * 32}\n",
    f"weights/é\tbfloat16\t0\t{'02' * 32}\n",
    f"weights/\uffee\tbool\t1\t{'04' * 32}\n",
    f"weights/\U0001f600\tbool\t2,3,4\t{'03' * 32}\n",
]


def test_a_state_digest_is_blake3_over_its_sorted_lines() -> None:
    state = StateDigest(SPECS, DIGESTS, ALIASES)
    assert state.value == blake3("".join(LINES).encode()).digest()
    assert state.value.hex() == FROZEN_STATE
    assert [line.encode() for line in LINES] == sorted(line.encode() for line in LINES)
    assert StateDigest(SPECS[::-1], DIGESTS, ALIASES).value == state.value
    assert dict(state.digests) == DIGESTS


def test_an_empty_state_has_the_digest_of_nothing() -> None:
    assert StateDigest([], {}).value == blake3(b"").digest()


def test_changed_digests_give_the_state_that_has_them_and_leave_the_old_one() -> None:
    state = StateDigest(SPECS, DIGESTS, ALIASES)
    value = state.value
    change = {"weights/z": b"z" * 32, "weights/é": b"e" * 32}
    changed = state.with_digests(change)
    assert changed.value == StateDigest(SPECS, DIGESTS | change, ALIASES).value != value
    assert dict(changed.digests) == DIGESTS | change
    assert state.value == value
    assert dict(state.digests) == DIGESTS
    assert changed.with_digests(DIGESTS).value == value


def test_each_part_of_a_line_counts() -> None:
    def value(spec: TensorSpec, digest: bytes, aliases: dict[str, str]) -> bytes:
        return StateDigest([spec], {spec.name: digest}, aliases).value

    states = {
        value(TensorSpec("a", "int8", (2, 3)), bytes(32), {}),
        value(TensorSpec("b", "int8", (2, 3)), bytes(32), {}),
        value(TensorSpec("a", "uint8", (2, 3)), bytes(32), {}),
        value(TensorSpec("a", "int8", (3, 2)), bytes(32), {}),
        value(TensorSpec("a", "int8", (2, 3)), bytes(31) + b"\1", {}),
        value(TensorSpec("a", "int8", (2, 3)), bytes(32), {"c": "a"}),
    }
    assert len(states) == 6


def test_a_state_that_does_not_hold_together_is_refused() -> None:
    one = TensorSpec("a", "int8", ())
    with pytest.raises(NotFound, match="no digest was given for tensor 'a'"):
        StateDigest([one], {})
    with pytest.raises(UnsupportedModel, match="'a' appears twice"):
        StateDigest([one, one], {"a": bytes(32)})
    with pytest.raises(UnsupportedModel, match="'a' appears twice"):
        StateDigest([one], {"a": bytes(32)}, {"a": "a"})
    with pytest.raises(NotFound, match="'b' names no tensor"):
        StateDigest([one], {"a": bytes(32)}, {"b": "c"})
    with pytest.raises(UnsupportedModel, match="control character"):
        StateDigest([one], {"a": bytes(32)}, {"b\n": "a"})
    state = StateDigest([one], {"a": bytes(32)})
    with pytest.raises(NotFound, match="no tensor 'b'"):
        state.with_digests({"b": bytes(32)})
    with pytest.raises(ValueError, match="31 bytes long"):
        state.with_digests({"a": bytes(31)})


# Recorded once; a change here means that old ledgers no longer verify.
FROZEN_TENSOR = "ac2e4e2af5bf572242cd24dc7146e99653cc0fd918518ffb1e099f2629f84121"
FROZEN_STATE = "96fd114c91aa99ce7fbe0447915bce86f297066823c593f79f52dc737ddbccec"


@pytest.mark.parametrize("known", [False, True], ids=["by digest", "by checksum"])
@pytest.mark.parametrize("size", [1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5])
def test_chunks_that_were_written_are_noticed_whether_or_not_their_checksum_is_known(
    size: int, known: bool
) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    chunks = chunk_digests(data)
    checksums = no_checksums(chunks)
    numbers = range(len(chunks) // 32)
    if known:
        checksum(checksums, data, numbers)
    assert unchanged(chunks, checksums, data, numbers)
    for at in {0, size // 2, size - 1}:
        data[at] ^= 1
        touched = at // CHUNK_BYTES
        assert not unchanged(chunks, checksums, data, [touched])
        assert unchanged(chunks, checksums, data, [n for n in numbers if n != touched])
        data[at] ^= 1
