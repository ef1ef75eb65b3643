"""The calls that learn, each giving its event: what was sent is checked, and is a command."""

import time
from collections.abc import Mapping
from typing import Any

import torch

from weightledger import Caller, DynamicModelManager, Event, NotFound, metadata_text
from weightledger.rules.dtesn import state as places
from weightledger.rules.dtesn.config import DTESNLearningConfig
from weightledger.rules.dtesn.event import ANYONE
from weightledger.rules.dtesn.forgetting import Forget
from weightledger.rules.dtesn.plan import Learn
from weightledger.rules.dtesn.readout import driven_by
from weightledger.rules.dtesn.request import Source, as_tensor, asked
from weightledger.rules.dtesn.rewards import Rewards, check_action
from weightledger.rules.dtesn.streams import Clock, Stream, Streams
from weightledger.rules.errors import RuleError
from weightledger.rules.guards import Guards
from weightledger.rules.ranges import number
from weightledger.rules.registry import get_rule
from weightledger.rules.selectors import FeedbackThresholds, Selector

Activities = Mapping[str, Any]
"""Tensors, arrays or nested lists by the names that the rule gives its activities."""


class Calls:
    """Learning on one live model; `DTESNDynamicIntegration` says what each call does.

    `streams` are those that are open, `rewards` the actions that wait for theirs.
    """

    def __init__(
        self,
        manager: DynamicModelManager,
        config: DTESNLearningConfig,
        *,
        selector: Selector | None = None,
        guards: Guards | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._manager = manager
        self._config = config
        self._selector = selector or FeedbackThresholds()
        self._guards = guards
        self.streams = Streams(manager, config.max_stream_samples, config.stream_ttl_s, clock)
        self.rewards = Rewards(config.max_waiting_rewards, config.reward_ttl_s, clock)

    def first_name(self, parameter: str) -> str:
        """A tied parameter's first name; NotFound for an unknown one."""
        first = self._manager.engine.aliases().get(parameter, parameter)
        if first not in self._manager.log.specs:
            raise NotFound(f"Parameter {parameter!r} not found", param="parameter_name")
        return first

    async def update(
        self,
        parameter_name: str,
        update_data: Any,
        learning_rate: float | None = None,
        performance_context: Mapping[str, float] | None = None,
        *,
        rule: str | None = None,
        **options: Any,
    ) -> Event:
        """A change that is asked for."""
        if rule is not None and "delta" not in get_rule(rule).activities:
            raise RuleError(
                f"{rule} learns from activities, not from update_data: send activities, or use "
                "hebbian-delta, stdp-delta, bcm-delta or reinforcement-delta",
                param="update_data",
            )
        sent = {"delta": as_tensor("update_data", update_data)}
        return await self._learn(
            parameter_name,
            sent,
            rule=rule,
            source="request",
            learning_rate=learning_rate,
            performance_context=performance_context,
            **options,
        )

    async def learn(self, parameter_name: str, activities: Activities, **options: Any) -> Event:
        """Activities that the caller measured."""
        return await self._learn(parameter_name, activities, source="caller", **options)

    async def _learn(
        self,
        parameter_name: str,
        activities: Activities,
        *,
        source: Source,
        rule: str | None = None,
        learning_rate: float | None = None,
        performance_context: Mapping[str, float] | None = None,
        **options: Any,
    ) -> Event:
        """Activities through a rule; all other calls end here."""
        name = self.first_name(parameter_name)
        sent = {name: as_tensor(name, values) for name, values in activities.items()}
        request = asked(
            name, sent, source, rule, learning_rate, performance_context, options, self._selector
        )
        caller: Caller = options.get("caller") or ANYONE
        metadata = metadata_text(options.get("metadata"))
        return await self._manager.execute(
            Learn(request, self._config, self._guards, caller, metadata)
        )

    async def learn_readout(
        self, parameter_name: str, inputs: Any, target: Any, **options: Any
    ) -> Event:
        """A linear readout of a reservoir driven by `inputs`."""
        readout = driven_by(as_tensor("inputs", inputs), self._config)
        return await self._learn(
            parameter_name,
            {"target": target},
            source="reservoir",
            **{**options, "readout": readout, "facts": readout.facts},
        )

    def open_stream(self, stream: str, parameter_name: str) -> Stream:
        """Begin to see the activities of a parameter's layer."""
        name = self.first_name(parameter_name)
        return self.streams.open(places.check_stream(stream), name)

    async def close_stream(
        self, stream: str, *, rule: str, activities: Activities | None = None, **options: Any
    ) -> Event:
        """What a stream has seen through a rule; the stream stays open where that fails."""
        kind = get_rule(rule)
        taken = self.streams.take(stream)
        try:
            kept = taken.seen_by(kind, scored=options.get("gate") is not None)
            return await self._learn(
                taken.parameter,
                {**kept, **(activities or {})},
                rule=rule,
                source="hooks",
                **{**options, "stream": stream, "facts": taken.facts},
            )
        except BaseException:
            self.streams.put_back(taken)
            raise

    def remember(
        self, request_id: str, parameter_name: str, activities: Activities, rule: str, stream: str
    ) -> None:
        """Keep an action until its reward comes."""
        check_action(rule, activities)
        sent = {name: as_tensor(name, values) for name, values in activities.items()}
        name = self.first_name(parameter_name)
        self.rewards.remember(request_id, name, rule, places.check_stream(stream), sent)

    async def reward(self, request_id: str, reward: float, **options: Any) -> Event:
        """A remembered action, with its reward; UnknownRequest when nothing waits for it."""
        key = (options.get("caller") or ANYONE).idempotency_key
        waiting = self.rewards.find(request_id, key)
        rows = len(next(iter(waiting.activities.values())))
        rewards = torch.full((rows,), float(number("reward", reward)))
        event = await self._learn(
            waiting.parameter,
            {**waiting.activities, "reward": rewards},
            rule=waiting.rule,
            source="reward",
            **{**options, "stream": waiting.stream, "facts": {"request_id": request_id}},
        )
        self.rewards.answer(request_id, key)
        return event

    async def forget(self, parameter_name: str, stream: str, caller: Caller) -> Event:
        """Drop what rules remember of a parameter in a stream."""
        name = self.first_name(parameter_name)
        return await self._manager.execute(Forget(name, places.check_stream(stream), caller))
