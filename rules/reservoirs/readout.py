"""Readouts of a reservoir: the linear map from states to targets.

Ridge regression takes all samples at once; `Rls` (`library.rls`) takes them as they come and, with
no forgetting and `alpha` the ridge penalty, ends at the same weights.
"""

import torch

from weightledger.rules.errors import RuleError
from weightledger.rules.ranges import number


def with_bias(states: torch.Tensor) -> torch.Tensor:
    """States [samples, features] with a column of ones after the last."""
    return torch.cat([states, states.new_ones(len(states), 1)], dim=1)


def ridge(states: torch.Tensor, targets: torch.Tensor, alpha: float) -> torch.Tensor:
    """W [targets, features] that minimises ‖Y − X Wᵀ‖² + alpha ‖W‖², solved in float64.

    `states` X is [samples, features], `targets` Y [samples, targets]; the result has the dtype of
    the states. With alpha = 0 it is the least squares solution of least norm.
    """
    if states.ndim != 2 or targets.ndim != 2 or len(states) != len(targets) or not len(states):
        raise RuleError(
            "states are [samples, features] and targets [samples, targets] of as many samples, "
            f"got {tuple(states.shape)} and {tuple(targets.shape)}"
        )
    alpha = number("alpha", alpha)
    if not alpha >= 0:
        raise RuleError(f"alpha must not be negative, got {alpha}", param="alpha")
    x, y = states.double(), targets.double()
    if alpha == 0:
        least: torch.Tensor = torch.linalg.pinv(x) @ y
        return least.mT.to(states.dtype)
    # The stacked system keeps the digits that forming XᵀX would lose.
    features = x.shape[1]
    penalty = torch.eye(features, dtype=x.dtype, device=x.device).mul_(alpha**0.5)
    orthogonal, upper = torch.linalg.qr(torch.cat([x, penalty]))
    projected = orthogonal[: len(x)].mT @ y
    solution: torch.Tensor = torch.linalg.solve_triangular(upper, projected, upper=True)
    return solution.mT.to(states.dtype)
