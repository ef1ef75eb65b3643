"""Actions that wait for their reward, by request id.

What is kept of an action is the low-rank form of its gradient, its activities: [batch, in] and
[batch, out], never the outer product. It is memory of this process: a restart forgets it, and a
reward that comes then is told that this may be why.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from weightledger.rules.dtesn.streams import Clock
from weightledger.rules.errors import RuleError, UnknownRequest
from weightledger.rules.registry import get_rule


@dataclass(frozen=True, slots=True)
class WaitingAction:
    """An action: the parameter and rule it is for, its stream, and its activities.

    `answered` is the idempotency key of the reward it has got: a retry finds it, nobody else.
    """

    parameter: str
    rule: str
    stream: str
    activities: Mapping[str, torch.Tensor]
    until: float
    answered: str | None = None


class Rewards:
    """Waiting actions, at most `limit`, each for `ttl_s` seconds."""

    def __init__(self, limit: int, ttl_s: float, clock: Clock) -> None:
        self._limit = limit
        self._ttl_s = ttl_s
        self._clock = clock
        self._waiting: dict[str, WaitingAction] = {}

    def __len__(self) -> int:
        self._expire()
        return len(self._waiting)

    def remember(
        self,
        request_id: str,
        parameter: str,
        rule: str,
        stream: str,
        activities: Mapping[str, torch.Tensor],
    ) -> None:
        """Keep an action; RuleError when its id is taken or as many wait as may."""
        self._expire()
        if request_id in self._waiting:
            raise RuleError(
                f"request {request_id!r} waits for its reward already", param="request_id"
            )
        if len(self._waiting) >= self._limit:
            raise RuleError(
                f"{self._limit} requests wait for their reward, the most there may be",
                param="request_id",
            )
        kept = {name: tensor.detach().clone() for name, tensor in activities.items()}
        until = self._clock() + self._ttl_s
        self._waiting[request_id] = WaitingAction(parameter, rule, stream, kept, until)

    def find(self, request_id: str, key: str | None = None) -> WaitingAction:
        """The action of a request; UnknownRequest when none waits.

        `key` is the idempotency key of the reward.
        """
        self._expire()
        waiting = self._waiting.get(request_id)
        if waiting is None or (waiting.answered is not None and waiting.answered != key):
            raise UnknownRequest(
                f"nothing waits for the reward of request {request_id!r}: it is unknown, was "
                f"rewarded already, is older than {self._ttl_s:g} s, or was sent before this "
                "process started (what waits is kept in memory only)",
                param="request_id",
            )
        return waiting

    def answer(self, request_id: str, key: str | None) -> None:
        """It has its reward, sent with this idempotency key."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is not None and key is not None:
            self._waiting[request_id] = replace(waiting, answered=key)

    def _expire(self) -> None:
        now = self._clock()
        for request_id in [key for key, one in self._waiting.items() if now >= one.until]:
            del self._waiting[request_id]


def check_action(rule: str, activities: Iterable[str]) -> None:
    """RuleError unless these are all that the rule wants but the reward, and it wants one."""
    wanted = get_rule(rule).activities
    given = set(activities)
    if "reward" not in wanted:
        raise RuleError(f"{rule} learns from no reward", param="rule")
    if missing := [name for name in wanted if name not in given and name != "reward"]:
        raise RuleError(f"{rule} needs {', '.join(missing)} as well", param=missing[0])
