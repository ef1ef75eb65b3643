"""Tensors as bits: every dtype, layout and odd value is seen and copied exactly, or refused."""

import math
import sys
import warnings

import numpy as np
import pytest
import torch

from weightledger.ledger.errors import InvalidRequest, UnsupportedModel
from weightledger.ledger.tensors.lanes import (
    clone,
    empty,
    finite,
    flat,
    from_bytes,
    lanes,
    shares_memory,
    spec_of,
    tensor_digest,
    torch_dtype,
)
from weightledger.ledger.tensors.spec import DTYPES, WEIGHTS, TensorSpec, check_name

# Quiet and signalling NaNs with payloads, both zeros, infinities, denormals.
ODD_FP32 = [
    0x7FC00001,
    0x7F800001,
    0xFFC12345,
    0x80000000,
    0,
    0x7F800000,
    0xFF800000,
    1,
    0x80000001,
]


def random_tensor(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    spec = TensorSpec("x", dtype, shape)
    data = np.random.default_rng(1).integers(0, 256, spec.nbytes, dtype=np.uint8)
    return from_bytes(spec, data.tobytes())


def odd() -> torch.Tensor:
    return torch.from_numpy(np.array(ODD_FP32, np.uint32).view(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 4), (5,), (), (0, 3), (2, 1, 3)])
def test_lanes_are_the_bytes_of_the_tensor_and_share_its_memory(
    dtype: str, shape: tuple[int, ...]
) -> None:
    tensor = random_tensor(dtype, shape)
    spec = spec_of("x", tensor)
    assert (spec.dtype, spec.shape, torch_dtype(spec)) == (dtype, shape, tensor.dtype)
    bits = lanes(tensor)
    assert bits.shape == (spec.lane_count,)
    assert bits.dtype == DTYPES[dtype].lane
    assert bits.nbytes == spec.nbytes == tensor.nbytes
    bits[:] = ~bits
    assert lanes(tensor).tobytes() == bits.tobytes()
    assert shares_memory(tensor)


def test_lanes_are_little_endian_in_c_order() -> None:
    assert lanes(torch.tensor([[1, 2], [3, 4]], dtype=torch.int16)).tobytes() == bytes(
        [1, 0, 2, 0, 3, 0, 4, 0]
    )
    assert lanes(torch.tensor([1 + 2j], dtype=torch.complex64)).tolist() == [0x3F800000, 0x40000000]


def test_every_float8_dtype_of_torch_is_held() -> None:
    known = {name for name in dir(torch) if name.startswith("float8")}
    assert known == {name for name, element in DTYPES.items() if element.kind == "float8"}


def test_a_parameter_is_written_through_its_lanes() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    lanes(parameter)[1] = 0
    assert parameter.tolist() == [1.0, 0.0, 1.0]
    assert parameter.requires_grad


