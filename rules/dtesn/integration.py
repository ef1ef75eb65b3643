"""DTESNDynamicIntegration: the specification's face of learning on a live model."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from weightledger import Caller, DynamicModelManager, Event
from weightledger.rules.dtesn import consolidation, history
from weightledger.rules.dtesn import state as places
from weightledger.rules.dtesn.calls import Activities, Calls
from weightledger.rules.dtesn.config import DTESNLearningConfig
from weightledger.rules.dtesn.event import ANYONE
from weightledger.rules.dtesn.request import as_tensor
from weightledger.rules.dtesn.streams import Clock, Stream
from weightledger.rules.guards import Guards
from weightledger.rules.library.ewc import Ewc
from weightledger.rules.selectors import Selector


class DTESNDynamicIntegration:
    """Updates of a live model through learning rules, each one event of its ledger.

    `selector` chooses the rule where a call names none, by default the specification's feedback
    thresholds over the delta-only rules. `guards` judge every step; by default a delta or state
    that is not finite is refused, and for rules without a target ‖Δ‖ ≤ 0.1 ‖W‖. `calls` has the
    same calls giving their events. All methods raise RuleError, UnknownRule or NotFound for what
    does not fit, and then nothing has changed.
    """

    def __init__(
        self,
        dynamic_manager: DynamicModelManager,
        dtesn_config: DTESNLearningConfig | None = None,
        *,
        selector: Selector | None = None,
        guards: Guards | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.dynamic_manager = dynamic_manager
        self.dtesn_config = config = dtesn_config or DTESNLearningConfig()
        self.calls = Calls(dynamic_manager, config, selector=selector, guards=guards, clock=clock)
        self._counted = history.Counted(dynamic_manager.log)

    # Learning. Each returns the update's result, with `data` about what was learnt.

    async def enhanced_incremental_update(
        self,
        parameter_name: str,
        update_data: Any,
        learning_rate: float | None = None,
        performance_context: Mapping[str, float] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """A change that is asked for, shaped by the rule that the feedback selects.

        `update_data` has the parameter's shape, or is flat, or is one number; the learning rate is
        applied once. `performance_context` has accuracy_change, a difference of fractions, and
        latency_change in milliseconds. Options are those of `learn`.
        """
        event = await self.calls.update(
            parameter_name, update_data, learning_rate, performance_context, **options
        )
        return self.result(event)

    async def learn(
        self,
        parameter_name: str,
        activities: Activities,
        *,
        rule: str | None = None,
        learning_rate: float | None = None,
        performance_context: Mapping[str, float] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Learn from activities that the caller measured.

        `rule` names the rule, else the integration's selector chooses. A readout's y may be left
        out: then it is x Wᵀ + b on the live weights. Options: `stream`, whose traces and state it
        uses; `rule_config`, fields of the rule; `gate`, a PairedGate; `batch_size`; `selector`;
        `caller`; `metadata`.
        """
        event = await self.calls.learn(
            parameter_name,
            activities,
            rule=rule,
            learning_rate=learning_rate,
            performance_context=performance_context,
            **options,
        )
        return self.result(event)

    async def learn_readout(
        self, parameter_name: str, inputs: Any, target: Any, *, rule: str = "rls", **options: Any
    ) -> dict[str, Any]:
        """Learn a linear readout of a reservoir driven by `inputs` [time, inputs].

        The parameter is [out, reservoir_size], or one wider for a bias. The reservoir is drawn
        from `reservoir_seed`; its state is the stream's, so the next call goes on where this ended.
        """
        event = await self.calls.learn_readout(parameter_name, inputs, target, rule=rule, **options)
        return self.result(event)

    def open_stream(self, stream: str, parameter_name: str) -> Stream:
        """Begin to see the activities of a parameter's layer; see `rules.dtesn.streams`."""
        return self.calls.open_stream(stream, parameter_name)

    async def close_stream(
        self, stream: str, *, rule: str, activities: Activities | None = None, **options: Any
    ) -> dict[str, Any]:
        """Learn from what a stream has seen, and close it.

        `activities` are further ones, such as target or reward. A rule of spikes gets the layer's
        input and output as pre_spikes and post_spikes. UnknownStream when it is not open. A call
        that fails leaves the stream open, with all it has seen.
        """
        event = await self.calls.close_stream(stream, rule=rule, activities=activities, **options)
        return self.result(event)

    def remember(
        self,
        request_id: str,
        parameter_name: str,
        activities: Activities,
        *,
        rule: str = "reinforce",
        stream: str = places.DEFAULT_STREAM,
    ) -> None:
        """Keep an action until `reward` says how it went; the rule's activities but the reward."""
        self.calls.remember(request_id, parameter_name, activities, rule, stream)

    async def reward(self, request_id: str, reward: float, **options: Any) -> dict[str, Any]:
        """Learn from a remembered action, now that its reward is known.

        UnknownRequest when nothing waits for it.
        """
        return self.result(await self.calls.reward(request_id, reward, **options))

    async def forget(
        self, parameter_name: str, stream: str = places.DEFAULT_STREAM, *, caller: Caller = ANYONE
    ) -> dict[str, Any]:
        """Drop what rules remember of a parameter in a stream, as an event; weights stay."""
        return self.result(await self.calls.forget(parameter_name, stream, caller))

    # What was learnt

    def result(self, event: Event) -> dict[str, Any]:
        """The reply to an update through a rule; one that could not be shown has no success."""
        return history.result(event, self.dynamic_manager.update_result(event))

    def get_learning_history(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Steps through a rule, oldest first, from the ledger's events; the last `limit` of them.

        Without a limit the whole log is read.
        """
        found = history.learnt(self.dynamic_manager.log, limit)
        return [history.entry(event) for event in reversed(found)]

    def get_integration_status(self) -> dict[str, Any]:
        """The configuration, and what the ledger says was learnt.

        The log is read once; each further call reads what is new.
        """
        config = self.dtesn_config
        return {
            "dtesn_available": True,
            **self._counted.up_to_date(),
            "config": {
                **asdict(config),
                "plasticity_enabled": config.enable_plasticity,
                "homeostasis_enabled": config.enable_homeostasis,
            },
            "open_streams": self.calls.streams.names(),
            "waiting_rewards": len(self.calls.rewards),
        }

    # Elastic weight consolidation

    async def apply_ewc_constraint(
        self,
        parameter_name: str,
        current_params: torch.Tensor,
        proposed_update: torch.Tensor,
        fisher_information: torch.Tensor,
        consolidated_params: torch.Tensor,
        ewc_lambda: float = 1000.0,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Proposed parameters pulled to the consolidated ones where they matter; changes nothing.

        W′ = (V + ηλ F⊙W*)/(1 + ηλ F) with V the proposal and η the config's learning rate.
        """
        rule = Ewc(self.dtesn_config.learning_rate, ewc_lambda)
        return consolidation.constrained(
            current_params, proposed_update, fisher_information, consolidated_params, rule
        )

    async def update_fisher_information(
        self,
        parameter_name: str,
        current_params: torch.Tensor | None,
        gradient: torch.Tensor,
        learning_signal_strength: float = 1.0,
    ) -> torch.Tensor:
        """F ← γ F + strength·⟨g²⟩ in the ledger; the new F.

        `gradient` is of the log likelihood, one sample's or [samples, …]: squares are taken sample
        by sample. The reference passes `current_params` too: F does not depend on them, so they are
        only checked to have the parameter's shape and to be finite.
        """
        name = self.calls.first_name(parameter_name)
        await self.dynamic_manager.execute(
            consolidation.UpdateFisher(
                name,
                current_params,
                as_tensor("gradient", gradient),
                learning_signal_strength,
                self.dtesn_config.fisher_decay,
            )
        )
        return self.get_fisher_information()[name]

    async def consolidate_important_parameters(
        self,
        parameter_name: str,
        current_params: torch.Tensor | None = None,
        fisher_information: torch.Tensor | None = None,
        consolidation_threshold: float = 0.5,
    ) -> tuple[bool, dict[str, Any]]:
        """Anchor a parameter where it is, if its mean Fisher information exceeds the threshold.

        From then on every rule's step for it is pulled to the anchor. Without `current_params` the
        live weights are anchored, without `fisher_information` the ledger's F is used.
        """
        name = self.calls.first_name(parameter_name)
        found, event = await consolidation.consolidated(
            self.dynamic_manager, name, current_params, fisher_information, consolidation_threshold
        )
        return event is not None and bool(self.result(event)["success"]), found

    def get_consolidated_parameters(self) -> dict[str, torch.Tensor]:
        """Anchors W*, by parameter."""
        return consolidation.held_for(self.dynamic_manager, "anchor")

    def get_fisher_information(self) -> dict[str, torch.Tensor]:
        """Fisher information F, by parameter."""
        return consolidation.held_for(self.dynamic_manager, "fisher")
