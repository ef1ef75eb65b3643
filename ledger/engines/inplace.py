"""InplaceEngine: the caller's own module is the live one.

For a module that others hold, or one too large for a second copy of a tensor. Leases share a gate;
publishing waits for those that are held and copies the new values in behind it.
"""

import contextlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from weightledger.ledger.engines import copying, naming, parametrised
from weightledger.ledger.engines.counters import Counters, Rota, refuse
from weightledger.ledger.engines.gate import Gate
from weightledger.ledger.engines.intake import as_live, checked, like, settle
from weightledger.ledger.engines.scratch import scratches
from weightledger.ledger.engines.torch import TorchEngine
from weightledger.ledger.engines.versions import unpublished
from weightledger.ledger.errors import Conflict, UnsupportedModel, WeightsMismatch
from weightledger.ledger.tensors.lanes import torch_dtype
from weightledger.ledger.tensors.spec import TensorSpec

_Home = tuple[str, Mapping[str, torch.Tensor | None], str]


@dataclass(frozen=True, slots=True)
class LeasedModule:
    """The live module as a lease holds it; valid only while the lease is."""

    module: nn.Module
    seq: int
    digest: bytes


class InplaceCandidate:
    """New values for some tensors."""

    def __init__(self, engine: "InplaceEngine", new: Mapping[str, torch.Tensor], base: int) -> None:
        self.tensors = new
        self.base = base
        self._engine = engine

    @property
    def module(self) -> nn.Module:
        """A copy of the live module with the new values, in eval mode, made each time it is asked
        for: it shares nothing with the live one.

        Waits for leases to end, as publishing does. Raises UnsupportedModel for a module whose
        copies do not stand alone.
        """
        return self._engine.replica(self.tensors)


