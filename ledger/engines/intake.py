"""New tensors on their way in: checked against the state, then laid out as the live ones are."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from weightledger.ledger.engines.naming import Naming
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.tensors.lanes import check_tensor, name_of


def checked(naming: Naming, new: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`new` as plain tensors without autograd history, sharing memory with what was given.

    Raises InvalidRequest unless each is a tensor of the state, of its dtype and shape.
    """
    taken: dict[str, torch.Tensor] = {}
    for name, tensor in new.items():
        spec = naming.specs.get(name)
        if spec is None:
            first = naming.aliases.get(name)
            hint = f"; it is tied to {first!r}, send that" if first else ""
            raise InvalidRequest(f"the model has no tensor {name!r} of its own{hint}", param=name)
        check_tensor(name, tensor)
        dtype, shape = name_of(tensor.dtype), tuple(tensor.shape)
        if dtype != spec.dtype or shape != spec.shape:
            raise InvalidRequest(
                f"tensor {name!r} is {spec.dtype} {spec.shape}, got {dtype} {shape}",
                param=name,
            )
        taken[name] = _plain(tensor)
    return taken


def like(live: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`new` with the device and strides of `live`, so that kernels compute the same bits."""
    same_layout = new.stride() == live.stride() and not (new.is_conj() or new.is_neg())
    if new.device == live.device and same_layout:
        return new
    return torch.empty_like(live, requires_grad=False).copy_(new)


def as_live(live: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`new` as what `live` is: a Parameter with its requires_grad and attributes, or a tensor."""
    if isinstance(live, nn.Parameter):
        new = nn.Parameter(new, requires_grad=live.requires_grad)
    new.__dict__.update(live.__dict__)
    return new


def counting_writes() -> AbstractContextManager[object]:
    """Within, whoever calls in whatever mode, tensors are made that count what is written to them.

    Entering a mode that is on anyway would be twenty calls of each update.
    """
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def settle(tensors: Iterable[torch.Tensor]) -> None:
    """Wait for accelerators to finish with these: another thread's stream may use them next."""
    for device in {tensor.device for tensor in tensors if tensor.device.type != "cpu"}:
        torch.accelerator.synchronize(device)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_inference():
        # Made in inference mode: it counts no writes and may not become a Parameter's data.
        with torch.inference_mode(False):
            return tensor.clone()
    # `detach` keeps the write counter, so a giver who goes on writing is noticed.
    return tensor.detach()
