"""Building versions of a module: its structure copied, its tensors shared or replaced.

`copy.deepcopy` with a memo that maps each tensor to the one to use keeps hooks, plain lists of
submodules, ties and parametrisations right, because it copies the object graph as it is. Copies are
taken from a private template that no reader ever runs, whose state is stand-ins without data. So is
the first version; later ones copy only what leads to what changed (see `line`).
"""

import copy
import sys
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

from weightledger.ledger.engines import object_graph, parametrised
from weightledger.ledger.engines.intake import as_live
from weightledger.ledger.engines.line import Line
from weightledger.ledger.engines.naming import Naming, of_module, span
from weightledger.ledger.engines.scratch import scratches
from weightledger.ledger.errors import UnsupportedModel
from weightledger.ledger.tensors.memory import empty

_CONTAINERS = (OrderedDict, dict, list, set)


class Skeleton:
    """The structure of a module, as it was when this was made, in eval mode.

    Tensors that are not part of the state (non-persistent buffers, plain attributes) are copied
    once here and shared by all versions. Raises UnsupportedModel, naming the submodule, for a
    module whose copies would not stand alone.
    """

    def __init__(self, module: nn.Module, naming: Naming) -> None:
        _refuse_kinds(module)
        with torch.inference_mode(False), torch.no_grad():
            self._stand_ins = {name: stand_in(t) for name, t in naming.tensors.items()}
            memo: dict[int, object] = {
                id(naming.tensors[name]): made for name, made in self._stand_ins.items()
            }
            memo |= _constants(module, naming)
            self._template = _copy(module, memo).eval()
            parametrised.uncached(self._template)
        self._shared: dict[int, torch.Tensor] = {}
        self._empty: list[nn.Module | object] = []
        self._survey(module, naming)
        self._try(naming)

    def line(self, tensors: Mapping[str, torch.Tensor]) -> Line:
        """Versions that start with these tensors, one for every name of the state."""
        scratch = scratches(self._template)
        return Line(self._template, self._stand_ins, self._paired, tensors, scratch)

    def build(self, tensors: Mapping[str, torch.Tensor], *, share: bool = True) -> nn.Module:
        """A module with these tensors, one for every name of the state.

        With `share` its other tensors, which forwards may write to, are those of all versions.
        """
        return self._paired(tensors, share)[0]

    def replica(self, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        """A module with the values of these tensors, which shares nothing with any other."""
        with torch.inference_mode(False), torch.no_grad():
            own = {name: as_live(t, _separate(t)) for name, t in tensors.items()}
            return self._paired(own, False)[0]

    def _paired(
        self, tensors: Mapping[str, torch.Tensor], share: bool = True
    ) -> tuple[nn.Module, dict[int, object]]:
        """A copy of the template, and of what it was paired with what; with `share` tensors that
        are not of the state are those of all versions."""
        memo: dict[int, object] = dict(self._shared)
        if not share:
            memo = {key: as_live(t, t.detach().clone()) for key, t in self._shared.items()}
        for name, stand_in in self._stand_ins.items():
            memo[id(stand_in)] = tensors[name]
        # Most of a module's attributes are empty tables of hooks, which deepcopy takes long over.
        for container in self._empty:
            memo[id(container)] = type(container)()
        made: nn.Module = copy.deepcopy(self._template, memo)
        return made, memo

    def _survey(self, module: nn.Module, naming: Naming) -> None:
        """Find what versions may share, and refuse links from the template to the original."""
        originals: dict[int, object] = {id(t): t for t in naming.tensors.values()}
        names = {id(part): name for name, part in module.named_modules()}
        originals |= {id(part): part for part in module.modules()}
        stand_ins = {id(empty) for empty in self._stand_ins.values()}
        for found in object_graph.walk(self._template, originals):
            value = found.value
            if id(value) in originals:
                child = found.attribute == "_modules"
                raise _refused(
                    names[id(value)] if child else found.submodule,
                    f"would go on using the old weights through {found.attribute!r}, which "
                    "captures a module or tensor of the model",
                )
            if isinstance(value, torch.Tensor) and id(value) not in stand_ins:
                self._shared[id(value)] = value
            elif isinstance(value, nn.Module):
                self._empty += [
                    held
                    for held in value.__dict__.values()
                    if type(held) in _CONTAINERS and not held
                ]

    def _try(self, naming: Naming) -> None:
        """Build once: each name must lead to its tensor, and nothing back to the template."""
        made = self.build(naming.tensors)
        inside: dict[int, object] = {id(s): s for s in self._stand_ins.values()}
        inside |= {id(part): part for part in self._template.modules()}
        for found in object_graph.walk(made, inside):
            if id(found.value) in inside:
                raise _refused(found.submodule, f"shares {found.attribute!r} between its copies")
        got = of_module(made)
        lost = [name for name, t in naming.tensors.items() if got.tensors.get(name) is not t]
        if lost or got.aliases != naming.aliases:
            where = (lost or list(got.aliases))[0].rpartition(".")[0]
            raise _refused(where, f"makes tensors of its own when copied ({', '.join(lost[:4])})")


def own(naming: Naming) -> dict[str, torch.Tensor]:
    """Tensors on the same memory as the state's, that `module.to` or `.data =` leave alone."""
    with torch.inference_mode(False):
        return {
            name: as_live(t, t.clone() if t.is_inference() else t.detach())
            for name, t in naming.tensors.items()
        }


def _separate(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in memory of its own, laid out alike."""
    if tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj():
        return empty(tuple(tensor.shape), tensor.dtype).copy_(tensor)
    return torch.empty_like(tensor, requires_grad=False).copy_(tensor)


def stand_in(live: torch.Tensor) -> torch.Tensor:
    """A tensor of that shape, dtype, device and kind that takes no memory."""
    one = torch.zeros((), dtype=live.dtype, device=live.device)
    return as_live(live, one.expand(live.shape))


def _constants(module: nn.Module, naming: Naming) -> dict[int, object]:
    """Copies of the tensors a module reaches that are not its state, by id of the original."""
    state = {id(t) for t in naming.tensors.values()}
    taken = sorted((*span(t), name) for name, t in naming.tensors.items() if t.numel())
    copies: dict[int, object] = {}
    for found in object_graph.walk(module, {}):
        value = found.value
        if type(value) not in (torch.Tensor, nn.Parameter) or id(value) in state:
            continue
        if value.layout is not torch.strided or value.is_meta:
            continue
        device, start, stop = span(value)
        for other, first, last, name in taken:
            if other == device and start < last and first < stop:
                raise _refused(
                    found.submodule, f"keeps a view of tensor {name!r} in {found.attribute!r}"
                )
        copies[id(value)] = as_live(value, value.detach().clone())
    return copies


def _copy(module: nn.Module, memo: Mapping[int, object]) -> nn.Module:
    try:
        made: nn.Module = copy.deepcopy(module, dict(memo))
    except Exception as error:
        raise _refused(_culprit(module, memo), f"cannot be copied ({error})") from error
    return made


def _culprit(module: nn.Module, memo: Mapping[int, object]) -> str:
    """Name of the innermost submodule that cannot be copied by itself."""
    named: list[tuple[str, nn.Module]] = list(module.named_modules())
    for name, part in reversed(named):
        try:
            copy.deepcopy(part, dict(memo))
        except Exception:  # noqa: BLE001  (a model's own code runs here)
            return name
    return ""


def _refuse_kinds(module: nn.Module) -> None:
    # Importing the compiler takes a second and a half, and who wrapped a module by it has done so.
    compiler = sys.modules.get("torch._dynamo")
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise _refused(name, "is a ScriptModule, whose copies keep tensors of their own")
        if compiler is not None and isinstance(part, compiler.OptimizedModule):
            raise _refused(
                name, "is wrapped by torch.compile, whose copies compile anew; give what it wraps"
            )


def _refused(submodule: str, why: str) -> UnsupportedModel:
    where = f"submodule {submodule!r}" if submodule else "the module"
    return UnsupportedModel(
        f"{where} {why}, so its versions cannot stand side by side; use InplaceEngine, which "
        "writes into the module itself"
    )
