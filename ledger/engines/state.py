"""StateEngine: tensors without a module, for writing a log where nothing is served."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ledger.engines import naming
from ledger.engines.counters import Counters
from ledger.errors import LedgerError, UnsupportedModel
from ledger.tensors import TensorSpec, clone


@dataclass(frozen=True, slots=True)
class State:
    """One committed state, or with seq −1 one that is not committed yet."""

    tensors: Mapping[str, torch.Tensor]
    seq: int = -1
    digest: bytes = b""

    @property
    def module(self) -> nn.Module:
        """There is none."""
        raise UnsupportedModel("this log holds tensors without a module; serve it to infer")


class StateEngine:
    """Holds copies of a module's or state dict's tensors; ties are kept."""

    mode = "multi-version"

    def __init__(self, base: nn.Module | Mapping[str, torch.Tensor]) -> None:
        given = (
            naming.of_module(base)
            if isinstance(base, nn.Module)
            else naming.of_tensors(list(base.items()))
        )
        self._specs, self._aliases = given.specs, given.aliases
        self._tensors = {name: clone(tensor) for name, tensor in given.tensors.items()}
        self._counters = Counters(self._tensors)
        self._current: State | None = None

    def specs(self) -> Mapping[str, TensorSpec]:
        """Tensors of the state by bare name; a tied tensor once."""
        return self._specs

    def aliases(self) -> Mapping[str, str]:
        """Further names of tied tensors."""
        return self._aliases

    def tensor(self, name: str) -> torch.Tensor:
        """The live tensor of that name; read only."""
        return self._tensors[name]

    def check_untouched(self) -> None:
        """Raise WeightsChangedOutside if a live tensor was written since it was published."""
        self._counters.check()

    def prepare(self, tensors: Mapping[str, torch.Tensor]) -> State:
        """The tensors of the next state, checked."""
        naming.check(self._specs, tensors)
        return State(tensors)

    def publish(self, prepared: State, *, seq: int, digest: bytes) -> None:
        """Make the next state the current one: one assignment."""
        self._tensors = {**self._tensors, **prepared.tensors}
        self._counters = Counters(self._tensors)
        self._current = State(self._tensors, seq, digest)

    @contextlib.contextmanager
    def lease(self) -> Iterator[State]:
        """Hold the current state."""
        if self._current is None:
            raise LedgerError("the engine follows no log yet: hand it to a Ledger first")
        yield self._current
