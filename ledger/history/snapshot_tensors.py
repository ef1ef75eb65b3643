"""The tensors of snapshots: written as blobs under their digests, and read back."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from weightledger.ledger.blobs import BlobStore, Buffer
from weightledger.ledger.history.snapshots import manifest
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.lanes import empty, lanes
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.tensors.state import StateDigest


def tensor_blobs(
    state: StateDigest, tensor: Callable[[str], torch.Tensor]
) -> Mapping[bytes, Buffer]:
    """Digest and bytes of every tensor of a state, by reference to its memory where it can."""
    return {state.digests[name]: lanes(tensor(name), name).view(np.uint8) for name in state.specs}


def store_tensors(
    blobs: BlobStore, state: StateDigest, tensor: Callable[[str], torch.Tensor]
) -> None:
    """Make the tensors and the manifest of a state durable, one blob at a time."""
    absent = blobs.missing(state.digests.values())
    for name, digest in state.digests.items():
        if digest in absent:
            blobs.put(digest, lanes(tensor(name), name).view(np.uint8))
            absent.discard(digest)
    data = manifest(state)
    blobs.put(content_digest(data), data)


def load_tensor(
    blobs: BlobStore, spec: TensorSpec, digest: bytes, *, check: bool = True
) -> torch.Tensor:
    """A new tensor with the bytes of a blob, which with `check` have its digest."""
    out = empty(spec)
    blobs.read_into(digest, lanes(out, spec.name).view(np.uint8), check=check)
    return out
