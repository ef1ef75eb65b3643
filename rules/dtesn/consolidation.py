"""Elastic weight consolidation on a live model: Fisher information and anchors in the ledger.

The functions the specification names, on `library.ewc`: once a parameter has been consolidated,
every step a rule proposes for it passes the proximal step of `rules.guards.Consolidation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from weightledger import (
    Caller,
    DynamicModelManager,
    Event,
    Given,
    Plan,
    Staged,
    add_command,
    command_digest,
)
from weightledger.rules.checking import init, is_finite, propose
from weightledger.rules.dtesn import state as places
from weightledger.rules.dtesn.again import tensors_given
from weightledger.rules.dtesn.described import digests
from weightledger.rules.dtesn.event import ANYONE, event
from weightledger.rules.dtesn.ground import computing_dtype
from weightledger.rules.errors import RuleError
from weightledger.rules.library.ewc import Ewc

FISHER_UPDATED = "fisher"
CONSOLIDATED = "consolidate"


def constrained(
    current: torch.Tensor,
    proposed: torch.Tensor,
    fisher: torch.Tensor,
    consolidated: torch.Tensor,
    rule: Ewc,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Parameters `proposed` pulled to `consolidated` where `fisher` is large, and measurements."""
    for name, tensor in (("proposed_update", proposed), ("consolidated_params", consolidated)):
        _check(name, tensor, current)
    _check_fisher(fisher, current)
    state = {**init(rule, current), "fisher": fisher, "anchor": consolidated}
    step = propose(rule, current, {"delta": proposed - current}, state)
    after = current + step.delta
    moved = float(torch.linalg.vector_norm(after - proposed))
    away = float(torch.linalg.vector_norm(proposed - consolidated))
    kept = float(torch.linalg.vector_norm(after - consolidated))
    return after, {
        "ewc_loss": float((fisher * (proposed - consolidated).square()).sum()),
        "ewc_lambda": rule.strength,
        "modification_magnitude": moved,
        "preservation_score": kept / away if away else 0.0,
        "parameter_importance_mean": float(fisher.mean()),
        "forgetting_prevention_active": moved > 0,
    }


@dataclass(frozen=True, slots=True)
class UpdateFisher:
    """F ← `decay` F + `strength`·⟨g²⟩; a leading dimension of `gradient` counts samples.

    F does not depend on `current`: it is checked to have the parameter's shape and to be finite.
    """

    parameter: str
    current: torch.Tensor | None = field(repr=False)
    gradient: torch.Tensor = field(repr=False)
    strength: float
    decay: float
    caller: Caller = ANYONE
    metadata: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise RuleError(
                f"learning_signal_strength is in [0, 1], got {self.strength}",
                param="learning_signal_strength",
            )

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What was given."""
        return tensors_given(current=self.current, gradient=self.gradient)

    @property
    def digest(self) -> bytes:
        sent = {"strength": self.strength, "decay": self.decay, "tensors": digests(self.tensors)}
        return command_digest(FISHER_UPDATED, {"parameter": self.parameter, **sent})


@dataclass(frozen=True, slots=True)
class Consolidate:
    """W* ← the weights given (the live ones by default), and F where it is given."""

    parameter: str
    current: torch.Tensor | None = field(default=None, repr=False)
    fisher: torch.Tensor | None = field(default=None, repr=False)
    caller: Caller = ANYONE
    metadata: str | None = field(default=None, init=False)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What was given."""
        return tensors_given(current=self.current, fisher=self.fisher)

    @property
    def digest(self) -> bytes:
        sent = {"parameter": self.parameter, "tensors": digests(self.tensors)}
        return command_digest(CONSOLIDATED, sent)


