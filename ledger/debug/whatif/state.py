"""A what-if: which events are left out of which state, and what comes of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from weightledger.ledger.debug.diff import differing
from weightledger.ledger.debug.measured import TensorDiff, measure
from weightledger.ledger.debug.walking import ReplayedState
from weightledger.ledger.events import Event
from weightledger.ledger.history.positions import Position

Mode = Literal["mechanical", "causal"]
MODES: tuple[Mode, ...] = ("mechanical", "causal")


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The state at a position without some events.

    `state` is what it would be, `actual` what it is. `derived` counts the later updates that were
    worked out again (causal), `not_asked` those of them that an evaluator had judged: it is not
    asked about other states, they count as accepted. `refused` are updates whose result would not
    be finite on the altered state, or which their own rule would refuse: they change nothing in it.
    """

    mode: Mode
    at: Position
    without: Sequence[Event]
    state: ReplayedState
    actual: ReplayedState
    derived: int = 0
    not_asked: int = 0
    refused: Sequence[str] = ()
    measured: Sequence[TensorDiff] | None = None
    """How it differs, where several processes measured it: no tensor is at hand here then."""

    @property
    def words(self) -> str:
        """What it is, for reasons and headers."""
        names = ", ".join(event.name for event in self.without)
        return f"what-if ({self.mode}): {self.at.text} without {names}"

    def to_json(self) -> dict[str, Any]:
        """What it is and what it changes, as every face shows it."""
        changed = [one.to_json() for one in self.diff()]
        return {
            "object": "what_if",
            "mode": self.mode,
            "model": self.state.model,
            "to": {
                "position": self.at.text,
                "seq": self.at.node,
                "digest": self.actual.digest.value.hex(),
            },
            "without": [event.name for event in self.without],
            "digest": self.state.digest.value.hex(),
            "same": self.state.digest.value == self.actual.digest.value,
            "derived": self.derived,
            "not_asked": self.not_asked,
            "refused": list(self.refused),
            "changed": changed,
        }

    def diff(self) -> list[TensorDiff]:
        """How each tensor of the what-if differs from what it is, what moved farthest first."""
        measured = self._measured() if self.measured is None else self.measured
        return sorted(measured, key=lambda one: (*(-part for part in one.moved), one.name))

    def _measured(self) -> list[TensorDiff]:
        old, new = self.actual, self.state
        names = differing(old.digest, new.digest)
        sides = [
            {n: (one.digest.specs[n], one.tensors[n]) for n in names if n in one.digest.specs}
            for one in (old, new)
        ]
        return [measure(name, sides[0].get(name), sides[1].get(name), "none") for name in names]
