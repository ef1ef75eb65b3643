"""Streams are packed small, and whichever way it was, any zstd reads them."""

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from weightledger.ledger import codecs
from weightledger.ledger.codecs import packing
from weightledger.ledger.codecs.compiled_packing import SAMPLE, _to_sequences, sequences_bytes
from weightledger.ledger.codecs.packing import pack
from weightledger.ledger.codecs.streams import SHORTEST_PACKED, Reader, stream

SIZES = [SHORTEST_PACKED, 5000, 2 * SAMPLE, 2 * SAMPLE + 1, 100_000, 1 << 20]
RANDOM = np.random.default_rng(3)


def zeros(size: int) -> np.ndarray:
    return np.zeros(size, np.uint8)


def noise(size: int) -> np.ndarray:
    return RANDOM.integers(0, 256, size, np.uint8)


def two_values(size: int) -> np.ndarray:
    return RANDOM.integers(1, 3, size, np.uint8)


def few_values(size: int) -> np.ndarray:
    return np.minimum(RANDOM.geometric(0.06, size), 255).astype(np.uint8)


def nearly_empty(size: int) -> np.ndarray:
    return (RANDOM.random(size) < 0.002).astype(np.uint8)


def small_numbers(size: int) -> np.ndarray:
    """The highest bytes of differences of which few are large."""
    return ((RANDOM.random(size) < 0.04) * RANDOM.geometric(0.6, size)).astype(np.uint8)


def long_runs(size: int) -> np.ndarray:
    """Of zeros, over more than one of zstd's blocks."""
    values = np.zeros(size, np.uint8)
    values[[size // 7, size - 1]] = 3
    return values


def seemingly_empty(size: int) -> np.ndarray:
    """As many runs of zeros as there can be, where hardly any byte that is looked at is there."""
    values = np.resize(np.array([1, 0, 0, 0, 0], np.uint8), size)
    values[::16] = 0
    return values


def repeated(size: int) -> np.ndarray:
    """What changing the same columns of every row gives."""
    return np.resize(RANDOM.integers(0, 256, 200, np.uint8), size)


KINDS = pytest.mark.parametrize(
    "kind",
    [
        zeros,
        noise,
        two_values,
        few_values,
        nearly_empty,
        small_numbers,
        long_runs,
        seemingly_empty,
        repeated,
    ],
)


def without_frequencies(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(packing, "_zstd", None)


@KINDS
@pytest.mark.parametrize("size", SIZES)
def test_streams_come_back_and_are_no_larger_than_by_matches_alone(
    kind, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = kind(size)
    packed = pack(values)
    assert zstandard.ZstdDecompressor().decompress(packed) == values.tobytes()
    assert np.array_equal(Reader(stream(values)).stream(size), values)
    without_frequencies(monkeypatch)
    assert len(packed) <= 1.03 * len(pack(values))
    assert np.array_equal(Reader(stream(values)).stream(size), values)


def test_bytes_of_one_bit_each_take_what_their_frequencies_ask_for() -> None:
    assert packing._zstd is not None, "this zstandard has no cffi: streams are half as large again"
    for size in (20_000, 200_000):
        assert len(pack(two_values(size))) < 1.03 * size / 8


@pytest.mark.parametrize("size", SIZES[1:])
def test_small_numbers_take_less_than_by_the_matches_that_zstd_finds(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = small_numbers(size)
    packed = pack(values)
    without_frequencies(monkeypatch)
    assert len(packed) < 0.8 * len(pack(values))


RUNS = st.lists(
    st.tuples(
        st.binary(min_size=0, max_size=6),
        st.one_of(st.integers(0, 6), st.integers(0, 3000), st.sampled_from([65_535, 131_072])),
    ),
    min_size=1,
    max_size=40,
)


@settings(deadline=None)
@given(runs=RUNS)
def test_any_runs_of_zeros_come_back(runs: list[tuple[bytes, int]]) -> None:
    data = b"".join(literals + bytes(zeros) for literals, zeros in runs) or b"1"
    values = np.frombuffer(data, np.uint8)
    assert zstandard.ZstdDecompressor().decompress(pack(values)) == data
    assert np.array_equal(Reader(stream(values)).stream(len(values)), values)


def test_no_more_room_is_taken_than_there_is() -> None:
    """The sequences of a stream that has as many runs as it can, as they are written."""
    for size in (*range(1, 41), 4096):
        for zeros_first in (False, True):
            pattern = [0, 0, 0, 0, 7] if zeros_first else [7, 0, 0, 0, 0]
            values = np.resize(np.array(pattern, np.uint8), size)
            room = np.zeros(sequences_bytes(size) // 4, np.uint32)
            count = _to_sequences(values, room)
            assert 4 * count <= len(room)
            back = bytearray()
            for _, literals, length, _ in room[: 4 * count].reshape(-1, 4).tolist():
                back += values[len(back) : len(back) + literals].tobytes()
                back += back[-1:] * length
            assert back + values[len(back) :].tobytes() == values.tobytes()


@given(data=st.binary(min_size=1, max_size=3000), times=st.integers(1, 20))
def test_any_bytes_come_back(data: bytes, times: int) -> None:
    values = np.frombuffer(data * times, np.uint8)
    assert zstandard.ZstdDecompressor().decompress(pack(values)) == data * times


@pytest.mark.parametrize("cffi", [True, False], ids=["with cffi", "without"])
def test_frames_lead_to_the_same_bits_whether_or_not_there_is_cffi(
    cffi: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cffi:
        without_frequencies(monkeypatch)
    before = RANDOM.integers(0, 1 << 16, 300_000, np.uint16)
    after = before.copy()
    after[RANDOM.random(len(after)) < 0.06] += np.uint16(1)
    lanes = before.copy()
    codecs.apply_frames(lanes, codecs.encode_tensor(before, after, True), True)
    assert np.array_equal(lanes, after)