def update_fisher(command: UpdateFisher, staged: Staged) -> Plan:
    """F of the newest state."""
    staged.make_room()
    weight, held = _held(staged, command.parameter)
    if command.current is not None:
        _check("current_params", command.current, weight)
    sent = command.gradient.to(weight.device, weight.dtype)
    squares = sent.square()
    if sent.shape != weight.shape:
        if sent.shape[1:] != weight.shape or not len(sent):
            raise RuleError(
                f"gradient is {tuple(weight.shape)} or [samples, *{tuple(weight.shape)}], got "
                f"{tuple(sent.shape)}",
                param="gradient",
            )
        squares = squares.mean(0)
    if not is_finite(squares):
        raise RuleError("gradient has values that are not finite", param="gradient")
    before = held or init(Ewc(), weight)
    fisher = before["fisher"] * command.decay + squares * command.strength
    asked = {"strength": command.strength, "fisher_decay": command.decay}
    kept = Given(command.tensors, asked, always=True)
    return _plan(command.parameter, FISHER_UPDATED, {**before, "fisher": fisher}, fisher, kept)


def consolidate(command: Consolidate, staged: Staged) -> Plan:
    """The anchor at the newest state, or where it was given."""
    staged.make_room()
    weight, held = _held(staged, command.parameter)
    before = held or init(Ewc(), weight)
    current, fisher = command.current, command.fisher
    anchor = weight if current is None else current.detach().to(weight.device, weight.dtype)
    _check("current_params", anchor, weight)
    information = before["fisher"]
    if fisher is not None:
        information = fisher.detach().to(weight.device, weight.dtype)
        _check_fisher(information, weight)
    after = {**before, "anchor": anchor, "fisher": information}
    kept = Given(command.tensors, always=True)
    return _plan(command.parameter, CONSOLIDATED, after, information, kept)


async def consolidated(
    manager: DynamicModelManager,
    parameter: str,
    current: torch.Tensor | None,
    fisher: torch.Tensor | None,
    threshold: float,
) -> tuple[dict[str, Any], Event | None]:
    """Anchor a parameter if its mean F exceeds the threshold: what was found, and the event."""
    known = fisher.detach() if fisher is not None else held_for(manager, "fisher").get(parameter)
    if known is None:
        raise RuleError(f"{parameter} has no Fisher information yet", param="fisher_information")
    important = float(known.mean()) > threshold
    facts: dict[str, Any] = {
        "parameter_name": parameter,
        "consolidated": important,
        "mean_importance": float(known.mean()),
        "max_importance": float(known.max()),
        "consolidation_threshold": threshold,
    }
    if not important:
        return {**facts, "reason": "importance_below_threshold"}, None
    written = await manager.execute(Consolidate(parameter, current, fisher))
    return {**facts, "update_id": written.name}, written


def held_for(manager: DynamicModelManager, name: str) -> dict[str, torch.Tensor]:
    """One of "fisher", "anchor" of each parameter that has it, by parameter."""
    end = f"/{places.CONSOLIDATION}/{name}"
    return {
        key[len("rule/") : -len(end)]: tensor.clone()
        for key, tensor in manager.log.live.auxiliary.items()
        if key.startswith("rule/") and key.endswith(end)
    }


def _held(staged: Staged, parameter: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    live = staged.weight(parameter).detach()
    weight = live.to(computing_dtype(parameter, live.dtype))
    held = places.under(staged.live.auxiliary, places.place(parameter, places.CONSOLIDATION))
    return weight, {name: tensor.to(weight.device) for name, tensor in held.items()}


def _plan(
    parameter: str,
    operation: str,
    state: Mapping[str, torch.Tensor],
    fisher: torch.Tensor,
    kept: Given,
) -> Plan:
    facts = {
        "rule": {"id": Ewc.id, "version": Ewc.version},
        "mean_importance": float(fisher.mean()),
        "max_importance": float(fisher.max()),
    }
    return event(operation, parameter, places.CONSOLIDATION, facts, remembered=state, given=kept)


def _check(name: str, tensor: torch.Tensor, like: torch.Tensor) -> None:
    if tensor.shape != like.shape:
        raise RuleError(
            f"{name} has the parameter's shape {tuple(like.shape)}, got {tuple(tensor.shape)}",
            param=name,
        )
    if not is_finite(tensor):
        raise RuleError(f"{name} has values that are not finite", param=name)


def _check_fisher(fisher: torch.Tensor, like: torch.Tensor) -> None:
    _check("fisher_information", fisher, like)
    if bool((fisher < 0).any()):
        raise RuleError("Fisher information is not negative", param="fisher_information")


add_command(UpdateFisher, update_fisher, switch="incremental learning")
add_command(Consolidate, consolidate, switch="incremental learning")
