"""The guards' word on what came of a request."""

from dataclasses import replace
from typing import Any

import torch

from weightledger import Staged, Verdict
from weightledger.rules.checking import is_finite, moved
from weightledger.rules.dtesn import state as places
from weightledger.rules.dtesn.config import DTESNLearningConfig
from weightledger.rules.dtesn.ground import Ground
from weightledger.rules.dtesn.learner import Passes, Taught
from weightledger.rules.dtesn.request import LearningRequest
from weightledger.rules.guards import Consolidation, Guards, judge
from weightledger.rules.library.ewc import Ewc
from weightledger.rules.library.homeostasis import SynapticScaling
from weightledger.rules.protocol import Proposal


def judged(
    staged: Staged,
    request: LearningRequest,
    config: DTESNLearningConfig,
    guards: Guards,
    ground: Ground,
    taught: Taught,
    passes: Passes,
    rate: float | None,
) -> tuple[torch.Tensor, Verdict]:
    """The weight's new value, and what the guards say of it."""
    if guards.ewc is None:
        guards = replace(guards, ewc=_consolidation(staged, request, config, ground, rate))
    state = {**taught.state, **{f"{SynapticScaling.id}.{n}": t for n, t in taught.scaling.items()}}
    judgement = judge(guards, ground.weight, Proposal(taught.delta, state, taught.metrics))
    evidence: dict[str, Any] = {"guards": dict(judgement.evidence)}
    reason, by = judgement.reason, judgement.refused_by
    if passes.gate is not None and taught.tally is not None:
        evidence["gate"] = taught.tally.evidence()
        if reason is None and (reason := taught.tally.refusal(passes.gate)) is not None:
            by = "gate"
    after = moved(ground.weight, judgement.delta).to(ground.stored)
    if reason is None and not is_finite(after):
        reason, by = (
            f"the result does not fit {str(ground.stored).removeprefix('torch.')}",
            "result",
        )
    if reason is not None:
        evidence["refused_by"] = by
        return after, Verdict(reason=f"Automatic rollback: {by}: {reason}", evidence=evidence)
    return after, Verdict(evidence=evidence)


def _consolidation(
    staged: Staged,
    request: LearningRequest,
    config: DTESNLearningConfig,
    ground: Ground,
    rate: float | None,
) -> Consolidation | None:
    """EWC, once something of this parameter was consolidated."""
    prefix = places.place(request.parameter, places.CONSOLIDATION)
    held = places.under(staged.live.auxiliary, prefix)
    if not held:
        return None
    eta = config.learning_rate if rate is None else rate
    rule = Ewc(eta, config.ewc_lambda, config.fisher_decay)
    return Consolidation(rule, {n: t.to(ground.weight.device) for n, t in held.items()})
