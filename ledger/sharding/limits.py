"""What ranks refuse: values that are no numbers, and steps that are too long.

Judged by what each rank knows of its own part, put together: no rank has the model. All come to the
same verdict, since all are told the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.sharding.encoding import Encoded
from weightledger.ledger.tensors.spec import WEIGHTS
from weightledger.ledger.writing.policy import Policy, Verdict

_MOST_NAMES = 8


@dataclass(frozen=True, slots=True)
class ShardLimits:
    """What a recorded change may be.

    With `finite` no changed tensor has NaN or infinities afterwards. `max_norm` is the greatest L2
    norm of all differences together; None is any. InvalidRequest for one that is not above 0.
    """

    finite: bool = True
    max_norm: float | None = None

    def __post_init__(self) -> None:
        if self.max_norm is not None and not self.max_norm > 0:
            raise InvalidRequest(
                f"max_norm must be above 0, got {self.max_norm!r}", param="max_norm"
            )


def require_possible(policy: Policy) -> None:
    """Raise InvalidRequest for a policy that ranks cannot follow."""
    if policy.guard is not None:
        raise InvalidRequest(
            "a guard judges the whole model, which no rank has: give limits instead", param="policy"
        )
    if policy.prepare is not None:
        raise InvalidRequest(
            "replicas cannot prepare what ranks record: prepare must be none", param="policy"
        )


def require_allowed(policy: Policy) -> None:
    """Raise OperationDisabled where updates are switched off, InvalidRequest under the two-person
    rule: what would be approved is in the ranks' memory alone."""
    policy.require("incremental learning")
    if policy.two_person:
        raise InvalidRequest(
            "what ranks record cannot wait for a second person: under the two-person rule have a"
            " process with the whole model record it"
        )


def not_finite(after: Mapping[str, torch.Tensor], changed: Sequence[str]) -> list[int]:
    """How many values of this rank's part of each changed tensor are NaN or infinite."""
    return [
        int((~torch.isfinite(after[name])).sum()) if _has_such(after[name]) else 0
        for name in changed
    ]


def judged(
    limits: ShardLimits,
    changed: Sequence[str],
    counts: Sequence[Sequence[int]],
    parts: Sequence[Mapping[str, Encoded]],
) -> Verdict:
    """The verdict on what every rank did; `counts` are those of `not_finite`, by rank."""
    told: dict[str, Any] = {"finite": limits.finite, "max_norm": limits.max_norm}
    bad = {
        name.removeprefix(WEIGHTS): count
        for name, count in zip(changed, map(sum, zip(*counts, strict=True)), strict=True)
        if count
    }
    norm = norm_of(changed, parts)
    told["norm"] = norm
    reason = None
    if limits.finite and bad:
        told["not_finite"] = bad
        names = ", ".join(sorted(bad)[:_MOST_NAMES])
        reason = f"{sum(bad.values())} values are NaN or infinite, in {names}"
    elif limits.max_norm is not None and (norm is None or norm > limits.max_norm):
        long = "not finite" if norm is None else f"{norm:.6g}"
        reason = f"the change's norm is {long}, max_norm is {limits.max_norm:g}"
    return Verdict(reason=reason, evidence={"limits": told})


def norm_of(changed: Sequence[str], parts: Sequence[Mapping[str, Encoded]]) -> float | None:
    """The L2 norm of all differences together; None where it is not a finite number."""
    norms = [part[name].norm for name in changed for part in parts]
    finite = [norm for norm in norms if norm is not None]
    norm = math.hypot(*finite) if len(finite) == len(norms) else math.inf
    return norm if math.isfinite(norm) else None


def _has_such(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
