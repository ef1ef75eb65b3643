"""Checking a model that changed elsewhere, before it is recorded."""

from collections.abc import Mapping

import torch

from weightledger.ledger.codecs.on_device import same_bits
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.tensors.lanes import spec_of
from weightledger.ledger.tensors.spec import TensorSpec


def require_same_tensors(
    tensors: Mapping[str, torch.Tensor],
    specs: Mapping[str, TensorSpec],
    first_names: Mapping[str, str],
) -> None:
    """Raise unless `tensors` are the model's: its names, dtypes and shapes, and its ties.

    `first_names` maps the further names of tied tensors to the first. Raises NotFound for what is
    missing and InvalidRequest for everything else, naming the tensor.
    """
    missing = sorted(specs.keys() - tensors.keys())
    if missing:
        raise NotFound(f"the recorded model lacks {', '.join(missing)}")
    extra = sorted(tensors.keys() - specs.keys() - first_names.keys())
    if extra:
        raise InvalidRequest(f"the ledger's model has no {', '.join(extra)}", param=extra[0])
    for alias, first in first_names.items():
        spec = specs[first]
        tied = tensors.get(alias)
        if tied is not None and (
            spec_of(first, tied) != spec or not same_bits(tied, tensors[first])
        ):
            raise InvalidRequest(
                f"{alias!r} is tied to {first!r}, but holds other values", param=alias
            )
    for name, spec in specs.items():
        got = spec_of(name, tensors[name])
        if got != spec:
            raise InvalidRequest(
                f"tensor {name!r} is {spec.dtype} {spec.shape}, got {got.dtype} {got.shape}",
                param=name,
            )
