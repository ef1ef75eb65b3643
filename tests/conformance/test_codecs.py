"""What every codec in the table must do: exact both ways, strict with bad bytes, readable for ever.

`python -m tests.conformance.test_codecs` adds frozen bytes for codecs and lane dtypes that have
none in `tests/fixtures/codecs/frozen.json`; rows that are there are never rewritten.
"""

import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.installed import install
from weightledger.ledger import codecs
from weightledger.ledger.codecs import CODECS, TILE_LANES, Codec, Delta, frames, registry
from weightledger.ledger.codecs.streams import Reader, u32
from weightledger.ledger.errors import CorruptLedger, LedgerError, PluginError
from weightledger.ledger.tensors.digest import chunk_digests, rehash
from weightledger.ledger.tensors.spec import DTYPES, ElementType, Lanes

FROZEN = Path(__file__).parent.parent / "fixtures" / "codecs" / "frozen.json"
SHORT = 1000  # bytes: of longer ones not every truncation is tried
LANE_DTYPES = ["u1", "u2", "u4", "u8"]
EACH_CODEC = pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
EACH_DTYPE = pytest.mark.parametrize("element", DTYPES.values(), ids=list(DTYPES))
EACH_LANE = pytest.mark.parametrize("dtype", LANE_DTYPES)


def odd_patterns(bits: int) -> list[int]:
    """Zeros, denormals, infinities and NaNs of the float formats with this many bits, and ends."""
    top = 1 << (bits - 1)
    exponents = {8: [0x78, 0x7C], 16: [0x7C00, 0x7F80], 32: [0x7F800000], 64: [0x7FF << 52]}[bits]
    plain = [0, 1, top - 1, *(e + d for e in exponents for d in (0, 1, 5))]
    return plain + [top | value for value in plain]


@st.composite
def changes(draw: st.DrawFn, dtype: np.dtype[Any]) -> tuple[Lanes, Lanes]:
    """Two frames of 1 to 400 lanes: some lanes equal, some a small step, some anything."""
    count = draw(st.integers(1, 400))
    bits = dtype.itemsize * 8
    value = st.one_of(st.sampled_from(odd_patterns(bits)), st.integers(0, (1 << bits) - 1))
    before: Lanes = draw(arrays(dtype, count, elements=value))
    step = st.one_of(st.just(0), st.integers(0, 3), value)
    return before, before + draw(arrays(dtype, count, elements=step, fill=st.just(0)))


def fitting(codec: Codec, before: Lanes, after: Lanes) -> Lanes:
    """What the codec can express: `none.1` has no other after than before."""
    return before.copy() if codec.id == "none.1" else after


@EACH_CODEC
@EACH_DTYPE
@settings(max_examples=25)
@given(data=st.data())
def test_every_bit_comes_back_forward_and_backward(
    codec: Codec, element: ElementType, data: st.DataObject
) -> None:
    before, after = data.draw(changes(element.lane))
    after = fitting(codec, before, after)
    delta = codecs.compare(before, after, element.ordered)
    read = codec.decode(codec.encode(delta), len(before), element.lane)
    assert codecs.equal(read, delta)
    lanes = before.copy()
    codecs.apply(lanes, read, element.ordered)
    assert lanes.tolist() == after.tolist()
    codecs.apply(lanes, read, element.ordered, undo=True)
    assert lanes.tolist() == before.tolist()


@EACH_DTYPE
@settings(max_examples=25)
@given(data=st.data())
def test_given_indices_say_the_same_as_a_comparison(
    element: ElementType, data: st.DataObject
) -> None:
    before, after = data.draw(changes(element.lane))
    more = data.draw(st.lists(st.integers(0, len(before) - 1)))
    indices = np.union1d(np.flatnonzero(before != after), np.array(more, np.int64))
    given_indices = codecs.at(indices, before, after, element.ordered)
    compared = codecs.compare(before, after, element.ordered)
    assert codecs.equal(given_indices, compared)
    assert codecs.changed_lanes(given_indices).changed == np.count_nonzero(before != after)


