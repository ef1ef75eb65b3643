"""Streams are packed small, and whichever way it was, any zstd reads them."""

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from weightledger.ledger import codecs
from weightledger.ledger.codecs import packing
from weightledger.ledger.codecs.compiled_packing import SAMPLE
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


def repeated(size: int) -> np.ndarray:
    """What changing the same columns of every row gives."""
    return np.resize(RANDOM.integers(0, 256, 200, np.uint8), size)


KINDS = pytest.mark.parametrize(
    "kind", [zeros, noise, two_values, few_values, nearly_empty, repeated]
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
