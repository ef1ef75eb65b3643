"""Learning through the real ledger: every window is an event, adopted or refused."""

import asyncio
import tempfile
from typing import Any

import torch
from torch.func import functional_call
from torch.nn.functional import one_hot

from benchmarks.rules_drift.observing import Observer, gradient
from benchmarks.rules_drift.streams import CLASSES, STREAM, Task
from benchmarks.rules_drift.ways import Way
from weightledger import DynamicModelManager, DynamicUpdateConfig, TorchEngine
from weightledger.rules import (
    DTESNDynamicIntegration,
    DTESNLearningConfig,
    Guards,
    PairedGate,
    fisher_diagonal,
    get_rule,
)

WINDOW, GATED = 10, 50

Window = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Hidden activities, outputs and labels."""


def learnt(way: Way, rate: float | None, given: Task, seed: int) -> dict[str, float]:
    """Accuracy over the stream, and the share of windows that were refused."""
    with tempfile.TemporaryDirectory() as folder:
        manager = DynamicModelManager(
            TorchEngine(given.module), "digits", config=DynamicUpdateConfig(backup_dir=folder)
        )
        try:
            return asyncio.run(_stream(manager, way, rate, given, seed))
        finally:
            manager.close()


async def _stream(
    manager: DynamicModelManager, way: Way, rate: float | None, given: Task, seed: int
) -> dict[str, float]:
    # Each sample is seen once, and θ and the learned rate move within a stream of this length.
    config = DTESNLearningConfig(
        batch_size=1, enable_homeostasis=False, max_iterations=1, adaptation_rate=0.1
    )
    # The norm limit would refuse the harm that this experiment is to show.
    bridge = DTESNDynamicIntegration(manager, config, guards=Guards(norm=None))
    if way.consolidated:
        await bridge.consolidate_important_parameters(
            way.parameter, None, _fisher(given)[way.parameter], 0.0
        )
    loudest = float(given.hidden(given.seen).max())
    learner = _Learner(bridge, way, rate, Observer(torch.Generator().manual_seed(seed), loudest))
    size = GATED if way.gated else WINDOW
    right = refused = 0
    for images, labels in zip(given.images.split(size), given.labels.split(size), strict=True):
        with torch.no_grad(), manager.lease() as live:
            x = torch.relu(live.module[0](images))
            y = live.module[2](x)
        right += int((y.argmax(1) == labels).sum())
        # From a layer that has diverged nothing can be learnt.
        result = await learner.learn((x, y, labels)) if bool(y.isfinite().all()) else None
        refused += result is None or not result["success"]
    return {"accuracy": right / STREAM, "refused": refused / (STREAM / size)}


class _Learner:
    """Shows one window after the other to the way's rule."""

    def __init__(
        self, bridge: DTESNDynamicIntegration, way: Way, rate: float | None, observer: Observer
    ) -> None:
        self._bridge = bridge
        self._way = way
        self._rate = rate
        self._observer = observer
        self._last = 0.0
        self._before: Window | None = None

    async def learn(self, window: Window) -> dict[str, Any]:
        x, y, labels = window
        accuracy = float((y.argmax(1) == labels).float().mean())
        change = accuracy - self._last
        self._last = accuracy
        if self._way.asks:
            return await self._ask(window, change)
        return await self._bridge.learn(
            self._way.parameter,
            self._observer.told(self._way, x, y, labels),
            rule=self._way.rule,
            learning_rate=self._rate,
            rule_config=self._way.config,
            gate=PairedGate() if self._way.gated else None,
        )

    async def _ask(self, window: Window, change: float) -> dict[str, Any]:
        """SGD's change of the window, as long a step as SGD's own, shaped by the rule.

        A gate scores it on samples that it was not made from, so there it is the change of the
        window before.
        """
        rule = None if self._way.rule == "thresholds" else self._way.rule
        context = {"accuracy_change": change}
        if not self._way.gated:
            asked = gradient(*window)
            return await self._bridge.enhanced_incremental_update(
                self._way.parameter, asked, self._rate, context, rule=rule
            )
        before, self._before = self._before or window, window
        x, y, labels = window
        asked = gradient(before[0], self._outputs(before[0]), before[2])
        sent = {"delta": asked, "x": x, "y": y, "target": one_hot(labels, CLASSES).float()}
        if rule is None or "reward" in get_rule(rule).activities:
            sent["reward"] = torch.tensor(change)
        return await self._bridge.learn(
            self._way.parameter,
            sent,
            rule=rule,
            learning_rate=self._rate,
            performance_context=context,
            gate=PairedGate(),
        )

    def _outputs(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), self._bridge.dynamic_manager.lease() as live:
            outputs: torch.Tensor = live.module[2](x)
        return outputs


def _fisher(given: Task) -> dict[str, torch.Tensor]:
    """The Fisher information of the last layer's weight on what the network was trained on."""
    module = given.module
    return fisher_diagonal(
        lambda values, x: functional_call(module, dict(values), (x,)),
        {"2.weight": module[2].weight},
        given.seen,
    )
