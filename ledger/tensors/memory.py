"""Memory for large CPU tensors, kept for the next one of that size.

A fresh tensor costs several times what it takes to fill it, since the system hands out memory page
by page; weights are replaced by others of the same size all the time. So the memory of a tensor
that is gone is kept for the next one: as much as the largest model at hand takes, since a whole
model that was replaced will be replaced again. Where the system runs short it takes back what is
kept (MADV_FREE). It is the tensor's storage that lends the memory: as long as any tensor, view or
numpy array looks at it, it is not given to another.
"""

import contextlib
import math
import mmap
import weakref
from collections import defaultdict, deque

import numpy as np
import torch

IDLE_BYTES = 128 * 1024 * 1024
"""Most memory kept for later where no model is larger, or the system could not take it back."""

LEAST_BYTES = 1024 * 1024
"""Smaller tensors are left to torch, which reuses memory of that size by itself."""

# What Linux maps at once where it is asked to: filling a large tensor then takes half the time.
_HUGE_PAGE = 2 * 1024 * 1024
_FREE: int | None = getattr(mmap, "MADV_FREE", None)

# Blocks by size. Storages are let go on any thread, at any moment, so nothing here takes a lock:
# the operations of a deque are atomic, and the bound may be missed by a block or two.
_idle: dict[int, deque[mmap.mmap]] = defaultdict(deque)
# Bytes of the models at hand, by who said so.
_models: dict[int, int] = {}


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A new contiguous CPU tensor with undefined values."""
    size = dtype.itemsize * math.prod(shape)
    if size < LEAST_BYTES:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(_lent(size)).view(dtype).view(shape)


def keep_for(owner: object, size: int) -> None:
    """Keep as much as a model of `size` bytes takes, for as long as `owner` is there."""
    _models[id(owner)] = size
    weakref.finalize(owner, _forget, id(owner)).atexit = False


def most_idle_bytes() -> int:
    """The bound of what is kept for later, in bytes."""
    if _FREE is None:
        return IDLE_BYTES
    return max(IDLE_BYTES, *_models.copy().values(), 0)


def idle_bytes() -> int:
    """How much memory is kept for later, in bytes. The system may have taken some of it back."""
    return sum(size * len(blocks) for size, blocks in _idle.copy().items())


def _lent(size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Writable bytes whose block comes back when nothing refers to them any more."""
    try:
        block = _idle[size].pop()
    except IndexError:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            block.madvise(mmap.MADV_HUGEPAGE)
    lent = np.frombuffer(block, np.uint8, size)
    weakref.finalize(lent, _take_back, block, size).atexit = False
    return lent


def _take_back(block: mmap.mmap, size: int) -> None:
    most = most_idle_bytes()
    if size > most:
        return
    # Blocks of other sizes make room: sizes change when another model is served.
    _drop(most - size, kept=size)
    if idle_bytes() + size <= most:
        if _FREE is not None:
            with contextlib.suppress(OSError):  # an older kernel: what is kept stays
                block.madvise(_FREE)
        _idle[size].append(block)


def _drop(most: int, kept: int | None = None) -> None:
    """Let blocks go until at most so many bytes are kept, none of those of the size `kept`."""
    for size, blocks in _idle.copy().items():
        while blocks and size != kept and idle_bytes() > most:
            with contextlib.suppress(IndexError):  # another thread has taken it
                blocks.popleft()


def _forget(owner: int) -> None:
    _models.pop(owner, None)
    _drop(most_idle_bytes())