def test_all_bit_patterns_of_half_floats_move_to_each_other() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    for shift in (1, 77, 0x7FFF, 0x8000, 0xFFFF):
        for ordered in (True, False):
            after = np.roll(every, shift)
            lanes = every.copy()
            delta = codecs.compare(lanes, after, ordered)
            codecs.apply(lanes, delta, ordered)
            assert np.array_equal(lanes, after)
            codecs.apply(lanes, delta, ordered, undo=True)
            assert np.array_equal(lanes, every)


def test_the_next_float_is_one_away_on_both_sides_of_zero() -> None:
    for value in (1.0, -1.0, 1e-42, -1e-42, 0.0):
        pair = np.array([value, np.nextafter(np.float32(value), np.float32(9))], np.float32)
        bits: Lanes = pair.view(np.uint32)
        if value != 0.0:
            assert codecs.compare(bits[:1], bits[1:], True).difference.tolist() == [1]


@EACH_LANE
@pytest.mark.parametrize("share", [0.0005, 0.06, 0.13, 0.4, 0.95, 1.0])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 4096, 99_999])
def test_comparing_finds_exactly_the_changed_lanes(share: float, count: int, dtype: str) -> None:
    random = np.random.default_rng(count)
    room = random.integers(0, np.iinfo(dtype).max, 2 * count + 1, dtype, endpoint=True)
    mask = random.random(count) < share
    for before in (room[1 : count + 1], room[1::2], room[count - 1 :: -1]):
        delta = codecs.compare(before, before ^ mask.astype(dtype), False)
        assert np.array_equal(codecs.changed_lanes(delta).indices, np.flatnonzero(mask))


@EACH_CODEC
@EACH_LANE
def test_frozen_bytes_are_read_as_they_always_were(codec: Codec, dtype: str) -> None:
    rows = [row for row in load_frozen() if (row["codec"], row["dtype"]) == (codec.id, dtype)]
    assert rows, f"no frozen bytes for {codec.id} {dtype}: run python -m {__name__}"
    for row in rows:
        read = codec.decode(bytes.fromhex(row["encoded"]), row["count"], np.dtype(dtype))
        assert read.difference.tobytes().hex() == row["difference"]
        assert (read.indices is None) == (row["indices"] is None)
        if read.indices is not None:
            assert read.indices.tolist() == row["indices"]


def test_frozen_frames_are_applied_as_they_always_were() -> None:
    before = np.arange(300, dtype=np.uint32) * np.uint32(0x01234567)
    lanes = before.copy()
    codecs.apply_frames(lanes, bytes.fromhex(FROZEN_FRAMES), True)
    expected = before.copy()
    expected[100:110] ^= np.uint32(0x80000001)
    assert lanes.tolist() == expected.tolist()
    codecs.apply_frames(lanes, bytes.fromhex(FROZEN_FRAMES), True, undo=True)
    assert lanes.tolist() == before.tolist()


def check_sound(delta: Delta, count: int, dtype: np.dtype[Any]) -> None:
    assert delta.count == count
    assert delta.difference.dtype == dtype
    if delta.indices is None:
        assert len(delta.difference) == count
    else:
        assert len(delta.difference) == len(delta.indices) <= count
        assert delta.indices.dtype == np.int32
        assert (np.diff(delta.indices) > 0).all()
        assert not len(delta.indices) or 0 <= delta.indices[0] <= delta.indices[-1] < count


def read_anything(codec: Codec, data: bytes, count: int, dtype: np.dtype[Any]) -> bool:
    """Whether the bytes were taken; if so the delta must be sound."""
    try:
        delta = codec.decode(data, count, dtype)
    except CorruptLedger:
        return False
    check_sound(delta, count, dtype)
    return True


