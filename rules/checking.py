"""The one door to a rule: what goes in is checked here, before any arithmetic.

    state = rules.init(rule, weight)
    proposal = rules.propose(rule, weight, {"x": x, "y": y}, state)
    weight = weight + proposal.delta
    state = proposal.state

The state that leaves here carries the rule's version as a tensor named `version`, so that a
state stored with one release is never fed to a rule that has changed since.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from weightledger.rules.errors import ForeignState, RuleError
from weightledger.rules.protocol import ANY_SHAPE, Proposal, Rule, Shape

VERSION = "version"
DTYPES = (torch.float32, torch.float64)


def init(rule: Rule, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The state before the first proposal, for a parameter with this shape, dtype and device.

    Raises RuleError if the rule does not learn parameters of this shape or dtype.
    """
    _check_weight(rule, weight)
    version = torch.tensor(rule.version, dtype=torch.int64, device="cpu")
    return {VERSION: version, **rule.init(weight.detach())}


def propose(
    rule: Rule,
    weight: torch.Tensor,
    activities: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
) -> Proposal:
    """The rule's step for `weight`; nothing passed in is written to.

    `activities` are those that `rule.activities` lists, in the weight's dtype and on its device;
    `state` is what `init` or the last proposal for this parameter and stream returned. Where the
    rule proposes no change its delta is −0.0, so that adding it leaves the weight's bits alone.
    Raises RuleError for activities that do not fit and ForeignState for a state that does not.
    """
    check_activities(rule, weight, activities)
    own = _own_state(rule, weight, state)
    with torch.no_grad():
        proposal = rule.propose(weight.detach(), activities, own)
    delta = proposal.delta
    if (delta.shape, delta.dtype) != (weight.shape, weight.dtype):
        raise RuleError(
            f"{rule.id} proposes a delta of {_name(delta.dtype)} {tuple(delta.shape)} for a "
            f"parameter of {_name(weight.dtype)} {tuple(weight.shape)}"
        )
    # x + −0.0 is x, bit for bit; x + 0.0 would make 0.0 of −0.0.
    delta = torch.where(delta == 0, -0.0, delta)
    return replace(proposal, delta=delta, state={VERSION: state[VERSION], **proposal.state})


def moved(weight: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """The weight after a step, bit for bit the same where the step is zero, of either sign."""
    return torch.where(delta == 0, weight, weight + delta)


def check_activities(
    rule: Rule, weight: torch.Tensor, activities: Mapping[str, torch.Tensor]
) -> None:
    """Raise RuleError unless `propose` could take these activities for this weight."""
    _check_activities(rule, weight, activities, _check_weight(rule, weight))


def _check_weight(rule: Rule, weight: torch.Tensor) -> dict[str, int]:
    """The sizes of the parameter's named dimensions."""
    if weight.dtype not in DTYPES:
        raise RuleError(
            f"rules compute in float32 or float64, the parameter is {_name(weight.dtype)}: "
            "convert it, and round the result once",
            param="weight",
        )
    if weight.numel() == 0:
        raise RuleError(f"the parameter is empty, shape {tuple(weight.shape)}", param="weight")
    if rule.parameter == ANY_SHAPE:
        return {}
    if weight.ndim != len(rule.parameter):
        hint = ""
        if weight.ndim > 2 and len(rule.parameter) == 2:
            hint = (
                "; for a convolution pass weight.flatten(1), [out, in·kh·kw], and as x the columns "
                "of torch.nn.functional.unfold as rows, [batch·positions, in·kh·kw]"
            )
        raise RuleError(
            f"{rule.id} learns parameters of shape {_text(rule.parameter)}, "
            f"this one has shape {tuple(weight.shape)}{hint}",
            param="weight",
        )
    return {
        name: size
        for name, size in zip(rule.parameter, weight.shape, strict=True)
        if isinstance(name, str)
    }


def _check_activities(
    rule: Rule,
    weight: torch.Tensor,
    activities: Mapping[str, torch.Tensor],
    dimensions: dict[str, int],
) -> None:
    if missing := [name for name in rule.activities if name not in activities]:
        raise RuleError(
            f"{rule.id} needs the activities {', '.join(rule.activities)}; "
            f"missing: {', '.join(missing)}",
            param=missing[0],
        )
    if unknown := [name for name in activities if name not in rule.activities]:
        raise RuleError(
            f"{rule.id} takes the activities {', '.join(rule.activities)}, "
            f"not {', '.join(unknown)}",
            param=unknown[0],
        )
    for name, activity in rule.activities.items():
        tensor = activities[name]
        if tensor.dtype != weight.dtype or tensor.device != weight.device:
            raise RuleError(
                f"activity {name!r} is {_name(tensor.dtype)} on {tensor.device}, the parameter is "
                f"{_name(weight.dtype)} on {weight.device}: they must agree",
                param=name,
            )
        if activity.shape == ANY_SHAPE:
            fits = tensor.shape == weight.shape
            expected = str(tuple(weight.shape))
        else:
            fits = _fits(tensor.shape, activity.shape, dimensions)
            expected = _text(activity.shape, dimensions)
        if not fits:
            raise RuleError(
                f"activity {name!r} of {rule.id} has shape {expected}, got {tuple(tensor.shape)}",
                param=name,
            )
        if tensor.numel() == 0:
            raise RuleError(f"activity {name!r} is empty, shape {tuple(tensor.shape)}", param=name)
        if not is_finite(tensor):
            raise RuleError(f"activity {name!r} has values that are not finite", param=name)


def _fits(shape: torch.Size, expected: Shape, dimensions: dict[str, int]) -> bool:
    """Whether the sizes agree with those seen so far; sizes met first are remembered."""
    if len(shape) != len(expected):
        return False
    for size, name in zip(shape, expected, strict=True):
        if size != (name if isinstance(name, int) else dimensions.setdefault(name, size)):
            return False
    return True


def _own_state(
    rule: Rule, weight: torch.Tensor, state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The rule's tensors in `state`, which must be those that `init` makes for this weight."""
    version = state.get(VERSION)
    if version is None:
        raise ForeignState(f"the state of {rule.id} has no {VERSION!r}: make one with rules.init")
    if version.ndim or int(version) != rule.version:
        raise ForeignState(
            f"the state was made by version {version.tolist()} of its rule, "
            f"{rule.id} is at version {rule.version}"
        )
    expected = rule.init(torch.empty_like(weight, device="meta"))
    own = {name: tensor for name, tensor in state.items() if name != VERSION}
    if own.keys() != expected.keys():
        raise ForeignState(
            f"the state of {rule.id} holds {sorted(expected) or 'nothing'}, "
            f"got {sorted(own) or 'nothing'}"
        )
    for name, like in expected.items():
        tensor = own[name]
        if (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
            raise ForeignState(
                f"state {name!r} of {rule.id} is {_name(like.dtype)} {tuple(like.shape)} for this "
                f"parameter, got {_name(tensor.dtype)} {tuple(tensor.shape)}"
            )
        if tensor.device != weight.device:
            raise ForeignState(
                f"state {name!r} is on {tensor.device}, the parameter on {weight.device}"
            )
    return own


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite: one pass, no temporary (extremes carry NaN along)."""
    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _text(shape: Shape, dimensions: Mapping[str, int] | None = None) -> str:
    """A shape for people, with the sizes that are known: "[batch, out=3]"."""
    sizes = dimensions or {}
    parts = [f"{name}={sizes[name]}" if name in sizes else str(name) for name in map(str, shape)]
    return f"[{', '.join(parts)}]"
