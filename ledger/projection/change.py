"""What becomes live with an event, before anybody sees it."""

from collections.abc import Mapping

import msgspec
import torch

from weightledger.ledger.engines import Prepared
from weightledger.ledger.tensors.state import StateDigest


class HashedTensor(msgspec.Struct, frozen=True):
    """A tensor, the digests of its chunks, and their checksums where they are known."""

    tensor: torch.Tensor
    chunks: bytearray
    checksums: bytearray | None = None


class Change(msgspec.Struct, frozen=True):
    """The way from what is live to the state after an event: nothing of it is visible yet.

    `weights` are the new tensors, by full state name, `auxiliary` all those beside the weights
    (`rule/…`, `adapter/…`) in that state. `candidate` is the engine's next version, once built.
    """

    weights: Mapping[str, HashedTensor]
    state: StateDigest
    auxiliary: Mapping[str, torch.Tensor]
    candidate: Prepared | None = None

    @property
    def prepared(self) -> Prepared:
        """The engine's next version."""
        assert self.candidate is not None, "the candidate has not been built"
        return self.candidate
