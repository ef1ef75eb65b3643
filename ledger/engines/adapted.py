"""Engines that show adapters: what they offer beyond holding weights, and a lease through one.

An adapter and the base it stands on are one version, so a lease never mixes two states of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from weightledger.ledger.adapters.adapter import Adapter
from weightledger.ledger.engines import Engine, Live, Prepared
from weightledger.ledger.engines.versions import LiveVersion
from weightledger.ledger.errors import ModelNotFound


@runtime_checkable
class AdapterEngine(Engine, Protocol):
    """An engine whose versions show adapters too: leases give a `LiveVersion` with `adapted`."""

    def prepare_with(
        self, tensors: Mapping[str, torch.Tensor], adapters: Mapping[str, Adapter]
    ) -> Prepared:
        """The next version as of `prepare`, with these adapters and no others.

        Raises InvalidRequest for an adapter that does not fit the model. `prepare` itself keeps
        the adapters that are live.
        """

    def ready(self, adapter: Adapter) -> None:
        """Work out ahead what showing this adapter takes; InvalidRequest if it does not fit.

        May take long and be called from any thread, beside `prepare_with`; shows nothing.
        """

    def transposed(self, module: str) -> bool | None:
        """Whether a module keeps its weight as [inputs, outputs]; None where that is not known."""


@dataclass(frozen=True, slots=True)
class AdaptedLive:
    """A leased version as one of its adapters shows it; `version` is what is held."""

    version: Live
    module: torch.nn.Module

    @property
    def seq(self) -> int:
        """Seq of the last state-changing event."""
        return self.version.seq

    @property
    def digest(self) -> bytes:
        """Digest of the state, base and adapters, 32 bytes."""
        return self.version.digest


def through(live: Live, adapter: str) -> AdaptedLive:
    """A leased version through one of its adapters; ModelNotFound when it has none of that name."""
    adapted = live.adapted.get(adapter) if isinstance(live, LiveVersion) else None
    if adapted is None:
        raise ModelNotFound(f"The model {adapter!r} does not exist", param="model")
    return AdaptedLive(live, adapted.leased())
