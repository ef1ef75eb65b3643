"""Tiles cover each tensor once, in order, and begin where digest chunks begin."""

import pytest

from weightledger.ledger.codecs import TILE_LANES
from weightledger.ledger.codecs.tiling import tiles_of
from weightledger.ledger.tensors.digest import CHUNK_BYTES
from weightledger.ledger.tensors.spec import TensorSpec

SHAPES = [(), (0,), (1,), (65_537,), (300, 1_001), (1_048_576,), (2_500_000,)]


@pytest.mark.parametrize("dtype", ["uint8", "bfloat16", "float32", "float64", "complex128"])
@pytest.mark.parametrize("alone", [True, False])
def test_every_element_is_in_one_tile(dtype: str, alone: bool) -> None:
    specs = [TensorSpec(f"t{n}", dtype, shape) for n, shape in enumerate(SHAPES)]
    together = [[spec] for spec in specs] if alone else [specs]
    for group in together:
        for spec, parts in zip(group, tiles_of(group), strict=True):
            assert [at for part in parts for at in range(spec.numel)[part]] == list(
                range(spec.numel)
            )
            for part in parts:
                assert part.start * spec.element.itemsize % CHUNK_BYTES == 0
                assert (part.stop - part.start) * spec.element.lanes <= TILE_LANES


def test_a_lone_large_tile_is_shared_by_two_threads() -> None:
    large, small = TensorSpec("w", "float32", (1_000_000,)), TensorSpec("b", "float32", (1000,))
    assert [len(parts) for parts in tiles_of([large])] == [2]
    assert [len(parts) for parts in tiles_of([small])] == [1]
    assert [len(parts) for parts in tiles_of([large, small])] == [1, 1]