@pytest.mark.parametrize(
    "view",
    [
        torch.arange(6.0).reshape(2, 3).t(),
        torch.arange(6.0)[::2],
        torch.arange(3.0).expand(2, 3),
        torch.arange(48.0).reshape(2, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        torch.tensor([1 + 2j, 3 - 4j]).conj(),
        torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        torch.tensor([1 + 2j]).conj().imag,
    ],
    ids=[
        "transposed",
        "strided",
        "expanded",
        "channels_last",
        "conjugated",
        "negated",
        "negated_contiguous",
    ],
)
def test_other_layouts_give_the_bits_of_their_values_as_a_copy(view: torch.Tensor) -> None:
    assert not shares_memory(view)
    expected = torch.tensor(view.tolist(), dtype=view.dtype)
    assert lanes(view).tobytes() == lanes(expected).tobytes()
    bits = lanes(view)
    bits[:] = 0
    assert view.tolist() == expected.tolist()
    copy = clone(view)
    assert shares_memory(copy)
    assert lanes(copy).tobytes() == lanes(expected).tobytes()


def test_a_single_element_of_a_strided_tensor_shares_its_memory() -> None:
    whole = torch.arange(6.0).reshape(3, 2)
    for part in (whole[1:2, 1:], whole[1:2, 1], whole[1, 1]):
        assert shares_memory(part)
        lanes(part)[:] = 0
        assert whole.tolist() == [[0, 1], [2, 0], [4, 5]]
        whole[1, 1] = 3


def test_a_clone_keeps_nan_payloads_and_signed_zeros() -> None:
    for source in (odd(), torch.stack([odd(), odd()]).t()):
        copy = clone(source)
        assert copy.is_contiguous()
        assert lanes(copy).tolist() == lanes(source).tolist()
    assert sorted(lanes(clone(odd())).tolist()) == sorted(ODD_FP32)
    copy = clone(torch.nn.Parameter(odd()))
    assert not copy.requires_grad


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_from_bytes_copies_exactly(kind: type) -> None:
    source = bytearray(lanes(odd()).tobytes())
    tensor = from_bytes(TensorSpec("x", "float32", (3, 3)), kind(source))
    source[:] = bytes(len(source))
    assert lanes(tensor).tolist() == ODD_FP32


@pytest.mark.parametrize("size", [0, 35, 37])
def test_from_bytes_refuses_another_size(size: int) -> None:
    with pytest.raises(InvalidRequest, match=r"'x' float32\[3, 3\] takes 36 bytes"):
        from_bytes(TensorSpec("x", "float32", (3, 3)), bytes(size))


def test_empty_has_the_shape_and_dtype_of_the_spec() -> None:
    tensor = empty(TensorSpec("x", "bfloat16", (2, 0, 3)))
    assert (tensor.shape, tensor.dtype) == ((2, 0, 3), torch.bfloat16)


class Packed(torch.Tensor):
    """A wrapper subclass, as quantisation packages make them."""

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None


def nested() -> torch.Tensor:
    """A nested tensor of the older kind, whose layout is called strided."""
    with warnings.catch_warnings(action="ignore"):  # torch has a newer one
        return torch.nested.nested_tensor([torch.ones(2)], layout=torch.strided)


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.empty(2, device="meta"), "meta device"),
        (torch.eye(2).to_sparse(), "sparse_coo"),
        (torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), "is nested"),
        (nested(), "is nested"),
        (torch.empty(2, dtype=torch.float4_e2m1fn_x2), "float4_e2m1fn_x2"),
        (torch.nn.UninitializedParameter(), "not initialised"),
        (torch.ones(2).as_subclass(Packed), "Packed"),
    ],
    ids=["meta", "sparse", "jagged", "nested", "float4", "lazy", "wrapper"],
)
def test_what_has_no_plain_bits_is_refused_by_name(tensor: torch.Tensor, why: str) -> None:
    for refuse in (lambda: spec_of("fc.weight", tensor), lambda: lanes(tensor, "fc.weight")):
        with pytest.raises(UnsupportedModel, match=why) as error:
            refuse()
        assert "'fc.weight'" in str(error.value)
        assert "bfloat16" in str(error.value)
        assert error.value.param == "fc.weight"


@pytest.mark.parametrize("name", ["", "a\tb", "a\nb", "\x00", "a\x7f", "a\ud800"])
def test_names_that_would_break_a_digest_line_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedModel, match="control character"):
        TensorSpec(name, "float32", ())


def test_other_names_are_taken() -> None:
    for name in ("fc.weight", WEIGHTS + "größe/層.0", "a b", "\u0080"):
        check_name(name)


def test_a_spec_of_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"'x' .int4."):
        TensorSpec("x", "int4", ())


def test_a_big_endian_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(UnsupportedModel, match="little-endian"):
        lanes(torch.ones(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (200, 200)])
def test_few_and_many_values_are_looked_at_alike(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    largest = torch.finfo(dtype).max  # their sum overflows, and they are numbers all the same
    for value in (0.5, largest, math.nan, math.inf, -math.inf):
        tensor = torch.full(shape, largest, dtype=dtype)
        if tensor.numel():
            tensor.view(-1)[-1] = value
        assert finite(tensor) == (math.isfinite(value) or not tensor.numel())
        for seen in (tensor, tensor.mT if tensor.dim() > 1 else tensor, torch.nn.Parameter(tensor)):
            assert tensor_digest(flat(seen)) == tensor_digest(seen.reshape(-1))
