"""What one call asks for, before it meets the model."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from weightledger.rules.dtesn.described import described, digests
from weightledger.rules.dtesn.gate import PairedGate
from weightledger.rules.dtesn.readout import Readout
from weightledger.rules.dtesn.state import DEFAULT_STREAM, check_stream
from weightledger.rules.errors import RuleError
from weightledger.rules.ranges import count, number, plain
from weightledger.rules.registry import get_rule
from weightledger.rules.selectors import Feedback, Fixed, Selector

Source = Literal["request", "caller", "hooks", "reservoir", "reward"]
"""Where activities came from: a change that was asked for, the caller, forward hooks during a
stream, the states of a reservoir, an action whose reward came later."""

OPTIONS = frozenset(
    [
        *("stream", "rule_config", "gate", "batch_size", "selector", "caller", "metadata"),
        *("readout", "facts"),
    ]
)
"""What a call may say beside the parameter, what to learn from, the rule and the feedback."""


@dataclass(frozen=True, slots=True)
class LearningRequest:
    """One parameter, what to learn from, and how.

    `readout` gives further activities from the stream's tensors and the weight, on the state that
    the event is worked out on. `facts` are JSON about the source. `rate` is the learning rate the
    caller gave.
    """

    parameter: str
    activities: Mapping[str, torch.Tensor]
    source: Source
    selector: Selector
    rule_config: Mapping[str, Any] = field(default_factory=dict)
    rate: float | None = None
    stream: str = DEFAULT_STREAM
    feedback: Feedback | None = None
    gate: PairedGate | None = None
    batch_size: int | None = None
    readout: Readout | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> bytes:
        """Identifies the request, for idempotency keys: 32 bytes."""
        said = {
            "parameter": self.parameter,
            "activities": digests(self.activities),
            "selector": described(self.selector),
            "rule_config": dict(self.rule_config),
            "rate": self.rate,
            "stream": self.stream,
            "feedback": described(self.feedback),
            "gate": described(self.gate),
            "batch_size": self.batch_size,
            "facts": dict(self.facts),
        }
        text = json.dumps(said, sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(b"learn\x00" + text.encode()).digest()


def asked(
    parameter: str,
    activities: Mapping[str, torch.Tensor],
    source: Source,
    rule: str | None,
    rate: float | None,
    context: Mapping[str, float] | None,
    options: Mapping[str, Any],
    selector: Selector,
) -> LearningRequest:
    """The request of one call; RuleError for an option that means nothing.

    `selector` chooses the rule where neither `rule` nor the options say how. TypeError for an
    option there is none of.
    """
    if unknown := options.keys() - OPTIONS:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    chosen = options.get("selector") or selector
    if rule is not None:
        get_rule(rule)
        chosen = Fixed(rule)
    gate = options.get("gate")
    if gate is not None and not isinstance(gate, PairedGate):
        raise RuleError(f"a gate is a PairedGate, got {gate!r:.50}", param="gate")
    size = options.get("batch_size")
    return LearningRequest(
        parameter=parameter,
        activities=activities,
        source=source,
        selector=chosen,
        rule_config={n: plain(v) for n, v in (options.get("rule_config") or {}).items()},
        rate=None if rate is None else number("learning_rate", rate),
        stream=check_stream(options.get("stream", DEFAULT_STREAM)),
        feedback=_feedback(context),
        gate=gate,
        batch_size=None if size is None else count("batch_size", size),
        readout=options.get("readout"),
        facts=options.get("facts") or {},
    )


def as_tensor(name: str, values: Any) -> torch.Tensor:
    """Real numbers, nested lists, arrays or a dense tensor as a tensor; RuleError names it."""
    try:
        made = values if isinstance(values, torch.Tensor) else torch.as_tensor(values)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise RuleError(f"{name!r} is not a tensor of numbers: {error}", param=name) from None
    kind = str(made.dtype).removeprefix("torch.")
    if made.dtype == torch.bool:
        raise RuleError(f"{name!r} is not a tensor of numbers: it holds booleans", param=name)
    if made.layout != torch.strided or made.is_meta or made.is_complex() or made.is_quantized:
        where = f"{kind}, {made.layout}, on {made.device}"
        raise RuleError(f"{name!r} is a dense tensor of real numbers, got {where}", param=name)
    return made.detach()


def _feedback(context: Mapping[str, float] | None) -> Feedback | None:
    """The specification's performance context; None where nothing was measured."""
    if not context:
        return None
    known = ("accuracy_change", "latency_change")
    values = {name: float(number(name, context[name])) for name in known if name in context}
    return Feedback(values.get("accuracy_change", 0.0), values.get("latency_change", 0.0))
