"""A model that changed elsewhere, checked before it is recorded."""

from collections.abc import Mapping, Set

import torch

from weightledger.ledger.codecs.on_device import same_bits
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.tensors.lanes import require_tensors, spec_of
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing.caller import ANYONE, Caller
from weightledger.ledger.writing.commands import Record

# What wrappers put into the names of the modules they hold: torch.compile, FSDP and activation
# checkpointing wherever they stand; DataParallel, DDP and AveragedModel (EMA) around the whole.
_INSIDE = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_AROUND = "module"


def record_command(
    source: torch.nn.Module | Mapping[str, torch.Tensor],
    specs: Mapping[str, TensorSpec],
    first_names: Mapping[str, str],
    caller: Caller = ANYONE,
    metadata: str | None = None,
) -> Record:
    """The command that records a module or a state dict, by the names of the ledger's model.

    `specs` and `first_names` are the model's (see `require_same_tensors`). Of a wrapped module the
    wrapper's part of each name is taken off, and `Record.unwrapped` says which.
    """
    require_tensors(source)
    tensors = source.state_dict() if isinstance(source, torch.nn.Module) else source
    recorded, unwrapped = tensors_of(tensors, specs, first_names)
    return Record(recorded, caller, metadata, unwrapped)


def tensors_of(
    tensors: Mapping[str, torch.Tensor],
    specs: Mapping[str, TensorSpec],
    first_names: Mapping[str, str],
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The model's tensors by its names, and what a wrapper had put into theirs.

    Raises as `require_same_tensors` does.
    """
    unwrapped: tuple[str, ...] = ()
    wanted = specs.keys() | first_names.keys()
    if not specs.keys() <= tensors.keys() <= wanted:
        tensors, unwrapped = unwrapped_names(tensors, wanted)
    require_same_tensors(tensors, specs, first_names)
    return {name: tensors[name] for name in specs}, unwrapped


def unwrapped_names(
    tensors: Mapping[str, torch.Tensor], wanted: Set[str]
) -> tuple[Mapping[str, torch.Tensor], tuple[str, ...]]:
    """The tensors by the names that are wanted, and what was taken out of theirs.

    Either side may be of a wrapped module: the ledger's model is named as it was registered.
    """
    ours = {_split(name)[0]: name for name in wanted}
    split = {name: _split(name) for name in tensors}
    if len(ours) < len(wanted) or len({bare for bare, _ in split.values()}) < len(split):
        return tensors, ()  # without the wrappers' parts two names would be one
    parts = tuple(dict.fromkeys(part for bare, part in split.values() if part and bare in ours))
    around = any(f"{_AROUND}." in part for part in parts)
    renamed: dict[str, torch.Tensor] = {}
    for name, (bare, part) in split.items():
        if bare in ours:
            renamed[ours[bare]] = tensors[name]
        elif not around or f"{_AROUND}." in part:
            renamed[name] = tensors[name]
        # Else it is the wrapper's own, such as AveragedModel's n_averaged.
    return renamed, parts


def _split(name: str) -> tuple[str, str]:
    """A name without what wrappers put into it, and that part of it."""
    kept: list[str] = []
    taken: list[str] = []
    for part in name.split("."):
        wrapper = part in _INSIDE or (part == _AROUND and not kept)
        (taken if wrapper else kept).append(part)
    return ".".join(kept), "".join(f"{part}." for part in taken)


def require_same_tensors(
    tensors: Mapping[str, torch.Tensor],
    specs: Mapping[str, TensorSpec],
    first_names: Mapping[str, str],
) -> None:
    """Raise unless `tensors` are the model's: its names, dtypes and shapes, and its ties.

    `first_names` maps the further names of tied tensors to the first. Raises NotFound for what is
    missing and InvalidRequest for everything else, naming the tensor.
    """
    missing = sorted(specs.keys() - tensors.keys())
    if missing:
        raise NotFound(f"the recorded model lacks {', '.join(missing)}{_hint(tensors, missing)}")
    extra = sorted(tensors.keys() - specs.keys() - first_names.keys())
    if extra:
        raise InvalidRequest(f"the ledger's model has no {', '.join(extra)}", param=extra[0])
    for name, spec in specs.items():
        got = spec_of(name, tensors[name])
        if got != spec:
            raise InvalidRequest(
                f"tensor {name!r} is {spec.dtype} {spec.shape}, got {got.dtype} {got.shape}",
                param=name,
            )
    for alias, first in first_names.items():
        spec = specs[first]
        tied = tensors.get(alias)
        if tied is not None and (
            spec_of(first, tied) != spec or not same_bits(tied, tensors[first])
        ):
            raise InvalidRequest(
                f"{alias!r} is tied to {first!r}, but holds other values", param=alias
            )


def _hint(tensors: Mapping[str, torch.Tensor], missing: list[str]) -> str:
    """What to take off the names, where all that is missing is there behind one prefix."""
    for name in tensors:
        prefix = name.removesuffix(missing[0])
        if prefix != name and all(prefix + one in tensors for one in missing):
            return f"; they are there behind the prefix {prefix!r}: record what is inside of it"
    return ""
