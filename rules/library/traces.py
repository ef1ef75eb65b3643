"""Exponential traces over a window of time steps, as one small matrix product.

A trace is x̄_t = λ·x̄_{t−1} + s_t. Over a window of T rows that is x̄ = L·s + (λ¹ … λᵀ)ᵀ x̄₀ with
L[t, s] = λ^(t−s) below the diagonal: the same numbers as step by step, up to rounding, without T
passes over memory.
"""

import math

import torch

# Windows are taken in pieces of this many steps: L is quadratic in them.
_PIECE = 64


def decay(dt: float, tau: float) -> float:
    """The factor e^(−dt/τ) of one step; both in the same unit of time."""
    return math.exp(-dt / tau)


def filtered(
    signal: torch.Tensor, start: torch.Tensor, factor: float, gain: float = 1.0
) -> torch.Tensor:
    """The trace after each row: y_t = factor·y_{t−1} + gain·signal_t, y₀ = `start`.

    `signal` is [time, …], `start` […]; the result is [time, …]. The last row is the next start.
    """
    time = signal.shape[0]
    rows = signal.reshape(time, -1)
    result = torch.empty_like(rows)
    before = start.reshape(-1)
    powers = _powers(min(time, _PIECE), factor, signal)
    lower = _lower_triangle(powers)
    for first in range(0, time, _PIECE):
        piece = rows[first : first + _PIECE]
        count = piece.shape[0]
        out = result[first : first + count]
        torch.mul(powers[1 : count + 1, None], before, out=out)
        out.addmm_(lower[:count, :count], piece, alpha=gain)
        before = out[-1]
    return result.reshape(signal.shape)


def discounted_sums(signal: torch.Tensor, factor: float) -> torch.Tensor:
    """Σ_{t≥s} factor^(t−s)·signal_t for each s: the filter run backwards, from zero."""
    backwards = filtered(signal.flip(0), torch.zeros_like(signal[0]), factor)
    return backwards.flip(0)


def delayed(trace: torch.Tensor, start: torch.Tensor, factor: float) -> torch.Tensor:
    """The trace at each step after it decayed and before that step's spikes were added."""
    before = torch.empty_like(trace)
    torch.mul(start, factor, out=before[0])
    torch.mul(trace[:-1], factor, out=before[1:])
    return before


def _powers(count: int, factor: float, like: torch.Tensor) -> torch.Tensor:
    """factor⁰ … factor^count."""
    values = [factor**n for n in range(count + 1)]
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def _lower_triangle(powers: torch.Tensor) -> torch.Tensor:
    """L[t, s] = factor^(t−s) where s ≤ t, else 0."""
    steps = torch.arange(powers.shape[0] - 1, device=powers.device)
    return powers[(steps[:, None] - steps).clamp(min=0)].tril()
