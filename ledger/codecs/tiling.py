"""Tiles: the parts of tensors that are worked on one at a time, so that memory stays bounded."""

from collections.abc import Sequence

from weightledger.ledger.codecs.delta import TILE_LANES
from weightledger.ledger.tensors.digest import CHUNK_BYTES
from weightledger.ledger.tensors.spec import TensorSpec

# From here on two threads are done with a tile sooner than one.
_LARGE_BYTES = 1024 * 1024


def tile_elements(spec: TensorSpec) -> int:
    """How many elements make a tile: as many as one frame takes."""
    return TILE_LANES // spec.element.lanes


def tile_starts(spec: TensorSpec) -> range:
    """The first element of each tile of a tensor."""
    return range(0, spec.numel, tile_elements(spec))


def tiles_of(specs: Sequence[TensorSpec]) -> list[list[slice]]:
    """The elements of each tile of each of these tensors, which are worked on together.

    A lone large tile is cut, to keep two threads busy. Where a tile starts a digest chunk starts.
    """
    parts = [
        [slice(start, start + tile_elements(spec)) for start in tile_starts(spec)] for spec in specs
    ]
    if sum(map(len, parts)) == 1 and sum(spec.nbytes for spec in specs) >= _LARGE_BYTES:
        (spec,) = (spec for spec in specs if spec.nbytes)
        half = spec.nbytes // 2 // CHUNK_BYTES * CHUNK_BYTES // spec.element.itemsize
        cut = [slice(0, half), slice(half, spec.numel)]
        parts = [cut if of else of for of in parts]
    return parts
