"""The worker's side, without the server: a state's tensors read from the ledger, then handed over.

Nothing here touches a model. `stage` reads and verifies; `load` hands over what was staged, once,
for the very state that was staged, and remembers it as the one that is held; `try` has a proposed
state tried where nothing of it is kept.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from weightledger.ledger.engines.vllm import StateRef
from weightledger.ledger.engines.vllm.fused import PACKED
from weightledger.ledger.engines.vllm.reading import proposed, read
from weightledger.ledger.errors import InvalidRequest, WeightsMismatch

Tensors = list[tuple[str, torch.Tensor]]
Load = Callable[[Tensors], None]


@dataclass
class Instruction:
    """What the driver asks of a worker, as the route carries it.

    `digest` is the state's, in hex. `names` are bare tensor names that changed since the state with
    digest `since`, None for all of them: a worker that does not hold that state refuses a part.
    `proposal` is the id of what is to be tried, which leads from the state `since` to `digest`.
    """

    action: Literal["stage", "confirm", "try"]
    model: str
    seq: int
    digest: str
    database: str | None = None
    names: list[str] | None = None
    since: str | None = None
    proposal: str | None = None

    @property
    def target(self) -> StateRef:
        return StateRef(self.seq, bytes.fromhex(self.digest))


class Staging:
    """What one worker has staged, and the version it holds."""

    def __init__(
        self, packed: Mapping[str, Sequence[str]] | None = None, attempt: Load | None = None
    ) -> None:
        """`attempt` loads tensors and gives back what was there; None: this worker cannot."""
        self._packed = {**PACKED, **(packed or {})}
        self._attempt = attempt
        self._staged: tuple[StateRef, list[tuple[str, torch.Tensor]]] | None = None
        self._held: StateRef | None = None

    def follow(self, asked: Instruction) -> None:
        """Do what `asked` says. Raises, changing nothing that is loaded, when it cannot be done."""
        if asked.action == "stage":
            self._stage(asked)
        elif asked.action == "confirm":
            if not self._holds(asked.digest):
                raise WeightsMismatch(f"this worker holds {self._what()}, not {asked.digest}")
        elif asked.action == "try":
            self._try(asked)
        else:
            raise InvalidRequest(f"action must be stage, confirm or try, got {asked.action!r}")

    def load(self, target: StateRef, load: Load) -> None:
        """Hand the staged tensors to `load`; refuses, before that, any other state than staged.

        A load that fails leaves the worker holding no known state.
        """
        staged, self._staged = self._staged, None
        if staged is None or staged[0] != target:
            what = staged[0].version if staged else "nothing"
            raise WeightsMismatch(f"{what} is staged, not {target.version}")
        self._held = None
        if staged[1]:
            load(staged[1])
        self._held = target

    def _holds(self, digest: str | None) -> bool:
        return self._held is not None and self._held.digest.hex() == digest

    def _what(self) -> str:
        return self._held.version if self._held else "its own weights"

    def _stage(self, asked: Instruction) -> None:
        self._staged = None
        if asked.names is not None and not self._holds(asked.since):
            raise WeightsMismatch(
                f"this worker holds {self._what()}, not state {asked.since}: it needs every tensor"
            )
        target = asked.target
        self._staged = target, read(asked.database, asked.model, target, asked.names, self._packed)

    def _try(self, asked: Instruction) -> None:
        if asked.proposal is None or asked.since is None:
            raise InvalidRequest("name the proposal to try, and the state it is on")
        if not self._holds(asked.since):
            raise WeightsMismatch(f"this worker holds {self._what()}, not state {asked.since}")
        since = bytes.fromhex(asked.since)
        parts: Iterable[Tensors] = proposed(
            asked.database, asked.model, asked.proposal, since, asked.target, self._packed
        )
        for tensors in parts:
            if self._attempt is not None:
                self._attempt(tensors)
