"""Memory of large tensors is used again, and never while anything still looks at it."""

import gc
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from weightledger import Ledger, StateEngine, TorchEngine
from weightledger.ledger.tensors import memory
from weightledger.ledger.tensors.lanes import clone, empty
from weightledger.ledger.tensors.spec import TensorSpec

SHAPE = (3, 700_001)  # a size that no other test keeps memory of
BYTES = 4 * 3 * 700_001


def test_the_memory_of_a_tensor_that_is_gone_is_used_for_the_next_one() -> None:
    first = memory.empty(SHAPE, torch.float32)
    place = first.data_ptr()
    del first
    gc.collect()
    kept = memory.idle_bytes()
    again = memory.empty(SHAPE, torch.float32)
    assert again.data_ptr() == place
    assert memory.idle_bytes() == kept - again.nbytes
    other_dtype = memory.empty(SHAPE, torch.float32).view(torch.int32)
    assert other_dtype.data_ptr() != place


@pytest.mark.parametrize(
    "look",
    [
        lambda tensor: tensor[1, 5:9],
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor.view(torch.uint8).numpy()[7:],
        lambda tensor: torch.nn.Parameter(tensor),
        lambda tensor: tensor.untyped_storage(),
        lambda tensor: memoryview(tensor.numpy()),
    ],
    ids=["a row", "numpy", "bytes", "parameter", "storage", "memoryview"],
)
def test_whatever_looks_at_a_tensor_keeps_its_memory(look: object) -> None:
    tensor = memory.empty(SHAPE, torch.float32).fill_(1.5)
    place = tensor.data_ptr()
    kept = look(tensor)  # type: ignore[operator]
    del tensor
    gc.collect()
    taken = [memory.empty(SHAPE, torch.float32).fill_(-2.0) for _ in range(4)]
    assert place not in {one.data_ptr() for one in taken}
    del kept
    gc.collect()
    assert memory.empty(SHAPE, torch.float32).data_ptr() == place


def test_no_more_is_kept_than_the_bound() -> None:
    many = [memory.empty((25_000_000,), torch.uint8) for _ in range(10)]
    del many
    gc.collect()
    assert memory.idle_bytes() <= memory.IDLE_BYTES


def test_as_much_is_kept_as_the_largest_model_takes_while_it_is_there() -> None:
    size = 2 * memory.IDLE_BYTES

    class Model:
        """Whoever holds one."""

    model, smaller = Model(), Model()
    memory.keep_for(model, size)
    memory.keep_for(smaller, size // 4)
    places = set()
    for _ in range(2):
        whole = memory.empty((size,), torch.uint8)
        whole[:: 1 << 16] = 3
        places.add(whole.data_ptr())
        del whole
        gc.collect()
        assert memory.idle_bytes() == memory.most_idle_bytes() == size
    assert len(places) == 1
    del model
    gc.collect()
    assert memory.idle_bytes() <= memory.most_idle_bytes() == memory.IDLE_BYTES


@pytest.mark.parametrize("make", [StateEngine, TorchEngine])
def test_the_weights_that_a_log_began_with_are_let_go_of(
    tmp_path: Path, make: type[StateEngine] | type[TorchEngine]
) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/l.db") as ledger:
        engine = make(torch.nn.Linear(9, 9))
        log = ledger.model("m", engine=engine)
        first = weakref.ref(engine.tensor("weight"))
        for _ in range(2):
            log.record({**log.state(), "weight": torch.randn(9, 9)})
        gc.collect()
        assert first() is None


def test_sizes_that_are_no_longer_asked_for_make_room() -> None:
    """Else the memory of a model that is gone would be kept for ever, and none for the next."""
    others = [memory.empty((memory.IDLE_BYTES // 8 - 1,), torch.uint8) for _ in range(8)]
    del others
    gc.collect()
    tensor = memory.empty((20_000_003,), torch.uint8)
    del tensor
    gc.collect()
    kept = memory.idle_bytes()
    assert kept <= memory.IDLE_BYTES
    again = memory.empty((20_000_003,), torch.uint8)
    assert memory.idle_bytes() == kept - again.nbytes


def test_small_tensors_are_left_to_torch() -> None:
    before = memory.idle_bytes()
    tensor = memory.empty((memory.LEAST_BYTES // 4 - 1,), torch.float32)
    del tensor
    assert memory.idle_bytes() == before


def test_large_tensors_start_where_a_page_does() -> None:
    assert memory.empty(SHAPE, torch.float32).data_ptr() % 4096 == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int8])
def test_a_large_clone_has_the_same_bits_whatever_the_layout(dtype: torch.dtype) -> None:
    size = 2 * memory.LEAST_BYTES
    raw = torch.from_numpy(np.frombuffer(os.urandom(size), np.uint8).copy())
    tensor = raw.view(dtype).view(1024, -1).T
    copied = clone(tensor)
    assert copied.is_contiguous()
    assert copied.data_ptr() != tensor.data_ptr()
    expected = tensor.contiguous().view(torch.uint8)
    assert torch.equal(copied.view(torch.uint8), expected)


def test_a_spec_of_no_elements_takes_no_memory() -> None:
    assert empty(TensorSpec("weights/w", "float32", (0, 5))).shape == (0, 5)
