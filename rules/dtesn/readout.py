"""A reservoir's states as the input of a readout."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from weightledger.rules.dtesn import state as places
from weightledger.rules.dtesn.config import DTESNLearningConfig
from weightledger.rules.dtesn.described import digests
from weightledger.rules.errors import RuleError
from weightledger.rules.reservoirs import TreeReservoir, with_bias


@dataclass(frozen=True, slots=True)
class Derived:
    """Activities that only the newest state gives, and what to keep beside the rule's state."""

    activities: Mapping[str, torch.Tensor]
    keep: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Readout:
    """What drives a reservoir in one call: `inputs` [time, inputs]."""

    reservoir: TreeReservoir
    seed: int
    inputs: torch.Tensor

    @property
    def facts(self) -> dict[str, Any]:
        """What an event says of it."""
        return {
            "inputs": digests({"inputs": self.inputs})["inputs"],
            "reservoir": asdict(self.reservoir),
            "seed": self.seed,
        }

    def derive(self, held: Mapping[str, torch.Tensor], weight: torch.Tensor) -> Derived:
        """x [time, in], the states from where the stream left the reservoir, and the last state."""
        size = self.reservoir.reservoir_size
        if weight.ndim != 2 or weight.shape[1] not in (size, size + 1):
            raise RuleError(
                f"the readout of {size} neurons is [out, {size}] or, with a bias, "
                f"[out, {size + 1}]; the parameter is {tuple(weight.shape)}",
                param="parameter_name",
            )
        weights = self.reservoir.weights(self.seed, weight.dtype, weight.device)
        start = held.get(places.RESERVOIR)
        driven = self.inputs.to(weight.device, weight.dtype)
        states = self.reservoir.run(
            weights, driven, None if start is None else start.to(weight.device)
        )
        x = states if weight.shape[1] == size else with_bias(states)
        return Derived({"x": x}, {places.RESERVOIR: states[-1].clone()})


def driven_by(inputs: torch.Tensor, config: DTESNLearningConfig) -> Readout:
    """The configured reservoir, driven by `inputs`; RuleError unless they are [time, inputs]."""
    if inputs.ndim != 2:
        raise RuleError(f"inputs are [time, inputs], got {tuple(inputs.shape)}", param="inputs")
    reservoir = TreeReservoir(config.reservoir_size, inputs.shape[1])
    return Readout(reservoir, config.reservoir_seed, inputs)
