"""What a rule is told of a window of samples."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, one_hot

from benchmarks.rules_drift.streams import CLASSES
from benchmarks.rules_drift.ways import Way
from weightledger.rules import get_rule

STEPS = 4
"""Time steps of a sample, where a rule sees spikes."""

USUAL_RATE = 0.05


@dataclass
class Observer:
    """Draws noise, actions and spikes from a generator of its own.

    `loudest` is the largest hidden activity in training, at which a hidden unit surely fires;
    `usual` is how often actions were right lately.
    """

    drawn: torch.Generator
    loudest: float
    usual: float = 1.0

    def told(
        self, way: Way, x: torch.Tensor, y: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The rule's activities for hidden activities x [samples, 128] and outputs y [samples, 10],
        and x, y and target where a gate scores with them."""
        whole = {"x": x, "y": y, "target": one_hot(labels, CLASSES).float()}
        wanted = get_rule(way.rule or "").activities
        if way.rule == "intrinsic-plasticity":
            return {"y": y.tanh()}
        if way.rule == "reinforce":
            found = self._actions(x, y, labels)
        elif way.rule == "node-perturbation":
            found = self._perturbed(way.config["sigma"], x, y, labels)
        elif "pre_spikes" in wanted:
            found = self._spikes(x, y, labels)
        else:
            found = whole
        found = {name: tensor for name, tensor in found.items() if name in wanted}
        return {**whole, **found} if way.gated else found

    def _act(self, y: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One output for each sample, drawn from the softmax, one-hot; and whether it is right."""
        taken = torch.multinomial(y.softmax(1), 1, generator=self.drawn)[:, 0]
        return one_hot(taken, CLASSES).float(), (taken == labels).float()

    def _actions(self, x: torch.Tensor, y: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        action, right = self._act(y, labels)
        return {"x": x, "mean": y.softmax(1), "action": action, "reward": right}

    def _perturbed(
        self, sigma: float, x: torch.Tensor, y: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, Any]:
        noise = torch.randn(y.shape, generator=self.drawn) * sigma
        loss = cross_entropy(y, labels, reduction="none")
        moved = cross_entropy(y + noise, labels, reduction="none")
        return {"x": x, "noise": noise, "loss": loss, "perturbed_loss": moved}

    def _spikes(self, x: torch.Tensor, y: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        """Bernoulli spikes: hidden units fire in a sample's first step with a chance that is their
        activity over `loudest`; the action's output fires in the second, where the reward comes:
        1 or 0, less what is usual. The other two steps are silent."""
        action, right = self._act(y, labels)
        rows = len(x) * STEPS
        pre, post = x.new_zeros(rows, x.shape[1]), y.new_zeros(rows, CLASSES)
        reward = y.new_zeros(rows)
        chances = (x / self.loudest).clamp(0, 1)
        pre[::STEPS] = torch.bernoulli(chances, generator=self.drawn)
        post[1::STEPS] = action
        for place, was in enumerate(right.tolist()):
            reward[place * STEPS + 1] = was - self.usual
            self.usual += USUAL_RATE * (was - self.usual)
        return {"pre_spikes": pre, "post_spikes": post, "reward": reward}


def gradient(x: torch.Tensor, y: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """−∂ cross-entropy/∂W [10, 128], the sum over the samples."""
    return (one_hot(labels, CLASSES) - y.softmax(1)).mT @ x
