"""What is compared: every way in which the last layer may learn."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from weightledger.rules import RULES, config_of

FACTORS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
"""Learning rates that are tried, as multiples of the rule's default."""

PEER_RATES = (0.001, 0.01, 0.1, 1.0)

# Two neighbouring samples are 80 ms apart, so little of one's traces is left at the next.
STEP_MS = 20.0

GATED = ", gated"

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "node-perturbation": {"sigma": 0.1},
    "pair-stdp": {"dt_ms": STEP_MS},
    "triplet-stdp": {"dt_ms": STEP_MS},
    "r-stdp": {"dt_ms": STEP_MS, "tau_eligibility_ms": 40.0, "tau_dopamine_ms": 20.0},
    "mstdpet": {"dt_ms": STEP_MS},
}
"""Fields that are not at their defaults."""


@dataclass(frozen=True)
class Way:
    """One line of the table. A way without a `rule` is a peer; `rates` are tried beforehand."""

    name: str
    rule: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    gated: bool = False
    consolidated: bool = False
    parameter: str = "2.weight"

    @property
    def ungated(self) -> str:
        """The name of the same way without a gate."""
        return self.name.removesuffix(GATED)

    @property
    def asks(self) -> bool:
        """Whether the rule shapes a change that is asked for, instead of learning from samples."""
        return self.rule == "thresholds" or str(self.rule).endswith("-delta")


def ways() -> list[Way]:
    """All of them; each gated one follows the same way without a gate."""
    return [*_peers(), *_rules()]


def _peers() -> Iterator[Way]:
    yield Way("frozen")
    yield Way("SGD", rates=PEER_RATES)
    yield Way("river SoftmaxRegression", rates=PEER_RATES)
    yield Way("scikit-learn partial_fit", rates=PEER_RATES)


def _rules() -> Iterator[Way]:
    for rule_id in RULES:
        if rule_id in ("ewc", "intrinsic-plasticity"):
            continue
        if rule_id == "rls":
            yield from _both(Way("rls, λ 1", rule_id))
            yield from _both(Way("rls, λ .995", rule_id, {"forgetting": 0.995}))
            continue
        yield from _both(_plain(rule_id))
    thresholds = replace(_plain("hebbian-delta"), name="feedback thresholds", rule="thresholds")
    yield from _both(thresholds)
    # What the other two rules are for: sparing what was learnt, and moving a bias.
    yield replace(_plain("nlms"), name="nlms, EWC", consolidated=True)
    yield replace(_plain("intrinsic-plasticity"), parameter="2.bias")


def _plain(rule_id: str) -> Way:
    default = config_of(RULES[rule_id]())["learning_rate"]
    rates = tuple(default * factor for factor in FACTORS)
    return Way(rule_id, rule_id, CONFIGS.get(rule_id, {}), rates)


def _both(way: Way) -> Iterator[Way]:
    yield way
    yield replace(way, name=way.name + GATED, gated=True)
