"""Whether what came back is what was recorded."""

import numpy as np

from benchmarks.storage.workloads import State
from weightledger.ledger.tensors.lanes import lanes


def require_same(restored: State, recorded: State, who: str) -> None:
    """End the run unless all tensors are equal bit for bit."""
    if restored.keys() != recorded.keys():
        raise SystemExit(f"{who} restored other tensors than were recorded")
    for name, tensor in recorded.items():
        if not np.array_equal(lanes(restored[name]), lanes(tensor)):
            raise SystemExit(f"{who} restored other bits of {name} than were recorded")


def copied(state: State) -> State:
    """The state as it is now."""
    return {name: tensor.clone() for name, tensor in state.items()}
