"""Recursive least squares, FORCE learning: the exact least squares solution, kept up to date."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from weightledger.rules.errors import RuleError
from weightledger.rules.library.lms import SUPERVISED
from weightledger.rules.protocol import MATRIX, Activity, Proposal, Shape
from weightledger.rules.ranges import check_rule

_LARGEST_BLOCK = 256
_TILE = 256
_LARGEST_GROWTH = math.log(100)


@dataclass(frozen=True, slots=True)
class Rls:
    """K = P xᵀ(λ + x P xᵀ)⁻¹, ΔW = (d − y) Kᵀ, P ← (P − K x P)/λ, sample by sample.

    A batch is taken as consecutive samples at once, by the block form of the same formulas, which
    gives the same result; y is the output before the batch. With λ = 1 and W starting at 0 the
    weight after any number of samples equals ridge regression with penalty `alpha` exactly.

    With λ < 1 what is known of a direction fades unless inputs excite it, and P grows there by 1/λ
    a sample, until its numbers lose all digits. So P's eigenvalues are held at `ceiling`/alpha: a
    direction of which so little is known forgets no more, the others go on as they did. It is
    looked at after each block, and acted upon once ‖P‖ (Frobenius) is twice what the bound allows.
    Inputs that excite every direction, with a mean square well above alpha (1 − λ)/`ceiling`, give
    the plain formulas bit for bit. A low ceiling (1: P never beyond its start) is better where the
    memory 1/(1 − λ) is shorter than the inputs are many.

    State: `P` [in, in], always float64 and symmetric, starting at I/alpha. The arithmetic is in
    float64; the delta is rounded once to the weight's dtype. The memory is in², not that of W.

    Sussillo & Abbott, "Generating coherent patterns of activity from chaotic neural networks",
    Neuron 63, 2009, equations 4–5; λ after Haykin, "Adaptive Filter Theory", chapter 10. The bound
    is selective forgetting, Parkum, Poulsen & Holst, "Recursive forgetting algorithms", Int. J.
    Control 55, 1992: a λ for each eigenvector of P, 1 where its eigenvalue would grow too large.
    Raises RuleError if rounding made P lose positive definiteness.
    """

    id: ClassVar[str] = "rls"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Sussillo & Abbott 2009: recursive least squares, FORCE"
    parameter: ClassVar[Shape] = MATRIX
    activities: ClassVar[Mapping[str, Activity]] = SUPERVISED

    alpha: float = 1.0
    forgetting: float = 1.0
    ceiling: float = 100.0

    def __post_init__(self) -> None:
        check_rule(
            self,
            positive=["alpha"],
            fraction=["forgetting"],
            finite=["ceiling"],
            at_least={"ceiling": 1},
        )

    def init(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """`P` [in, in] = I/alpha, float64."""
        size = weight.shape[1]
        inverse = torch.zeros(size, size, dtype=torch.float64, device=weight.device)
        inverse.diagonal().fill_(1 / self.alpha)
        return {"P": inverse}

    def propose(
        self,
        weight: torch.Tensor,
        activities: Mapping[str, torch.Tensor],
        state: Mapping[str, torch.Tensor],
    ) -> Proposal:
        """The step; see the class."""
        x = activities["x"].double()
        error = activities["target"].double() - activities["y"].double()
        metrics = {"squared_error": float(error.square().mean())}
        inverse = state["P"]
        delta = x.new_zeros(weight.shape)
        block = self._block()
        for first in range(0, len(x), block):
            inputs = x[first : first + block]
            gain, inverse = _absorb(inverse, inputs, self.forgetting)
            if self.forgetting < 1:
                inverse = _bounded(inverse, self.ceiling / self.alpha)
            missing = error[first : first + block] - inputs @ delta.mT
            delta.addmm_(missing.mT, gain.mT)
        return Proposal(delta.to(weight.dtype), {"P": inverse}, metrics)

    def _block(self) -> int:
        """Samples that are taken at once: λ^−block stays small, or it would cost digits."""
        if self.forgetting == 1:
            return _LARGEST_BLOCK
        return min(_LARGEST_BLOCK, 1 + int(_LARGEST_GROWTH / -math.log(self.forgetting)))


def _absorb(
    inverse: torch.Tensor, x: torch.Tensor, forgetting: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gain [in, samples] of the samples x, and the next P.

    With sample i of B weighing λ^(B−i), the next P is (λ^B P⁻¹ + Σ λ^(B−i) x xᵀ)⁻¹, by the
    Woodbury identity.
    """
    count = len(x)
    growth = forgetting**-count
    ages = torch.arange(count - 1, -1, -1, dtype=x.dtype, device=x.device)
    spread = (inverse @ x.mT).mul_(growth)
    inner = x @ spread
    inner.diagonal().add_(forgetting**-ages)
    lower, failed = torch.linalg.cholesky_ex(inner)
    if int(failed):
        raise RuleError(
            "P of rls is no longer positive definite: start it again with rules.init, with a "
            "larger alpha or forgetting"
        )
    root = torch.linalg.solve_triangular(lower.mT, spread, upper=True, left=False)
    gain = torch.linalg.solve_triangular(lower, root, upper=False, left=False)
    after = torch.addmm(inverse, root, root.mT, beta=growth, alpha=-1)
    _symmetrise(after)
    return gain, after


def _bounded(inverse: torch.Tensor, largest: float) -> torch.Tensor:
    """P with no eigenvalue above `largest`, looked at once its norm is twice what that allows."""
    allowed = largest * len(inverse) ** 0.5
    if float(torch.linalg.matrix_norm(inverse)) <= 2 * allowed:
        return inverse
    values, vectors = torch.linalg.eigh(inverse)
    excess = (values - largest).clamp_(min=0)
    after = torch.addmm(inverse, vectors * excess, vectors.mT, alpha=-1)
    _symmetrise(after)
    return after


def _symmetrise(matrix: torch.Tensor) -> None:
    """(M + Mᵀ)/2 in place, tile by tile: a whole second matrix would cost more than the update."""
    size = len(matrix)
    for top in range(0, size, _TILE):
        rows = slice(top, top + _TILE)
        for left in range(0, top + 1, _TILE):
            columns = slice(left, left + _TILE)
            mean = (matrix[rows, columns] + matrix[columns, rows].mT).mul_(0.5)
            matrix[rows, columns] = mean
            matrix[columns, rows] = mean.mT