class InplaceEngine:
    """Writes committed values into the very tensors of a module.

    The module keeps its train or eval mode. Whoever infers with it takes a lease; calls without
    one may see an update half-way. Where a submodule's forward writes into itself, leases are given
    to one thread after another. `check_untouched` notices counted writes, replaced parameters
    and `p.data = other`, but not `p.data.add_()` or writes through numpy, which are not counted:
    the write path hashes the tensors that it is about to change.
    """

    mode = "inplace"

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._naming = naming.of_module(module)
        self._homes = self._homes_of(module)
        self._sharing = _sharing(self._naming.tensors)
        self._rota = Rota(list(self._naming.tensors))
        for name, tensor in self._naming.tensors.items():
            _require_writable(name, tensor)
        self._counters = Counters(self._naming.tensors)
        self._gate = Gate(one_by_one=bool(scratches(module)))
        self._state: tuple[int, bytes] | None = None
        self._torn = False
        self._published = 0

    def specs(self) -> Mapping[str, TensorSpec]:
        """Tensors of the state by bare name; a tied tensor once."""
        return self._naming.specs

    def aliases(self) -> Mapping[str, str]:
        """Further names of tied tensors."""
        return self._naming.aliases

    def tensor(self, name: str) -> torch.Tensor:
        """The live tensor of that name; read only."""
        return self._naming.tensors[name]

    def check_untouched(self, names: Collection[str] | None = None) -> None:
        """Raise WeightsChangedOutside if a live tensor was written or replaced in its module."""
        looked = self._homes if names is None else dict.fromkeys([*names, *self._rota.turn()])
        refuse(dict.fromkeys(self._replaced(looked) + self._counters.changed(looked)))

    def prepare(self, tensors: Mapping[str, torch.Tensor]) -> InplaceCandidate:
        """New values, checked so that copying them in cannot fail.

        Raises LedgerError in a thread that holds a lease, which publishing would wait for.
        """
        self._gate.refuse_reader()
        return InplaceCandidate(self, checked(self._naming, tensors), self._published)

    def replica(self, new: Mapping[str, torch.Tensor]) -> nn.Module:
        """A copy of the live module with these values, in memory of its own."""
        live = self._naming.tensors
        with self._gate.write(), torch.inference_mode(False), torch.no_grad():
            laid_out = {name: as_live(live[name], like(live[name], t)) for name, t in new.items()}
            skeleton = copying.Skeleton(self._module, self._naming)
            return skeleton.replica({**live, **laid_out})

    def apart(self) -> TorchEngine:
        """Another engine with a copy of the live model, which shows nothing yet."""
        return TorchEngine(self.prepare({}).module)

    def publish(self, prepared: InplaceCandidate, *, seq: int, digest: bytes) -> None:
        """Copy the new values in while no lease is held.

        An interrupt half-way is raised after the copying is complete; if it cannot be completed,
        leases are refused until a later publish is. Raises Conflict or WeightsChangedOutside,
        changing nothing, if another version was published since or a tensor changed its shape.
        """
        with self._gate.write():
            if prepared.base != self._published:
                raise Conflict("another version was published after this one was prepared")
            refuse([n for n in prepared.tensors if self._respecified(n)])
            counted = self._counted(prepared.tensors)
            self._torn = True
            try:
                self._copy_in(prepared.tensors)
            except BaseException:
                # The values are committed and a mixture must not be seen: finish, then raise.
                self._copy_in(prepared.tensors)
                self._published_as(seq, digest, counted)
                raise
            self._published_as(seq, digest, counted)

    @contextlib.contextmanager
    def lease(self) -> Iterator[LeasedModule]:
        """Hold the module still; updates wait until the lease is given back."""
        with self._gate.read():
            if self._torn:
                raise WeightsMismatch("an update was written half-way; publish the state again")
            if self._state is None:
                raise unpublished()
            yield LeasedModule(self._module, *self._state)

    def held_versions(self) -> int:
        """None: there is one version, and publishing waits for who holds it."""
        return 0

    def wait_for_readers(self, most: int, timeout_s: float) -> bool:
        """True at once: no past version takes memory."""
        return True

    def _copy_in(self, new: Mapping[str, torch.Tensor]) -> None:
        live = self._naming.tensors
        settle(live[name] for name in new)
        with torch.inference_mode(False), torch.no_grad():
            for name, tensor in new.items():
                live[name].copy_(tensor)
            parametrised.forget()
        settle(live[name] for name in new)

    def _published_as(self, seq: int, digest: bytes, counted: Collection[str]) -> None:
        self._counters = self._counters.replaced(self._naming.tensors, counted)
        self._state = (seq, digest)
        self._published += 1
        self._torn = False

    def _counted(self, new: Mapping[str, torch.Tensor]) -> list[str]:
        """The tensors whose counts go up when these are written; not what was written outside."""
        beside = {other for name in new for other in self._sharing.get(name, ())} - new.keys()
        return [*new, *(beside - set(self._counters.changed(beside)))]

    def _homes_of(self, module: nn.Module) -> Mapping[str, list[_Home]]:
        """Where each tensor lives, under its own name and those that are tied to it."""
        homes: dict[str, list[_Home]] = {name: [] for name in self._naming.tensors}
        for name, table, key in naming.homes(module):
            homes[self._naming.aliases.get(name, name)].append((name, table, key))
        return homes

    def _replaced(self, names: Iterable[str]) -> list[str]:
        return [
            own
            for name in names
            for own, table, key in self._homes[name]
            if key not in table or table[key] is not self._naming.tensors[name]
        ]

    def _respecified(self, name: str) -> bool:
        tensor, spec = self._naming.tensors[name], self._naming.specs[name]
        return tuple(tensor.shape) != spec.shape or tensor.dtype != torch_dtype(spec)


def _sharing(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, Collection[str]]:
    """The tensors in one storage, by each of them: writing one may count for all."""
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        groups[tensor.untyped_storage()._cdata].append(name)
    return {name: group for group in groups.values() if len(group) > 1 for name in group}


def _require_writable(name: str, tensor: torch.Tensor) -> None:
    if tensor.is_inference():
        raise UnsupportedModel(
            f"tensor {name!r} was made in inference mode and cannot be written; use TorchEngine",
            param=name,
        )
    if any(n > 1 and s == 0 for n, s in zip(tensor.shape, tensor.stride(), strict=True)):
        raise UnsupportedModel(
            f"tensor {name!r} repeats elements (it is expanded) and cannot be written; "
            "give the module a contiguous copy",
            param=name,
        )
