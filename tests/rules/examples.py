"""A parameter, activities and a state that fit a rule, drawn from its own description."""

import torch

from weightledger import rules
from weightledger.rules.protocol import ANY_SHAPE, Rule, Shape

SIZES = {"out": 3, "in": 5, "batch": 6, "time": 6}


def sizes_of(shape: Shape, sizes: dict[str, int]) -> list[int]:
    return [size if isinstance(size, int) else sizes[size] for size in shape]


def weight_for(
    rule: Rule | type[Rule],
    dtype: torch.dtype = torch.float64,
    sizes: dict[str, int] = SIZES,
    seed: int = 1,
) -> torch.Tensor:
    """A parameter with values well within (−1, 1)."""
    shape = ("out", "in") if rule.parameter == ANY_SHAPE else rule.parameter
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(sizes_of(shape, sizes), generator=generator, dtype=torch.float64)
    return drawn.mul_(0.6).sub_(0.3).to(dtype)


def activities_for(
    rule: Rule | type[Rule],
    weight: torch.Tensor,
    sizes: dict[str, int] = SIZES,
    seed: int = 2,
) -> dict[str, torch.Tensor]:
    """Values in (−1, 1), and zeros and ones for spikes."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, activity in rule.activities.items():
        shape = weight.shape if activity.shape == ANY_SHAPE else sizes_of(activity.shape, sizes)
        tensor = torch.rand(list(shape), generator=generator, dtype=torch.float64)
        tensor = (tensor < 0.3).double() if "spikes" in name else tensor.mul_(2).sub_(1)
        drawn[name] = tensor.to(weight.dtype)
    return drawn


def used_state(rule: Rule, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A state that is not the initial one, where the rule has any."""
    state = rules.init(rule, weight)
    for seed in (3, 4):
        state = dict(
            rules.propose(rule, weight, activities_for(rule, weight, seed=seed), state).state
        )
    return state
