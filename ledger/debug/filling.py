"""A state of the past in a module of this process, to try out beside what is served."""

from collections.abc import Iterable, Mapping

import torch

from weightledger.ledger.debug.walking import ReplayedState
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing.recording import record_command


def fill(
    module: torch.nn.Module,
    state: ReplayedState,
    specs: Mapping[str, TensorSpec],
    first_names: Mapping[str, str],
    live: Iterable[torch.Tensor],
) -> None:
    """Give a module the weights of a state, bit for bit; its other tensors stay as they are.

    `specs` and `first_names` are the model's, `live` its live tensors, which only the ledger writes
    to: InvalidRequest for a module that holds them. Of a wrapped module (DDP, `torch.compile`) the
    wrapper's part of each name is taken off. NotFound or InvalidRequest, and nothing is written,
    for a module with other names, dtypes or shapes.
    """
    # What would be recorded of it are the very tensors that are to be written.
    targets = record_command(module, specs, first_names).tensors
    served = {_memory(tensor) for tensor in live}
    own = {_memory(tensor) for tensor in (*module.parameters(), *module.buffers())}
    for name, target in targets.items():
        if not target.numel():
            continue
        if _memory(target) not in own:
            raise InvalidRequest(
                f"the state_dict of this {type(module).__name__} gives {name!r} as a copy, so it "
                "cannot be written to; give the module that it wraps",
                param="module",
            )
        if _memory(target) in served:
            raise InvalidRequest(
                f"this module is the live one: its {name!r} is what is served. Roll back instead, "
                "or give a copy of the module",
                param="module",
            )
    weights = state.weights
    with torch.inference_mode(False), torch.no_grad():
        for name, target in targets.items():
            target.copy_(weights[name])


def _memory(tensor: torch.Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()
