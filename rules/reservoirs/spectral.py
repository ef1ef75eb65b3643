"""The spectral radius of a recurrent matrix: the largest |eigenvalue|, all of them computed.

Power iteration and Rayleigh quotients, often used for it, see real parts of symmetric matrices
only: on a random matrix, whose largest eigenvalues are complex pairs, they scale to a radius half
again as large as asked for.
"""

import torch

from weightledger.rules.errors import RuleError


def spectral_radius(matrix: torch.Tensor) -> float:
    """The largest absolute value of an eigenvalue of a square matrix, computed in float64."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise RuleError(f"a recurrent matrix is square, got {tuple(matrix.shape)}")
    return float(torch.linalg.eigvals(matrix.double()).abs().max())


def scale_to_radius(matrix: torch.Tensor, radius: float) -> torch.Tensor:
    """The matrix scaled to the spectral radius asked for.

    Raises RuleError if its own is 0: a matrix without cycles cannot be scaled to any other.
    """
    own = spectral_radius(matrix)
    if not own > 0:
        raise RuleError(
            "the recurrent matrix has spectral radius 0 and cannot be scaled: raise the density "
            "or the reservoir's size"
        )
    return matrix * (radius / own)
