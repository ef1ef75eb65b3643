"""A tile looked at in one compiled pass is what it is step by step."""

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from weightledger.ledger.codecs import compare, delta, encode_frame, loops, one_pass, packing
from weightledger.ledger.codecs.compiled_packing import _COMPRESS, _COMPRESS_RUNS
from weightledger.ledger.codecs.frames import WHOLE_SAMPLE
from weightledger.ledger.codecs.one_pass import look
from weightledger.ledger.tensors.digest import CHUNK_BYTES
from weightledger.ledger.tensors.spec import Lanes

COUNT = 300_001  # several chunks of any dtype, the last one not whole
LANES = pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
SHARES = [0, 1e-5, 1e-3, 0.02, 0.2, 0.4, 0.95, 1]
"""Of lanes that change: of each way that a frame is written by."""


def pair(
    dtype: type[np.unsignedinteger], seed: int, count: int, share: float, most: int
) -> tuple[Lanes, Lanes]:
    """Lanes before and after; they move by up to `most`."""
    random = np.random.default_rng(seed)
    before = random.integers(0, 256, count * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    some = random.random(count) < share
    return before, before + (some * random.integers(1, most, count)).astype(dtype)


def chunk(lanes: Lanes, number: int) -> memoryview:
    return lanes.view(np.uint8).data[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]


@LANES
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1 << 32),
    count=st.sampled_from([1, 2, 63, 4096, 4097, WHOLE_SAMPLE, COUNT]),
    share=st.sampled_from(SHARES),
    most=st.sampled_from([2, 100, 1 << 40]),
    ordered=st.booleans(),
    copied=st.booleans(),
)
def test_one_pass_writes_and_sees_what_the_steps_do(
    dtype: type[np.unsignedinteger],
    seed: int,
    count: int,
    share: float,
    most: int,
    ordered: bool,
    copied: bool,
) -> None:
    before, after = pair(dtype, seed, count, share, most)
    held, out = before.copy(), np.zeros_like(after) if copied else after.copy()
    looked = look(held, out, ordered, after if copied else None)
    assert looked is not None, "this xxhash or zstandard shows no functions: recording is slower"
    assert np.array_equal(held, before)
    assert np.array_equal(out, after)
    one = compare(before, after, ordered)
    frame = looked.frame if looked.delta is None else encode_frame(looked.delta)
    assert frame == encode_frame(one)
    assert looked.delta is None or delta.equal(looked.delta, one)
    assert looked.changed == np.count_nonzero(before != after)
    assert (looked.indices is None) == (one.indices is None)
    assert looked.indices is None or np.array_equal(looked.indices, one.indices)
    chunks = range(-(-before.nbytes // CHUNK_BYTES))
    differing = [n for n in chunks if chunk(before, n) != chunk(after, n)]
    assert looked.touched.tolist() == (differing if looked.indices is not None else [*chunks])
    for n in looked.touched.tolist():
        assert looked.before[n].tobytes() == xxh3_128_digest(chunk(before, n))
        assert looked.after[n].tobytes() == xxh3_128_digest(chunk(after, n))


@LANES
@pytest.mark.parametrize("share", [0.31, 0.5, 0.7, 0.89])
@pytest.mark.parametrize("most", [2, 100])
def test_of_some_lanes_what_takes_less_is_written_in_the_same_pass(
    dtype: type[np.unsignedinteger], share: float, most: int
) -> None:
    for count in (100, 640, 5000, WHOLE_SAMPLE):
        before, after = pair(dtype, count, count, share, most)
        looked = look(before, after, True)
        assert looked is not None
        assert looked.delta is None
        assert looked.frame == encode_frame(compare(before, after, True))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_the_square_is_that_of_the_loops(dtype: type[np.generic], share: float) -> None:
    random = np.random.default_rng(1)
    old = random.standard_normal(COUNT, np.float32)
    new = np.where(random.random(COUNT) < share, old * np.float32(1.5), old)
    bits = [one.view(np.uint32) for one in (old, new)]
    if dtype is np.uint16:
        bits = [(one >> 16).astype(np.uint16) for one in bits]
    looked = look(*bits, True, encoding=False, squared=True)
    assert looked is not None
    if looked.indices is None:
        assert looked.square == loops.square_distance_of_all(*bits)
    else:
        assert looked.square == loops.square_distance(*bits, looked.indices)
    assert (looked.frame, looked.delta) == (b"", None)


def test_a_chunk_that_does_not_change_where_all_others_do_is_checked_too() -> None:
    before, after = pair(np.uint32, 2, 12 * CHUNK_BYTES // 4, 1, 9)
    after[: CHUNK_BYTES // 4] = before[: CHUNK_BYTES // 4]
    looked = look(before, after, True)
    assert looked is not None
    assert looked.indices is None
    assert looked.touched.tolist() == [*range(12)]
    assert looked.before[0].tobytes() == xxh3_128_digest(chunk(before, 0))
    assert looked.after[0].tobytes() == xxh3_128_digest(chunk(before, 0))


@pytest.mark.parametrize("way", [_COMPRESS, _COMPRESS_RUNS])
@pytest.mark.parametrize("share", [0.02, 1])
def test_what_was_packed_wrongly_is_left_to_the_codecs(
    monkeypatch: pytest.MonkeyPatch, share: float, way: int
) -> None:
    numbers = {_COMPRESS: 5, _COMPRESS_RUNS: 7}[way]
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * numbers)

    @kind
    def damaging(context: int, out: int, room: int, *others: int) -> int:
        values, size = others[-2:]
        data: bytes = packing.pack(np.frombuffer(ctypes.string_at(values, size), np.uint8).copy())
        damaged = bytearray(data)
        damaged[-1] ^= 1
        ctypes.memmove(out, bytes(damaged), len(damaged))
        return len(damaged)

    class Damaging(packing.Packer):
        def __init__(self) -> None:
            super().__init__()
            self.zstd[way] = ctypes.cast(damaging, ctypes.c_void_p).value

    monkeypatch.setattr(packing, "Packer", Damaging)
    monkeypatch.setattr(one_pass, "_idle", type(one_pass._idle)())
    before, after = pair(np.uint32, 3, COUNT, share, 9)
    after[:: COUNT // 100] = before[:: COUNT // 100] + np.uint32(1 << 20)  # nearly empty bytes, too
    packing.pack(np.zeros(1000, np.uint8))  # this thread has its own already
    looked = look(before, after, True)
    assert looked is not None
    assert looked.frame == b""
    assert looked.delta is not None
    assert delta.equal(looked.delta, compare(before, after, True))


@pytest.mark.parametrize("missing", ["checksums", "zstd"])
def test_without_the_libraries_functions_nothing_is_done(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    if missing == "zstd":
        monkeypatch.setattr(packing, "_zstd", None)
    else:
        monkeypatch.setattr(one_pass, "_checksum", lambda: None)
    before, after = pair(np.uint32, 4, 1000, 0.1, 9)
    out = np.zeros_like(after)
    assert look(before, out, True, after) is None
    assert not out.any()


@pytest.mark.parametrize(
    "other", [np.zeros(99, np.uint32), np.zeros(101, np.uint32), np.zeros(100, np.uint16)], ids=str
)
def test_lanes_that_do_not_go_together_are_refused(other: NDArray[np.unsignedinteger]) -> None:
    one = np.zeros(100, np.uint32)
    for lanes in ((other, one, None), (one, other, None), (one, one.copy(), other)):
        with pytest.raises(ValueError, match="one length and dtype"):
            look(*lanes[:2], True, lanes[2])
