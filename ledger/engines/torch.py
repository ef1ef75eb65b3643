"""TorchEngine: any nn.Module, several versions side by side, readers without a lock.

Each version is a module of its own; what did not change, tensors and submodules, is shared.
"""

import itertools
from collections.abc import Collection, Mapping

import torch
from torch import nn

from weightledger.ledger.engines import copying, naming
from weightledger.ledger.engines.intake import as_live, checked, counting_writes, like, settle
from weightledger.ledger.engines.versions import Adapted, Candidate, LiveVersion, Versions
from weightledger.ledger.tensors.spec import TensorSpec


class TorchEngine:
    """Holds a module's live weights in versions, in eval mode.

    The module handed over is copied without its weights and left as it is: the first version
    shares its memory, so from then on only the ledger may write there. `check_untouched` notices
    writes that torch counts; `p.data.add_()` and numpy views are not counted, and only hashing
    finds those. Changing the module in other ways (`train`, `half`, hooks) has no effect here.

    Where a submodule's forward writes into itself, buffers and attributes, each lease has a copy of
    that submodule: what is written is the reader's own and goes with the lease. Such submodules are
    found by their code; one that is not is found a little later, by what it wrote.

    Raises UnsupportedModel, naming the submodule, for modules whose copies would not stand alone:
    InplaceEngine takes those.
    """

    mode = "multi-version"

    def __init__(self, module: nn.Module) -> None:
        given = naming.of_module(module)
        self._skeleton = copying.Skeleton(module, given)
        first = copying.own(given)
        # Not the tensors themselves: the first ones would take memory for ever.
        named = {name: copying.stand_in(tensor) for name, tensor in first.items()}
        self._naming = naming.Naming(named, given.specs, given.aliases)
        self._versions = Versions(first)
        self._line = self._skeleton.line(first)
        self._leases = itertools.count(1)

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
        if names is None:
            self._look()

    def prepare(self, tensors: Mapping[str, torch.Tensor]) -> Candidate:
        """The next version; untouched tensors are shared, nothing is visible.

        A new tensor is laid out and placed as the live one (copied only if it is not yet), so
        that it computes the same bits.
        """
        live, replica = self._versions.tensors, self._skeleton.replica
        taken = checked(self._naming, tensors)
        if not taken:
            return Candidate({}, None, live, live, replica)
        with counting_writes():
            fresh = {name: as_live(live[name], like(live[name], t)) for name, t in taken.items()}
            whole = live.replaced(fresh)
            built = self._line.build(fresh, lambda: whole)
        settle(fresh.values())
        return Candidate(fresh, built, whole, live, replica)

    def publish(self, prepared: Candidate, *, seq: int, digest: bytes) -> None:
        """Make a prepared version the one that the next lease gets: one assignment.

        Raises Conflict, changing nothing, if another was published since it was prepared.
        """
        line, whole = self._line, prepared.whole
        with line.lock:
            self._versions.require_newest(prepared)
            if prepared.built is not None and not line.adopt(prepared.built):
                # What a reader left in the version before was cleared away since.
                line.adopt(line.build(prepared.tensors, lambda: whole))
            private = line.private(lambda: whole)
            self._versions.publish(prepared, seq, digest, line.module, private)

    def current(self) -> LiveVersion:
        """The live version; holding the object is the lease."""
        return self.lease()

    def lease(self) -> LiveVersion:
        """Hold the live version, without a lock and without a wait."""
        turn = next(self._leases)
        if not turn & (turn - 1):
            self._look()
        if self._is_dirty():
            self._renew()
        return self._versions.current().leased()

    def hold(self) -> LiveVersion:
        """The live version, to lease from for as long as it is held: `version.leased()`."""
        return self._versions.current()

    def apart(self) -> "TorchEngine":
        """Another engine with a copy of the live model, which shows nothing yet."""
        return TorchEngine(self.prepare({}).module)

    def held_versions(self) -> int:
        """How many past versions readers still hold."""
        return self._versions.held()

    def wait_for_readers(self, most: int, timeout_s: float) -> bool:
        """Wait until readers hold at most that many past versions; False if they still do not."""
        return self._versions.wait_for_readers(most, timeout_s)

    def _look(self) -> None:
        """Look for what forwards or readers wrote into the modules that readers share."""
        self._line.look()

    def _is_dirty(self) -> bool:
        return bool(self._line.dirty)

    def _renew(self) -> None:
        """Let later leases have the live version without what readers left in it."""
        with self._line.lock:
            version = self._versions.current()
            if self._line.dirty:
                self._line.adopt(self._line.renewed())
            private = self._line.private(lambda: version.tensors)
            self._versions.renew(self._line.module, private, self._renewed_adapted())

    def _renewed_adapted(self) -> Mapping[str, Adapted]:
        return self._versions.adapted