def shorter(size: int) -> Iterable[int]:
    """Every shorter size; of long bytes the first and the last, and some between."""
    if size <= 2 * SHORT:
        return range(size)
    return [*range(SHORT), *range(SHORT, size - SHORT, size // SHORT), *range(size - SHORT, size)]


@EACH_CODEC
@EACH_LANE
def test_truncated_and_prolonged_bytes_are_refused(codec: Codec, dtype: str) -> None:
    for row in load_frozen():
        if (row["codec"], row["dtype"]) == (codec.id, dtype):
            data = bytes.fromhex(row["encoded"])
            for size in shorter(len(data)):
                assert not read_anything(codec, data[:size], row["count"], np.dtype(dtype))
            assert not read_anything(codec, data + b"\0", row["count"], np.dtype(dtype))


@EACH_CODEC
def test_flipped_bits_are_refused_or_read_as_a_sound_delta(codec: Codec) -> None:
    for row in load_frozen():
        if row["codec"] == codec.id and len(row["encoded"]) < 1000:
            data = bytearray.fromhex(row["encoded"])
            for position in range(len(data) * 8):
                data[position // 8] ^= 1 << position % 8
                read_anything(codec, bytes(data), row["count"], np.dtype(row["dtype"]))
                data[position // 8] ^= 1 << position % 8


@EACH_CODEC
@EACH_LANE
@settings(max_examples=25)
@given(data=st.binary(max_size=80), count=st.integers(1, 300))
def test_arbitrary_bytes_are_refused_or_read_as_a_sound_delta(
    codec: Codec, dtype: str, data: bytes, count: int
) -> None:
    read_anything(codec, data, count, np.dtype(dtype))


@EACH_CODEC
def test_positions_do_not_fit_a_shorter_frame(codec: Codec) -> None:
    before = np.zeros(1000, np.uint8)
    delta = codecs.compare(before, fitting(codec, before, np.ones(1000, np.uint8)), False)
    data = codec.encode(delta)
    assert read_anything(codec, data, 999, np.dtype("u1")) == (codec.id == "none.1")
    assert read_anything(codec, data, 1000, np.dtype("u1"))


def test_a_stream_that_lies_about_its_length_allocates_nothing() -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(1 << 28))
    out = io.BytesIO()
    with zstandard.ZstdCompressor(level=1).stream_writer(out, closefd=False) as writer:
        writer.write(bytes(1 << 20))
    unsized = out.getvalue()
    tracemalloc.start()
    try:
        for packed in (bomb, unsized):
            with pytest.raises(CorruptLedger, match="declares another length"):
                Reader(u32(len(packed)) + packed).stream(1 << 20)
        for count in (10, TILE_LANES):
            with pytest.raises(CorruptLedger):
                CODECS["sparse.1"].decode(b"\xff" * 40, count, np.dtype("u8"))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_bytes_after_a_compressed_stream_are_refused() -> None:
    packed = zstandard.ZstdCompressor(level=1).compress(bytes(100))
    assert Reader(u32(len(packed)) + packed).stream(100).tolist() == [0] * 100
    with pytest.raises(CorruptLedger, match="does not decompress"):
        Reader(u32(len(packed) + 1) + packed + b"\0").stream(100)


def test_a_gap_without_an_end_is_refused() -> None:
    head = u32(2) + b"\0" + u32(3) + u32(2) + u32(2)
    sparse = CODECS["sparse.1"]
    read = sparse.decode(head + b"\xff\x05" + b"\0", 500, np.dtype("u1"))
    assert read.indices is not None
    assert read.indices.tolist() == [3, 3 + 255 + 5 + 1]
    for gap in (b"\x05\xff", b"\xff\xff", b"\x05\x05"):
        with pytest.raises(CorruptLedger, match="positions were recorded"):
            sparse.decode(head + gap + b"\0", 500, np.dtype("u1"))


@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 257, 509, 510, 511, 70_000])
def test_gaps_of_every_length_come_back(gap: int) -> None:
    for before in (1, 3, 3000):
        positions = np.cumsum([5, *[2] * before, gap + 1, *[1] * before]).astype(np.int32)
        delta = Delta(80_000, positions, np.ones(len(positions), np.uint8))
        read = CODECS["sparse.1"].decode(
            CODECS["sparse.1"].encode(delta), 80_000, np.dtype(np.uint8)
        )
        assert codecs.equal(read, delta)


@pytest.mark.parametrize("index", [-1, 100, 1 << 20])
def test_an_index_outside_of_the_frame_is_refused_and_nothing_is_written(index: int) -> None:
    lanes = np.zeros(100, np.uint32)
    # A codec of another package may break its word; compiled loops would write there.
    delta = Delta(100, np.array([3, index], np.int32), np.ones(2, np.uint32))
    with pytest.raises(ValueError, match="outside the frame of 100 lanes"):
        codecs.apply(lanes, delta, True)
    assert not lanes.any()
    with pytest.raises(ValueError, match="outside the frame of 100 lanes"):
        codecs.at(np.array([3, index]), lanes, lanes + 1, True)


@pytest.mark.parametrize("indices", [None, np.array([3, 4], np.int32)])
def test_a_delta_with_other_than_one_difference_a_lane_is_refused(
    indices: np.ndarray[Any, Any] | None,
) -> None:
    lanes = np.zeros(100, np.uint32)
    with pytest.raises(ValueError, match="got 100 of uint32"):
        codecs.apply(lanes, Delta(100, indices, np.ones(1, np.uint32)), True)
    assert not lanes.any()


def test_positions_that_do_not_ascend_are_not_written_beyond_their_room() -> None:
    positions = np.array([0, 900_000, 5, 700], np.int32)
    delta = Delta(TILE_LANES, positions, np.ones(4, np.uint32))
    with pytest.raises(ValueError, match="do not ascend"):
        CODECS["sparse.1"].encode(delta)


def test_deltas_are_moved_where_compiled_loops_cannot_be_kept() -> None:
    # As in a container without a home whose files are read-only: numba finds no folder to write.
    script = (
        "import numpy as np; from weightledger.ledger import codecs;"
        "lanes = np.zeros(9, np.uint32);"
        "codecs.apply(lanes, codecs.Delta(9, None, np.full(9, 7, np.uint32)), True);"
        "print(lanes.tolist())"
    )
    nowhere = {"NUMBA_CACHE_LOCATOR_CLASSES": "IPythonCacheLocator"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{[7] * 9}\n"


WARMED = """
import sys
import numpy as np
from tests.installed import install
from weightledger.ledger import codecs
from weightledger.ledger.codecs import compiled as loops, warming

# Parts of other loops: what was compiled by an earlier process has them in it.
parts = {"in_order", "in_bits", "moved", "fill"}

def compiled():
    names = [name for name in dir(loops) if name[0] != "_" and name not in parts]
    loop = {name: getattr(loops, name) for name in names}
    return {name: len(f.signatures) for name, f in loop.items() if hasattr(f, "signatures")}

lanes = [np.dtype(name) for name in sys.argv[1:]]
warming.warm(lanes)
warmed = compiled()
assert min(warmed.values()) > 0, warmed
for lane in lanes:
    before = np.random.default_rng(1).integers(0, 100, 300_000).astype(lane)
    after = before.copy()
    indices = np.arange(0, 9000, 3)
    after[indices] += lane.type(1)
    data = codecs.encode_frame(codecs.at(indices, before, after, True))
    codecs.apply_frames(before, data, True, written=set())
    assert np.array_equal(before, after)
    for share in (indices, slice(None)):
        after[share] ^= lane.type(1)
        codecs.apply_frames(before, codecs.encode_tensor(before, after, False), False)
assert compiled() == warmed, (compiled(), warmed)
"""


def test_after_warming_nothing_is_left_to_compile() -> None:
    subprocess.run([sys.executable, "-c", WARMED, *LANE_DTYPES], check=True)


def test_what_moves_no_lanes_does_not_wait_for_the_compiler() -> None:
    script = (
        "import sys, weightledger.ledger.engines.vllm.staging, weightledger.api.cli;"
        "print('numba' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_none_1_does_not_drop_a_change() -> None:
    delta = codecs.compare(np.zeros(3, np.uint8), np.ones(3, np.uint8), False)
    with pytest.raises(ValueError, match=r"none\.1"):
        CODECS["none.1"].encode(delta)


def tensor_of_three_frames() -> tuple[Lanes, Lanes]:
    """Two and a half frames: one scattered, one unchanged, one dense."""
    random = np.random.default_rng(5)
    before = random.integers(0, 1 << 16, 5 * TILE_LANES // 2, dtype=np.uint16)
    after = before.copy()
    after[random.choice(TILE_LANES, 500, replace=False)] += 3
    after[2 * TILE_LANES :] += 1
    return before, after


def test_frames_carry_a_tensor_forward_and_backward_and_name_the_written_chunks() -> None:
    before, after = tensor_of_three_frames()
    data = codecs.encode_tensor(before, after, True)
    kinds = [part for part in (b"sparse.1", b"none.1", b"dense.1") if part in data]
    assert len(kinds) == 3
    lanes = before.copy()
    chunks = chunk_digests(lanes)
    for undo, goal in ((False, after), (True, before)):
        written: set[int] = set()
        codecs.apply_frames(lanes, data, True, undo=undo, written=written)
        assert np.array_equal(lanes, goal)
        rehash(chunks, lanes, written)
        assert chunks == chunk_digests(goal)
    assert codecs.encode_tensor(before[:0], after[:0], True) == b""
    nothing: set[int] = set()
    codecs.apply_frames(before[:0], b"", True, written=nothing)
    assert nothing == set()


def test_only_the_chunks_of_changed_lanes_are_named() -> None:
    before = np.zeros(300_000, np.uint32)
    after = before.copy()
    after[[65_535, 65_536, 299_999]] = 1
    delta = codecs.compare(before, after, True)
    assert codecs.written_chunks(0, delta).tolist() == [0, 1, 4]
    # A frame may begin inside a chunk.
    assert codecs.written_chunks(65_535, delta).tolist() == [1, 5]
    assert codecs.written_chunks(1, delta).tolist() == [1, 4]


def test_the_codec_chosen_is_within_a_few_per_cent_of_the_smallest() -> None:
    random = np.random.default_rng(6)
    for count in (500, 200_000):
        for step in (3, 1 << 9, 1 << 30):
            for share in (0.0, 0.01, 0.2, 0.35, 0.6, 0.85, 1.0):
                before = random.integers(0, 1 << 32, count, dtype=np.uint32)
                moved = random.integers(1, step, count, dtype=np.uint32)
                after = before + moved * (random.random(count) < share)
                delta = codecs.compare(before, after, False)
                best = min(len(frame) for frame in every_frame(delta))
                assert len(codecs.encode_frame(delta)) <= 1.05 * best + 16


def every_frame(delta: Delta) -> Iterator[bytes]:
    for codec in CODECS:
        if codec != "none.1" or not codecs.changed_lanes(delta).changed:
            yield codecs.encode_frame(delta, codec)


def test_one_per_cent_of_fp32_weights_costs_no_more_than_four_and_a_half_bytes_each() -> None:
    random = np.random.default_rng(7)
    weights = random.uniform(-0.1, 0.1, 500_000).astype(np.float32)
    picked = random.random(len(weights)) < 0.01
    step = random.standard_normal(len(weights), np.float32)
    for after, limit in (
        (np.where(picked, weights + np.float32(1e-3) * step, weights), 3.9),
        (np.where(picked, weights + np.float32(1e-1) * step, weights), 4.5),
    ):
        data = codecs.encode_tensor(weights.view(np.uint32), after.view(np.uint32), True)
        assert len(data) <= limit * np.count_nonzero(picked)


def test_bf16_rounding_steps_cost_little_more_than_a_byte_each() -> None:
    random = np.random.default_rng(8)
    before = (random.standard_normal(500_000, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    after = before + (random.random(len(before)) < 0.08) * random.choice(
        np.array([1, 65535], np.uint16), len(before)
    )
    data = codecs.encode_tensor(before, after, True)
    assert len(data) <= 1.1 * np.count_nonzero(before != after)


class Forgetful:
    """A codec that loses the last changed lane."""

    id = "forgetful.1"

    def encode(self, delta: Delta) -> bytes:
        return CODECS["sparse.1"].encode(delta)

    def decode(self, data: bytes | memoryview, count: int, dtype: np.dtype[Any]) -> Delta:
        whole = CODECS["sparse.1"].decode(data, count, dtype)
        assert whole.indices is not None
        return Delta(count, whole.indices[:-1], whole.difference[:-1])


def test_a_codec_that_does_not_reproduce_the_change_is_caught_when_encoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delta = codecs.compare(np.zeros(9, np.uint8), np.arange(9, dtype=np.uint8) % 3, False)
    monkeypatch.setitem(CODECS, "forgetful.1", Forgetful())
    with pytest.raises(CorruptLedger, match="did not reproduce"):
        codecs.encode_frame(delta, "forgetful.1")
    monkeypatch.setattr(frames, "_smallest", lambda delta: (Forgetful(), None))
    with pytest.raises(CorruptLedger, match="did not reproduce"):
        codecs.encode_frame(delta)


def test_damaged_frames_leave_the_tensor_as_it_was() -> None:
    before, after = tensor_of_three_frames()
    data = codecs.encode_tensor(before, after, True)
    last = data.rindex(b"dense.1") + len("dense.1") + 8
    short = codecs.encode_tensor(before[:-1], after[:-1], True)
    for damaged, why in (
        (data[:last] + b"\x07" + data[last + 1 :], "planes do not fit"),
        (data[:-1], "early"),
        (short, "covers"),
        (data + data[: data.index(b"none.1") - 1], "covers"),
        (data.replace(b"dense.1", b"dense.9"), r"no codec 'dense\.9' is installed"),
        (data.replace(b"dense.1", b"dense.\xff"), "not ASCII"),
        (b"", "covers 0 lanes"),
        (b"\x06none.1" + u32(0) + u32(0), "1 to 1048576 lanes"),
        (b"\x06none.1" + u32(TILE_LANES + 1) + u32(0), "1 to 1048576 lanes"),
    ):
        for start, undo in ((before, False), (after, True)):
            lanes = start.copy()
            with pytest.raises(CorruptLedger, match=why):
                codecs.apply_frames(lanes, damaged, True, undo=undo)
            assert np.array_equal(lanes, start)


@given(data=st.binary(max_size=60))
def test_arbitrary_frames_raise_only_ledger_errors_and_write_nothing(data: bytes) -> None:
    guard = np.full(64, 7, np.uint16)
    for prefix in (b"", b"\x08sparse.1" + u32(32), b"\x07dense.1" + u32(32) + u32(len(data))):
        try:
            codecs.apply_frames(guard[16:48], prefix + data, True)
        except LedgerError:
            assert (guard == 7).all()
        assert (guard[:16] == 7).all()
        assert (guard[48:] == 7).all()
        guard[:] = 7


def test_a_frame_has_lanes_and_no_more_than_a_tile() -> None:
    for count in (0, TILE_LANES + 1):
        lanes = np.zeros(count, np.uint8)
        with pytest.raises(ValueError, match="1 to 1048576 lanes"):
            codecs.encode_frame(codecs.compare(lanes, lanes, False))
    assert list(codecs.tiles(2 * TILE_LANES + 1)) == [
        (0, TILE_LANES),
        (TILE_LANES, 2 * TILE_LANES),
        (2 * TILE_LANES, 2 * TILE_LANES + 1),
    ]


def test_a_delta_does_not_fit_other_lanes() -> None:
    delta = codecs.compare(np.zeros(9, np.uint8), np.ones(9, np.uint8), False)
    for lanes in (np.zeros(8, np.uint8), np.zeros(9, np.uint16)):
        with pytest.raises(ValueError, match="9 lanes of uint8"):
            codecs.apply(lanes, delta, False)
    with pytest.raises(ValueError, match="before has"):
        codecs.compare(np.zeros(9, np.uint8), np.zeros(1, np.uint8), False)


def test_two_codecs_cannot_share_an_id() -> None:
    with pytest.raises(ValueError, match=r"two codecs have the id 'sparse\.1'"):
        registry.table([*CODECS.values(), CODECS["sparse.1"]])
    nameless = Forgetful()
    nameless.id = ""
    with pytest.raises(ValueError, match="printable ASCII"):
        registry.table([nameless])


def test_installed_packages_bring_their_codecs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is imported when it is asked for; a broken one is in nobody's way."""
    entries = {"ours.1": "first:codec", "other.1": "first:codec", "broken.1": "broken:codec"}
    install(tmp_path, "first", registry.ENTRY_POINTS, entries, CODEC)
    monkeypatch.syspath_prepend(tmp_path)
    assert codecs.get_codec("sparse.1") is CODECS["sparse.1"]
    with pytest.raises(CorruptLedger, match=r"'x\.1' .*dense\.1, broken\.1, other\.1, ours\.1"):
        codecs.get_codec("x.1")
    assert "first" not in sys.modules
    assert codecs.get_codec("ours.1").encode(Delta(1, None, np.ones(1, np.uint8))) == b"!"
    with pytest.raises(PluginError, match=r"'broken\.1' .* package first \(broken:codec\)"):
        codecs.get_codec("broken.1")
    with pytest.raises(PluginError, match=r"codec 'other\.1' brings 'ours\.1'"):
        codecs.get_codec("other.1")


CODEC = """
class Codec:
    id = "ours.1"
    def encode(self, delta):
        return b"!"
codec = Codec()
"""


def load_frozen() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(FROZEN.read_text())
    return rows


def samples(codec: Codec, dtype: str) -> Iterator[Delta]:
    """Deltas that reach every form of the built-in codecs; anything a codec refuses is skipped."""
    lane = np.dtype(dtype)
    top = (1 << lane.itemsize * 8) - 1
    odd = np.array([1, top, 2, top - 1, top // 2, top // 2 + 1, 0x55, 0xAA], lane)
    widening = np.arange(3, 40, dtype=np.int32) ** 3 // 12
    yield Delta(5, np.zeros(0, np.int32), np.zeros(0, lane))
    yield Delta(1, None, odd[:1])
    yield Delta(8, None, odd)
    yield Delta(100, None, np.resize(np.array([0, 1, 0, top, 0, 3], lane), 100))
    yield Delta(9, np.arange(1, 9, dtype=np.int32), odd)
    yield Delta(TILE_LANES, np.array([0, 70_000, TILE_LANES - 1], np.int32), odd[:3])
    yield Delta(5000, widening, np.resize(odd, len(widening)))
    yield Delta(4000, np.arange(0, 4000, 100, dtype=np.int32), np.resize(odd[:2], 40))


def freeze() -> None:
    rows = load_frozen() if FROZEN.exists() else []
    known = {(row["codec"], row["dtype"]) for row in rows}
    for codec in CODECS.values():
        for dtype in LANE_DTYPES:
            if (codec.id, dtype) in known:
                continue
            for delta in samples(codec, dtype):
                try:
                    data = codec.encode(delta)
                except ValueError:
                    continue
                if codec.id == "dense.1" and delta.count > 200:
                    continue
                read = codec.decode(data, delta.count, np.dtype(dtype))
                assert codecs.equal(read, delta)
                rows.append(
                    {
                        "codec": codec.id,
                        "dtype": dtype,
                        "count": delta.count,
                        "indices": None if read.indices is None else read.indices.tolist(),
                        "difference": read.difference.tobytes().hex(),
                        "encoded": data.hex(),
                    }
                )
    FROZEN.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


FROZEN_FRAMES = (
    "066e6f6e652e316400000000000000087370617273652e3164000000430000000a00000001000000"
    "0000040a0000000c74d43c9c0464cc2c940a0000008f79634e38230df7e2cc0a000000e356c93caf"
    "2295077aed0a00000038342f2b26221d19140f0764656e73652e31640000000100000000"
)

if __name__ == "__main__":
    freeze()
