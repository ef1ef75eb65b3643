"""The short way for small float32 tensors leads to what the general way leads to, bit for bit."""

import math
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from weightledger.ledger.codecs import loops
from weightledger.ledger.codecs.delta import compare
from weightledger.ledger.codecs.few import encode_few
from weightledger.ledger.codecs.frames import apply_frames, encode_frame
from weightledger.ledger.codecs.streams import SHORTEST_PACKED
from weightledger.ledger.errors import CorruptLedger, InvalidRequest, WeightsChangedOutside
from weightledger.ledger.projection.change import HashedTensor
from weightledger.ledger.tensors.digest import chunk_digests, no_checksums
from weightledger.ledger.tensors.spec import Lanes, TensorSpec
from weightledger.ledger.writing import arithmetic, encoding, small_encoding
from weightledger.ledger.writing.arithmetic import NonFiniteResult, compute, moved_quickly
from weightledger.ledger.writing.encoding import Recorded, Written, record_tensors
from weightledger.ledger.writing.payload import PayloadWriter
from weightledger.ledger.writing.plan import Write
from weightledger.ledger.writing.requests import IncrementalUpdateRequest, validate

POOL = ThreadPoolExecutor(1)
WAYS: Any = (PayloadWriter(None), POOL)  # type: ignore[arg-type]  (nothing is put)
# The largest rate that is zero as a float32, and the next one.
AROUND_NOTHING = (2.0**-150, math.nextafter(2.0**-150, 1))
# Bits, so that NaN payloads, -0.0, infinities and denormals are among the values.
BITS = st.integers(0, 2**32 - 1) | st.sampled_from(
    [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00001, 1, 0x3F800000]
)


def tensor(bits: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.array(bits, np.uint32).view(np.float32))


def recorded(write: Written, monkeypatch: pytest.MonkeyPatch, *, short: bool) -> tuple:
    payload = PayloadWriter(None)  # type: ignore[arg-type]  (nothing is large enough to be put)
    with monkeypatch.context() as patch:
        if not short:
            patch.setattr(encoding, "is_small", lambda *written: False)
        (one,) = record_tensors([write], payload, POOL)
    return facts(one), payload.finish()


def facts(one: Recorded) -> tuple:
    change, after, norm = one
    bits = None if norm is None else struct.pack("<d", norm)
    return change, bytes(after.chunks), bits, after.tensor.numpy().tobytes()


