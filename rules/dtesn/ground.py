"""What a request meets on the newest state: the weight, its bias, what the stream left behind."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from weightledger import Staged
from weightledger.rules.checking import DTYPES
from weightledger.rules.dtesn import state as places
from weightledger.rules.dtesn.gate import SCORED
from weightledger.rules.dtesn.request import LearningRequest
from weightledger.rules.errors import RuleError
from weightledger.rules.protocol import Rule
from weightledger.rules.selectors import NO_FEEDBACK, Fixed

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Ground:
    """What a request meets: the weight in the dtype rules compute in, and the stream's tensors.

    `before` are the digests of those; `bias` is the layer's, if it has one.
    """

    weight: torch.Tensor
    stored: torch.dtype
    held: Tensors
    before: Mapping[str, str]
    bias: torch.Tensor | None


def ground_of(staged: Staged, request: LearningRequest, prefix: str) -> Ground:
    """Read all of it; RuleError for a parameter that rules cannot learn."""
    live = staged.weight(request.parameter).detach()
    weight = live.to(computing_dtype(request.parameter, live.dtype))
    state = staged.live.state.digests
    before = {n[len(prefix) :]: d.hex() for n, d in state.items() if n.startswith(prefix)}
    held = places.under(staged.live.auxiliary, prefix)
    return Ground(weight, live.dtype, held, before, _bias(staged, request.parameter, weight))


def _bias(staged: Staged, parameter: str, weight: torch.Tensor) -> torch.Tensor | None:
    """The bias beside a weight, as `torch.nn.Linear` names it."""
    layer, _, name = parameter.rpartition(".")
    bias = f"{layer}.bias" if layer else "bias"
    if name != "weight" or bias not in staged.specs or staged.specs[bias].shape != weight.shape[:1]:
        return None
    return staged.weight(bias).detach().to(weight.dtype)


def activities_of(
    request: LearningRequest, ground: Ground, rule: Rule, keep: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What the rule wants (and what a gate scores with), in the weight's dtype and place."""
    given = dict(request.activities)
    if request.readout is not None:
        derived = request.readout.derive(ground.held, ground.weight)
        given |= derived.activities
        keep |= derived.keep
    if request.source == "request":
        given["delta"] = _like(given["delta"], ground.weight)
        if "reward" in rule.activities:
            given["reward"] = torch.tensor((request.feedback or NO_FEEDBACK).value)
    scored = set(SCORED) if request.gate is not None else set()
    wanted = rule.activities.keys() | scored
    if not isinstance(request.selector, Fixed):  # a selector's rules may want different activities
        given = {name: tensor for name, tensor in given.items() if name in wanted}
    made = {name: t.to(ground.weight.device, ground.weight.dtype) for name, t in given.items()}
    if "y" in wanted and "y" not in made and "x" in made and "target" in wanted:
        made["y"] = _outputs(made["x"], ground)
    if missing := [name for name in rule.activities if name not in made]:
        raise RuleError(
            f"{rule.id} needs the activities {', '.join(rule.activities)}; "
            f"missing: {', '.join(missing)}",
            param=missing[0],
        )
    if unknown := [name for name in made if name not in wanted]:
        raise RuleError(
            f"{rule.id} takes the activities {', '.join(rule.activities)}, "
            f"not {', '.join(unknown)}",
            param=unknown[0],
        )
    return made


def _outputs(x: torch.Tensor, ground: Ground) -> torch.Tensor:
    """x Wᵀ + b, what a linear layer answers."""
    weight = ground.weight
    if weight.ndim != 2 or x.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise RuleError(
            f"y cannot be worked out: x is [batch, in] for a parameter [out, in] of shape "
            f"{tuple(weight.shape)}, got {tuple(x.shape)}",
            param="x",
        )
    answer = x @ weight.mT
    return answer if ground.bias is None else answer + ground.bias


def _like(data: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A change in the parameter's shape; flat and single numbers are taken as updates take them."""
    if data.shape == weight.shape:
        return data
    if data.ndim == 0:
        return data.expand(weight.shape)
    if data.ndim == 1 and data.numel() == weight.numel():
        return data.reshape(weight.shape)
    raise RuleError(
        f"update_data has the parameter's shape {tuple(weight.shape)}, {weight.numel()} values or "
        f"one number, got shape {tuple(data.shape)}",
        param="update_data",
    )


def computing_dtype(parameter: str, dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for float32 and half types; RuleError for all others."""
    if dtype in DTYPES:
        return dtype
    if dtype in (torch.float16, torch.bfloat16):
        return torch.float32
    name = str(dtype).removeprefix("torch.")
    raise RuleError(
        f"parameter {parameter!r} is {name}: rules learn floats", param="parameter_name"
    )
