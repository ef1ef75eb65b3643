"""TorchEngine: any nn.Module, several versions side by side, readers without a lock.

The live version is one reference to an immutable object. Publishing assigns it; a reader that took
the old one keeps it until done, and tensors that only it used go with it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ledger.engines import copying, naming
from ledger.engines.counters import Counters
from ledger.errors import LedgerError
from ledger.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Version:
    """One committed state: the module, its tensors by name, and what it is."""

    module: nn.Module
    tensors: Mapping[str, torch.Tensor]
    seq: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Candidate:
    """A next version that nobody sees yet; `tensors` are the ones it replaces."""

    module: nn.Module
    tensors: Mapping[str, torch.Tensor]


class TorchEngine:
    """Holds a module's live weights in versions.

    The module handed over becomes the first version: it is put in eval mode, and from then on
    only the ledger may write to its tensors (`check_untouched` notices writes that torch counts;
    `tensor.data` writes are not counted, and `verify --live` finds those). Raises
    UnsupportedModel for modules whose copies would not stand alone.
    """

    mode = "multi-version"

    def __init__(self, module: nn.Module) -> None:
        copying.require_copyable(module)
        self._naming = naming.of_module(module)
        self._module = module.eval()
        self._tensors: Mapping[str, torch.Tensor] = self._naming.tensors
        self._current: Version | None = None
        self._counters = Counters(self._tensors)

    def specs(self) -> Mapping[str, TensorSpec]:
        """Tensors of the state by bare name; a tied tensor once."""
        return self._naming.specs

    def aliases(self) -> Mapping[str, str]:
        """Further names of tied tensors."""
        return self._naming.aliases

    def tensor(self, name: str) -> torch.Tensor:
        """The live tensor of that name; read only."""
        return self._tensors[name]

    def check_untouched(self) -> None:
        """Raise WeightsChangedOutside if a live tensor was written since it was published."""
        self._counters.check()

    def prepare(self, tensors: Mapping[str, torch.Tensor]) -> Candidate:
        """The next version; untouched tensors are shared, nothing is visible."""
        naming.check(self._naming.specs, tensors)
        if not tensors:
            return Candidate(self._module, {})
        fresh = {
            name: copying.replacement(self._tensors[name], naming.like(self._tensors[name], new))
            for name, new in tensors.items()
        }
        replaced = {id(self._tensors[name]): new for name, new in fresh.items()}
        made = copying.next_module(self._module, replaced, copying.every_tensor(self._module))
        return Candidate(made, fresh)

    def publish(self, prepared: Candidate, *, seq: int, digest: bytes) -> None:
        """Make a prepared version the one that the next lease gets: one assignment."""
        tensors = {**self._tensors, **prepared.tensors} if prepared.tensors else self._tensors
        version = Version(prepared.module, tensors, seq, digest)
        self._module, self._tensors = prepared.module, tensors
        self._counters = Counters(tensors)
        self._current = version

    def current(self) -> Version:
        """The live version; holding the object is the lease."""
        version = self._current
        if version is None:
            raise LedgerError("the engine follows no log yet: hand it to a Ledger first")
        return version

    @contextlib.contextmanager
    def lease(self) -> Iterator[Version]:
        """Hold the live version, without a lock and without a wait."""
        yield self.current()
