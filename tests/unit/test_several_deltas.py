"""Several deltas applied tile by tile come to what they come to one after another."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from weightledger.ledger import codecs
from weightledger.ledger.codecs import (
    Delta,
    apply_frames,
    delta,
    encode_frame,
    encode_tensor,
    several,
)
from weightledger.ledger.codecs.several import take_through
from weightledger.ledger.codecs.streams import u32
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events.changes import TensorChange
from weightledger.ledger.history import steps
from weightledger.ledger.history.steps import ReplayStep, apply_step, apply_steps
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.spec import DTYPES, ElementType, Lanes, TensorSpec

EACH_DTYPE = pytest.mark.parametrize("element", DTYPES.values(), ids=list(DTYPES))
COUNT = 300_000  # more than one part of what is in the cache at a time, and not a whole number
SPEC = TensorSpec("w", "float32", (9_000,))


def some_deltas(seed: int, element: ElementType, count: int) -> list[tuple[Delta, bool]]:
    """Up to seven of them: without changes, few, many, or with an entry for every lane."""
    random = np.random.default_rng(seed)
    deltas = []
    for _ in range(random.integers(1, 8)):
        share = random.choice([0, 1e-4, 1e-2, 0.3, 1])
        indices = None
        if share < 1:
            indices = np.flatnonzero(random.random(count) < share).astype(np.int32)
        changed = count if indices is None else len(indices)
        difference = random.integers(0, 256, changed * element.lane.itemsize, np.uint8)
        deltas.append(
            (Delta(count, indices, difference.view(element.lane)), bool(random.integers(2)))
        )
    return deltas


@EACH_DTYPE
@settings(max_examples=4, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 32), count=st.sampled_from([1, 7, 4096, COUNT]))
def test_several_at_once_are_one_after_another(element: ElementType, seed: int, count: int) -> None:
    deltas = some_deltas(seed, element, count)
    random = np.random.default_rng(seed)
    start = random.integers(0, 256, count * element.lane.itemsize, np.uint8).view(element.lane)
    together, singly = start.copy(), start.copy()
    delta.apply_several(together, deltas, element.ordered)
    for one, undo in deltas:
        delta.apply(singly, one, element.ordered, undo=undo)
    assert np.array_equal(together, singly)
    back = [(one, not undo) for one, undo in reversed(deltas)]
    delta.apply_several(together, back, element.ordered)
    assert np.array_equal(together, start)


@pytest.mark.parametrize("indices", [[3, -1], [3, 100], [2**31 - 1, 3], [99, 0, 100]])
def test_an_index_outside_of_the_lanes_is_refused(indices: list[int]) -> None:
    # A codec of another package may break its word; compiled loops would write there.
    guard = np.full(300, 7, np.uint32)
    good = Delta(100, np.array([5], np.int32), np.ones(1, np.uint32))
    bad = Delta(100, np.array(indices, np.int32), np.ones(len(indices), np.uint32))
    with pytest.raises(ValueError, match="outside the frame of 100 lanes"):
        delta.apply_several(guard[100:200], [(good, False), (bad, True), (good, True)], True)
    assert (guard == 7).all()
    for short in (
        Delta(100, None, np.ones(99, np.uint32)),
        Delta(99, None, np.ones(99, np.uint32)),
    ):
        with pytest.raises(ValueError, match="got 100 of uint32"):
            delta.apply_several(guard[100:200], [(good, False), (short, False)], True)
    assert (guard == 7).all()


def test_indices_that_do_not_ascend_are_all_moved_and_none_outside() -> None:
    random = np.random.default_rng(3)
    mixed = random.permutation(COUNT)[:5000].astype(np.int32)
    one = Delta(COUNT, mixed, np.ones(5000, np.uint16))
    guard = np.zeros(COUNT + 200, np.uint16)
    delta.apply_several(guard[100:-100], [(one, False)] * 3, False)
    assert guard.sum() <= 15_000
    assert not guard[:100].any()
    assert not guard[-100:].any()


def step(seq: int, data: bytes, *, undo: bool = False) -> ReplayStep:
    change = TensorChange("w", before=bytes(32), after=bytes(32), changed=1, size=len(data))
    return ReplayStep(seq, change, undo, memoryview(data), SPEC)


def cut(before: Lanes, after: Lanes, at: int) -> bytes:
    """A delta whose frames are cut elsewhere than the writer here does."""
    parts = ((before[:at], after[:at]), (before[at:], after[at:]))
    return b"".join(encode_frame(codecs.compare(old, new, True)) for old, new in parts)


def walk(random: np.random.Generator, deltas: int) -> list[Lanes]:
    states: list[Any] = [random.integers(0, 1 << 32, *SPEC.shape, dtype=np.uint32)]
    for share in random.choice([0.001, 0.01, 0.5, 1], deltas):
        states.append(states[-1] + (random.random(SPEC.shape) < share) * np.uint32(3))
    return states


@EACH_DTYPE
@settings(max_examples=3, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 32), count=st.sampled_from([1, 300, 4096, COUNT]))
def test_encoded_deltas_are_all_applied_by_one_call(
    element: ElementType, seed: int, count: int
) -> None:
    way = [(encode_frame(one), undo) for one, undo in some_deltas(seed, element, count)]
    random = np.random.default_rng(seed)
    start = random.integers(0, 256, count * element.lane.itemsize, np.uint8).view(element.lane)
    together, singly = start.copy(), start.copy()
    views = [(memoryview(data), undo) for data, undo in way]
    assert take_through(together, views, element.ordered) == (count, 0)
    for data, undo in way:
        apply_frames(singly, data, element.ordered, undo=undo)
    assert np.array_equal(together, singly)


def test_more_than_there_is_room_for_is_applied_in_several_goes() -> None:
    # Every entry of more than 2^20 lanes, in more deltas than are held at a time.
    before = np.arange(codecs.TILE_LANES + 5_000, dtype=np.uint64)
    after = before + np.uint64(3)
    after[::7] = before[::7]
    data = memoryview(encode_tensor(before, after, False))
    lanes = before.copy()
    assert take_through(lanes, [(data, False)] * 5, False) == (len(lanes), 0)
    assert np.array_equal(lanes, before + np.uint64(5) * (after - before))


def framed(codec_id: str, count: int, body: bytes) -> bytes:
    name = codec_id.encode()
    return bytes([len(name)]) + name + u32(count) + u32(len(body)) + body


def packed(content: bytes) -> bytes:
    frame = zstandard.ZstdCompressor(level=1).compress(content)
    return u32(len(frame)) + frame


BAD = {
    "positions beyond the lanes": u32(2) + b"\0" + u32(995) + u32(1) + u32(1) + b"\x08" + b"\0",
    "a last run without an end": u32(2) + b"\0" + u32(0) + u32(2) + u32(2) + b"\x08\xff" + b"\0",
    "too few runs": u32(3) + b"\0" + u32(0) + u32(1) + u32(1) + b"\x08" + b"\0",
    "long gaps beyond the lanes": u32(2)
    + bytes.fromhex("01000000000201000000000100000004")
    + b"\0",
    "five planes of gaps": u32(2) + b"\1" + u32(0) + b"\5" + 5 * (u32(1) + b"\0") + b"\0",
    "five planes of 32 bits": u32(1) + bytes(13) + b"\5" + 5 * (u32(1) + b"\0"),
    "another form": u32(2) + b"\2" + u32(0) + b"\0" + b"\0",
    "more changed than there are": u32(1001),
    "bytes that follow": u32(0) + b"\0",
    "an end inside of a number": b"\1",
}
UNKNOWN = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
BAD_STREAMS = {
    "two zstd frames": u32(2 * len(packed(bytes(500))) - 8) + 2 * packed(bytes(500))[4:],
    "a zstd frame that is too short": packed(bytes(999)),
    "a zstd frame that is too long": packed(bytes(1001)),
    "a zstd frame that is cut": u32(9) + packed(bytes(1000))[4:13],
    "bytes after a zstd frame": u32(len(packed(bytes(1000))) - 3) + packed(bytes(1000))[4:] + b"\0",
    "a zstd frame of unknown length": u32(len(UNKNOWN)) + UNKNOWN,
    "an end inside of a stream": u32(1000) + bytes(999),
}
HOSTILE = {
    **{name: framed("sparse.1", 1000, body) for name, body in BAD.items()},
    **{name: framed("dense.1", 1000, b"\1" + body) for name, body in BAD_STREAMS.items()},
    "nothing that takes bytes": framed("none.1", 1000, b"\0"),
    "fewer lanes": framed("none.1", 999, b""),
    "more lanes": framed("none.1", 1001, b""),
    "no lanes": framed("none.1", 0, b"") + framed("none.1", 1000, b""),
    "bytes after the last frame": framed("none.1", 1000, b"") + b"\0",
    "a codec that nobody knows": framed("sparse.9", 1000, u32(0)),
    "an end inside of a head": framed("none.1", 1000, b"")[:-5],
    "no frames": b"",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=list(HOSTILE))
def test_what_is_not_as_it_is_written_is_left_as_it_was(data: bytes) -> None:
    guard = np.arange(1200, dtype=np.uint32)
    before = guard.copy()
    good = (memoryview(framed("none.1", 1000, b"")), False)
    start, done = take_through(guard[100:1100], [good, (memoryview(data), False)], True)
    assert (start, done) in {(0, 0), (0, 1)}
    assert np.array_equal(guard, before)
    with pytest.raises(CorruptLedger):
        apply_frames(guard[100:1100], data, True)
    assert np.array_equal(guard, before)


@EACH_DTYPE
@settings(max_examples=4, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 32), count=st.sampled_from([1, 300, 4096, COUNT]))
def test_what_was_written_says_its_delta_and_no_other(
    element: ElementType, seed: int, count: int
) -> None:
    random = np.random.default_rng(seed)
    for one, _ in some_deltas(seed, element, count):
        if one.indices is not None:
            kept = one.difference != 0
            one = Delta(count, one.indices[kept], one.difference[kept])
        data = encode_frame(one)
        codec_id, body = data[1 : 1 + data[0]].decode(), data[9 + data[0] :]
        if codec_id == "dense.1":
            one = delta.every_lane(one)
        assert several.says(codec_id, body, one)
        if not one.changed:
            continue
        others = [Delta(count, one.indices, one.difference.copy())]
        others[0].difference[random.integers(one.changed)] += one.difference.dtype.type(1)
        others.append(Delta(count, one.indices, one.difference[:-1]))
        if one.indices is not None:
            moved = one.indices.copy()
            moved[random.integers(one.changed)] += 1
            others += [Delta(count, moved, one.difference), Delta(count, None, one.difference)]
        assert not any(several.says(codec_id, body, other) for other in others)


@settings(max_examples=100, derandomize=True)
@given(share=st.sampled_from([0.002, 0.05, 1]), data=st.data())
def test_damaged_bytes_say_nothing_that_they_do_not_decode_to(
    share: float, data: st.DataObject
) -> None:
    random = np.random.default_rng(6)
    before = random.integers(0, 1 << 16, 9_000, np.uint16)
    after = before + (random.random(9_000) < share) * np.uint16(1)
    one = codecs.compare(before, after, True)
    frame = encode_frame(one)
    codec_id, body = frame[1 : 1 + frame[0]].decode(), bytearray(frame[9 + frame[0] :])
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    cut = bytes(body[: data.draw(st.one_of(st.just(len(body)), st.integers(0, len(body))))])
    if several.says(codec_id, cut, one):
        assert delta.equal(codecs.get_codec(codec_id).decode(cut, 9_000, before.dtype), one)


@pytest.mark.parametrize("zstd", [several._zstd, None], ids=["at once", "frame by frame"])
@pytest.mark.parametrize("held", [0, 1 << 24], ids=["each by itself", "together"])
@pytest.mark.parametrize("elsewhere", [(), (1,), (0, 2)], ids=str)
def test_steps_lead_where_they_lead_one_by_one(
    monkeypatch: pytest.MonkeyPatch, held: int, elsewhere: tuple[int, ...], zstd: object
) -> None:
    monkeypatch.setattr(several, "_zstd", zstd)
    monkeypatch.setattr(steps, "_HELD_BYTES", held)
    states = walk(np.random.default_rng(4), 4)
    way = [
        step(n, cut(old, new, 70) if n in elsewhere else encode_tensor(old, new, True))
        for n, (old, new) in enumerate(pairwise(states))
    ]
    tensor = torch.from_numpy(states[0].copy()).view(torch.float32)
    apply_steps(tensor, way)
    assert np.array_equal(lanes(tensor), states[-1])
    apply_steps(tensor, [step(one.seq, bytes(one.data), undo=True) for one in reversed(way)])
    assert np.array_equal(lanes(tensor), states[0])


@settings(max_examples=60, derandomize=True)
@given(at=st.integers(0, 2), data=st.data())
def test_hostile_bytes_of_a_step_are_told_by_its_event(at: int, data: st.DataObject) -> None:
    states = walk(np.random.default_rng(5), 3)
    way = [encode_tensor(*pair, True) for pair in pairwise(states)]
    flipped = bytearray(way[at])
    for place in data.draw(st.lists(st.integers(0, len(flipped) - 1), min_size=1, max_size=4)):
        flipped[place] ^= data.draw(st.integers(1, 255))
    kept = data.draw(st.one_of(st.just(len(flipped)), st.integers(0, len(flipped))))
    way[at] = bytes(flipped[:kept])
    together = torch.from_numpy(states[0].copy()).view(torch.float32)
    singly = together.clone()
    errors = []
    for run in (
        lambda: apply_steps(together, [step(n + 10, one) for n, one in enumerate(way)]),
        lambda: [apply_step(singly, step(n + 10, one)) for n, one in enumerate(way)],
    ):
        try:
            run()
            errors.append(None)
        except CorruptLedger as error:
            errors.append((str(error), error.seq))
    assert errors[0] == errors[1]
    if errors[0] is None:
        assert np.array_equal(lanes(together), lanes(singly))
    else:
        assert errors[0][1] == at + 10