@settings(deadline=None)  # the loops are compiled when they are first used
@given(data=st.data(), count=st.integers(1, 300))
def test_the_short_way_and_the_general_one_are_equal(data: st.DataObject, count: int) -> None:
    before = data.draw(st.lists(BITS, min_size=count, max_size=count))
    after = list(before)
    most = data.draw(st.sampled_from([0, 1, count // 10, count // 2, count]))
    for at in data.draw(st.lists(st.integers(0, count - 1), max_size=most, unique=True)):
        after[at] = data.draw(BITS)
    old, new = tensor(before), tensor(after)
    spec = TensorSpec("weights/w", "float32", (count,))
    write = (spec, HashedTensor(old, chunk_digests(old.numpy())), Write(new))
    assert encoding.is_small(*write)
    with pytest.MonkeyPatch.context() as patch:
        ways = [recorded(write, patch, short=short) for short in (True, False)]
    assert ways[0] == ways[1]


@pytest.mark.parametrize("within_reach", [True, False])
def test_small_steps_of_many_sizes_are_recorded_equally(
    monkeypatch: pytest.MonkeyPatch, *, within_reach: bool
) -> None:
    """What an optimizer does: the payload is what the general way makes of it, also where not all
    that one loop needs of libraries is there."""
    if not within_reach:
        monkeypatch.setattr(small_encoding, "look", lambda *_, **__: None)
    for count in (1, 7, 256, 640, 4096, 65_536):
        old = torch.randn(count)
        for step in (torch.randn(count) * 1e-3, torch.randn(count) * 1e-8, torch.zeros(count)):
            new = old + step
            spec = TensorSpec("weights/w", "float32", (count,))
            write = (spec, HashedTensor(old, chunk_digests(old.numpy())), Write(new))
            ways = [recorded(write, monkeypatch, short=short) for short in (True, False)]
            assert ways[0] == ways[1]


@settings(deadline=None)
@given(data=st.data(), lane=st.sampled_from(["u1", "u2", "u4", "u8"]), ordered=st.booleans())
def test_a_frame_of_few_lanes_is_the_one_that_the_codecs_write(
    data: st.DataObject, lane: str, ordered: bool
) -> None:
    count = data.draw(st.sampled_from([1, 2, 9, 10, 255, 256, 257, SHORTEST_PACKED - 1]))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    most = data.draw(st.sampled_from([2, 200, 2**16, 2**63]))  # of how many values a step is one
    top = int(np.iinfo(lane).max)
    before = random.integers(0, top, count, lane, endpoint=True)
    after = before + random.integers(0, min(most, top), count, lane)
    few = encode_few(before, after, ordered)
    delta = compare(before, after, ordered)
    if delta.indices is not None:
        assert few is None
    else:
        assert few == (encode_frame(delta), int(np.count_nonzero(delta.difference)))
        lanes = after.copy()
        apply_frames(lanes, few[0], ordered, undo=True)
        assert lanes.tolist() == before.tolist()


def test_a_frame_of_few_lanes_that_leads_elsewhere_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = np.arange(9, dtype="u4")
    write = loops.few_planes

    def faulty(before: Lanes, after: Lanes, ordered: bool, out: np.ndarray) -> int:
        changed: int = write(before, after, ordered, out)
        out[7] ^= 1
        return changed

    monkeypatch.setattr(loops, "few_planes", faulty)
    with pytest.raises(CorruptLedger, match="did not reproduce"):
        encode_few(before, before + np.uint32(1), True)


@pytest.mark.parametrize("count", [16, 640])
def test_a_small_tensor_that_was_written_behind_the_ledgers_back_is_refused(count: int) -> None:
    """By its digest, and by its checksum where that is known: it is after every small update."""
    old = torch.randn(count)
    spec = TensorSpec("weights/w", "float32", (count,))
    first = HashedTensor(old, chunk_digests(old.numpy()))
    (recorded,) = record_tensors([(spec, first, Write(old + 1))], *WAYS)
    for held in (first, recorded[1], HashedTensor(old, first.chunks, no_checksums(first.chunks))):
        tensor = held.tensor.clone()
        record_tensors([(spec, replace(held, tensor=tensor), Write(old + 2))], *WAYS)
        tensor.numpy()[3] += 1  # no counter sees it
        with pytest.raises(WeightsChangedOutside, match="w"):
            record_tensors([(spec, replace(held, tensor=tensor), Write(old + 2))], *WAYS)
    assert recorded[1].checksums is not None


@given(
    data=st.data(),
    count=st.integers(1, 64),
    update_type=st.sampled_from(["additive", "multiplicative"]),
    rate=st.sampled_from([0.0, 1e-60, *AROUND_NOTHING, 1e-3, 0.1, 1 / 3, 1.0]),
    wide=st.booleans(),
    alone=st.booleans(),
    strided=st.booleans(),
)
def test_the_short_arithmetic_and_the_general_one_are_equal(
    data: st.DataObject,
    count: int,
    update_type: str,
    rate: float,
    *,
    wide: bool,
    alone: bool,
    strided: bool,
) -> None:
    """Denormals, -0.0, NaN payloads and overflows among what is there and what is sent."""
    before = tensor(data.draw(st.lists(BITS, min_size=count, max_size=count)))
    if wide:
        sent = torch.tensor(
            data.draw(st.lists(st.floats(), min_size=count, max_size=count)), dtype=torch.float64
        )
    else:
        sent = tensor(data.draw(st.lists(BITS, min_size=count, max_size=count)))
    if strided:
        sent = torch.stack((sent, sent), 1)[:, 0]
    spec = TensorSpec("w", "float32", (count,))
    request = IncrementalUpdateRequest(
        "w", sent[0].item() if alone else sent, rate, update_type=update_type
    )

    def outcome() -> object:
        try:
            return compute(validate(request, {"w": spec}), before).numpy().tobytes()
        except (InvalidRequest, NonFiniteResult) as error:
            return repr(error)

    short = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "_SIMPLE", ())
        assert outcome() == short


def test_a_rate_that_is_zero_as_a_float32_adds_nothing() -> None:
    """Not even to -0.0, which would be 0.0 afterwards."""
    before, specs = tensor([0x80000000, 0x3F800000]), {"w": TensorSpec("w", "float32", (2,))}
    for rate, first in zip(AROUND_NOTHING, (0x80000000, 1), strict=True):
        update = validate(IncrementalUpdateRequest("w", torch.ones(2), rate), specs)
        assert compute(update, before).numpy().view(np.uint32).tolist() == [first, 0x3F800000]


STEPS = st.lists(
    st.tuples(
        st.lists(BITS, min_size=4, max_size=4),
        st.sampled_from(["additive", "multiplicative"]),
        st.sampled_from([1e-60, 1e-3, 1 / 3, 1.0]),
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("form", ["floats", "doubles", "mixed", "numbers"])
@given(bits=st.lists(BITS, min_size=4, max_size=4), steps=STEPS)
def test_many_updates_at_once_are_one_after_the_other(
    form: str, bits: list[int], steps: list[tuple[list[int], str, float]]
) -> None:
    """Or none of them, where one is special: what is not finite on the way is not overlooked."""
    before, specs = tensor(bits), {"w": TensorSpec("w", "float32", (4,))}
    operands = [tensor(sent) for sent, _, _ in steps]
    if form == "numbers":
        operands = [one[0] for one in operands]
    if form in ("doubles", "mixed"):
        operands[form == "mixed" :] = [one.double() / 3 for one in operands[form == "mixed" :]]
    updates = [
        validate(IncrementalUpdateRequest("w", data, rate, update_type=kind), specs)
        for data, (_, kind, rate) in zip(operands, steps, strict=True)
    ]
    at_once = moved_quickly(updates, before)
    if at_once is None:
        return
    one_by_one = before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "_SIMPLE", ())
        for update in updates:
            one_by_one = compute(update, one_by_one)
    assert at_once.numpy().tobytes() == one_by_one.numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_ordinary_updates_go_the_short_way(dtype: torch.dtype) -> None:
    specs = {"w": TensorSpec("w", "float32", (2, 8))}
    updates = [
        validate(IncrementalUpdateRequest("w", torch.randn(2, 8, dtype=dtype), rate, kind), specs)
        for rate, kind in ((0.1, "additive"), (1 / 3, "multiplicative"), (0.7, "additive"))
    ]
    before = torch.randn(2, 8)
    at_once = moved_quickly(updates, before)
    assert at_once is not None
    for update in updates:
        before = compute(update, before)
    assert torch.equal(at_once, before)
