"""Whether what got better is more than chance."""

import math

import torch

_MOST_COUNTED = 1000


def sign_test(successes: int, failures: int) -> float:
    """P(at least `successes` of as many fair coin tosses as both together), one-sided.

    Exact by counting up to 1000 tosses; beyond, the same sum by logarithms of the gamma function,
    to nine digits.
    """
    tosses = successes + failures
    if tosses <= _MOST_COUNTED:
        ways = sum(math.comb(tosses, heads) for heads in range(successes, tosses + 1))
        return ways / (1 << tosses)
    heads = torch.arange(successes, tosses + 1, dtype=torch.float64)
    log_ways = math.lgamma(tosses + 1) - torch.lgamma(heads + 1) - torch.lgamma(tosses - heads + 1)
    return min(1.0, float((log_ways - tosses * math.log(2)).exp().sum()))
