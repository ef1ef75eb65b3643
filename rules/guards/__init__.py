"""What stands between a proposal and the model: six guards, in one fixed order.

finite → norm → EWC → bounds → trust region → shadow score. A guard is a frozen dataclass, its
config, and a pure function from the live weight and a proposal to a finding: the delta to go on
with (possibly shortened), what was measured, and the reason if it refuses. `judge` runs those
that are configured; the first refusal ends it, and all evidence so far is kept. Evidence is plain
JSON without NaN or infinity, so that an event can record it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from weightledger.rules.guards.answers import ShadowScore, TrustRegion
from weightledger.rules.guards.finding import Finding, Guard
from weightledger.rules.guards.steps import Bounds, Consolidation, Finite, NormLimit
from weightledger.rules.protocol import Proposal

__all__ = [
    "Bounds",
    "Consolidation",
    "Finding",
    "Finite",
    "Guard",
    "Guards",
    "Judgement",
    "NormLimit",
    "ShadowScore",
    "TrustRegion",
    "judge",
]


@dataclass(frozen=True, slots=True)
class Guards:
    """The guards to run, in the order of the fields; None leaves one out."""

    finite: Guard | None = field(default_factory=Finite)
    norm: Guard | None = field(default_factory=NormLimit)
    ewc: Guard | None = None
    bounds: Guard | None = None
    trust_region: Guard | None = None
    shadow: Guard | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """The delta to apply unless `reason` refuses, and what each guard that ran found, by name.

    `refused_by` names the guard that refused.
    """

    delta: torch.Tensor
    evidence: Mapping[str, Mapping[str, Any]]
    reason: str | None = None
    refused_by: str | None = None


def judge(guards: Guards, weight: torch.Tensor, proposal: Proposal) -> Judgement:
    """Run the guards over a proposal; the first refusal stops."""
    evidence: dict[str, Mapping[str, Any]] = {}
    delta = proposal.delta
    for name in (place.name for place in fields(guards)):
        guard: Guard | None = getattr(guards, name)
        if guard is None:
            continue
        finding = guard(weight, Proposal(delta, proposal.state, proposal.metrics))
        evidence[name] = finding.evidence
        if finding.reason is not None:
            return Judgement(delta, evidence, finding.reason, name)
        delta = finding.delta
    return Judgement(delta, evidence)
