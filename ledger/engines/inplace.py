"""InplaceEngine: the caller's own module is the live one.

For a module that others hold, or one too large for a second copy of a tensor. Leases share a gate;
publishing waits for those that are held and copies the new values in behind it.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ledger.engines import copying, naming
from ledger.engines.counters import Counters
from ledger.errors import LedgerError
from ledger.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Held:
    """The live module as a lease holds it; valid only while the lease is."""

    module: nn.Module
    seq: int
    digest: bytes


class InplaceCandidate:
    """New values for some tensors; a module with them is built only if it is asked for."""

    def __init__(self, live: nn.Module, mapping: naming.Naming, new: Mapping[str, torch.Tensor]):
        self.tensors = new
        self._live = live
        self._naming = mapping
        self._module: nn.Module | None = None

    @property
    def module(self) -> nn.Module:
        """A copy of the live module with the new values, sharing the rest; in eval mode.

        Raises UnsupportedModel for a module whose copies do not stand alone.
        """
        if self._module is None:
            copying.require_copyable(self._live)
            replaced = {
                id(self._naming.tensors[name]): copying.replacement(
                    self._naming.tensors[name], tensor
                )
                for name, tensor in self.tensors.items()
            }
            shared = copying.every_tensor(self._live)
            self._module = copying.next_module(self._live, replaced, shared).eval()
        return self._module


class Gate:
    """Many readers or one writer; a waiting writer goes before readers that come later."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._writing = False
        self._waiting = 0

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """Share the gate with other readers."""
        with self._condition:
            self._condition.wait_for(lambda: not self._writing and not self._waiting)
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                self._condition.notify_all()

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        """Have the gate alone."""
        with self._condition:
            self._waiting += 1
            self._condition.wait_for(lambda: not self._writing and not self._readers)
            self._waiting -= 1
            self._writing = True
        try:
            yield
        finally:
            with self._condition:
                self._writing = False
                self._condition.notify_all()


class InplaceEngine:
    """Writes committed values into the very tensors of a module.

    The module keeps its train or eval mode. Whoever infers with it takes a lease; calls without
    one may see an update half-way.
    """

    mode = "inplace"

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._naming = naming.of_module(module)
        self._counters = Counters(self._naming.tensors)
        self._gate = Gate()
        self._state: tuple[int, bytes] | None = None

    def specs(self) -> Mapping[str, TensorSpec]:
        """Tensors of the state by bare name; a tied tensor once."""
        return self._naming.specs

    def aliases(self) -> Mapping[str, str]:
        """Further names of tied tensors."""
        return self._naming.aliases

    def tensor(self, name: str) -> torch.Tensor:
        """The live tensor of that name; read only."""
        return self._naming.tensors[name]

    def check_untouched(self) -> None:
        """Raise WeightsChangedOutside if a live tensor was written since it was published."""
        self._counters.check()

    def prepare(self, tensors: Mapping[str, torch.Tensor]) -> InplaceCandidate:
        """New values, checked so that copying them in cannot fail."""
        naming.check(self._naming.specs, tensors)
        return InplaceCandidate(self._module, self._naming, tensors)

    def publish(self, prepared: InplaceCandidate, *, seq: int, digest: bytes) -> None:
        """Copy the new values in while no lease is held."""
        with self._gate.write():
            with torch.no_grad():
                for name, new in prepared.tensors.items():
                    self._naming.tensors[name].copy_(new)
            self._counters = Counters(self._naming.tensors)
            self._state = (seq, digest)

    @contextlib.contextmanager
    def lease(self) -> Iterator[Held]:
        """Hold the module still; updates wait until the lease is given back."""
        with self._gate.read():
            if self._state is None:
                raise LedgerError("the engine follows no log yet: hand it to a Ledger first")
            yield Held(self._module, *self._state)
