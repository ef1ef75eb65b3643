"""StateEngine: tensors without a module, for writing a log where nothing is served."""

from collections.abc import Collection, Mapping

import torch
from torch import nn

from weightledger.ledger.engines import naming
from weightledger.ledger.engines.intake import checked
from weightledger.ledger.engines.versions import Candidate, LiveVersion, Versions
from weightledger.ledger.tensors.lanes import clone, require_tensors
from weightledger.ledger.tensors.spec import TensorSpec


class StateEngine:
    """Holds copies of a module's or state dict's tensors, contiguous; ties are kept.

    In a state dict, two names of the same memory are a tie: `module.state_dict()` gives a tied
    parameter as two tensors. Raises UnsupportedModel for what the ledger cannot record.
    """

    mode = "multi-version"

    def __init__(self, base: nn.Module | Mapping[str, torch.Tensor]) -> None:
        require_tensors(base)
        given = naming.of_module(base) if isinstance(base, nn.Module) else naming.of_tensors(base)
        with torch.inference_mode(False):
            copies = {name: clone(tensor) for name, tensor in given.tensors.items()}
        # Not the tensors themselves: the first ones would take memory for ever.
        self._naming = naming.Naming({}, given.specs, given.aliases)
        self._versions = Versions(copies)

    def specs(self) -> Mapping[str, TensorSpec]:
        """Tensors of the state by bare name; a tied tensor once."""
        return self._naming.specs

    def aliases(self) -> Mapping[str, str]:
        """Further names of tied tensors."""
        return self._naming.aliases

    def tensor(self, name: str) -> torch.Tensor:
        """The live tensor of that name; read only."""
        return self._versions.tensors[name]

    def check_untouched(self, names: Collection[str] | None = None) -> None:
        """Raise WeightsChangedOutside if a live tensor was written since it was published."""
        self._versions.check_untouched(names)

    def prepare(self, tensors: Mapping[str, torch.Tensor]) -> Candidate:
        """The tensors of the next state, checked."""
        live = self._versions.tensors
        taken = checked(self._naming, tensors)
        return Candidate(taken, None, live.replaced(taken) if taken else live, live)

    def publish(self, prepared: Candidate, *, seq: int, digest: bytes) -> None:
        """Make the next state the current one: one assignment."""
        self._versions.publish(prepared, seq, digest)

    def lease(self) -> LiveVersion:
        """Hold the current state: `.tensors`, `.seq` and `.digest`; there is no `.module`."""
        return self._versions.current()

    def held_versions(self) -> int:
        """How many past states readers still hold."""
        return self._versions.held()

    def wait_for_readers(self, most: int, timeout_s: float) -> bool:
        """Wait until readers hold at most that many past states; False if they still do not."""
        return self._versions.wait_for_readers(most, timeout_s)
