"""What a learning rule costs beside the matrix product that it contains.

    python -m benchmarks.rules_speed

Each rule proposes for a layer of 768 × 3072 in float32 from a batch of 32, through the checked
door that callers use. Beside it stand the products that its formula contains, on tensors of the
same shapes in the same round; rules without one stand beside copying the parameter once. One
thread, so that waiting for a second one is not counted as a rule's work.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.measure import Report, interleaved
from weightledger import rules
from weightledger.rules.protocol import ANY_SHAPE

OUT, IN, BATCH = 768, 3072, 32
ROUNDS = 11
GOAL = 3.0
SIZES = {"out": OUT, "in": IN, "batch": BATCH, "time": BATCH}


def activities(rule: Any, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the rule wants, random; spikes at 10 %."""
    generator = torch.Generator().manual_seed(1)
    drawn = {}
    for name, activity in rule.activities.items():
        shape = weight.shape if activity.shape == ANY_SHAPE else [SIZES[d] for d in activity.shape]
        tensor = torch.randn(list(shape), generator=generator)
        drawn[name] = (tensor > 1.28).float() if "spikes" in name else tensor * 0.1
    return drawn


def contained(rule_id: str) -> tuple[str, Callable[[], object]]:
    """The products (or the copy) in a rule's formula, and their name."""
    y, x = torch.randn(BATCH, OUT), torch.randn(BATCH, IN)
    y2, x2 = torch.randn(2 * BATCH, OUT), torch.randn(2 * BATCH, IN)
    weight, square = torch.randn(OUT, IN), torch.randn(OUT, OUT)
    if rule_id in ("pair-stdp", "triplet-stdp"):
        return "(out, 2T)(2T, in)", lambda: y2.mT @ x2
    if rule_id in ("r-stdp", "mstdpet"):
        return "2 of (out, 2T)(2T, in)", lambda: (y2.mT @ x2, y2.mT @ x2)
    if rule_id == "sanger":
        return "(out, B)(B, in) + (out, out)(out, in)", lambda: (y.mT @ x, square @ weight)
    if rule_id == "rls":
        inverse, wide = torch.randn(IN, IN).double(), x.double()
        return "P xᵀ + (in, B)(B, in)", lambda: (inverse @ wide.mT, wide.mT @ wide)
    if rule_id in ("synaptic-scaling", "ewc") or rule_id.endswith("-delta"):
        return "one copy of the parameter", weight.clone
    return "(out, B)(B, in)", lambda: y.mT @ x


def ignoring(run: Callable[[], object], _round: int) -> None:
    run()


def main() -> None:
    torch.set_num_threads(1)
    report = Report(f"A proposal for {OUT} × {IN}, float32, batch {BATCH}, one thread")
    for rule_id, rule_type in rules.RULES.items():
        if rule_type.parameter == ("out",):
            continue
        rule = rules.make_rule(rule_id)
        weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(2)) * 0.02
        given, state = activities(rule, weight), rules.init(rule, weight)
        name, product = contained(rule_id)
        seconds = interleaved(
            ROUNDS,
            rule=partial(ignoring, partial(rules.propose, rule, weight, given, state)),
            product=partial(ignoring, product),
        )
        ratio = seconds["rule"] / seconds["product"]
        held = {} if "copy" in name else {"goal": f"≤ {GOAL:g} ×", "ok": ratio <= GOAL}
        report.add(rule_id, seconds["rule"] * 1e3, "ms", ratio=ratio, of=name, **held)
    report.finish("rules_speed")


if __name__ == "__main__":
    main()
