"""The worker's side, without the server: a state's tensors read from the ledger, then handed over.

Nothing here touches a model. `stage` reads and verifies; `take` gives what was staged, once, for
the very state that was staged; `holds` remembers which state was loaded.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch

from weightledger.ledger.engines.vllm import StateRef
from weightledger.ledger.engines.vllm.fused import PACKED, whole_groups
from weightledger.ledger.errors import InvalidRequest, WeightsMismatch
from weightledger.ledger.history.reader import History
from weightledger.ledger.store.sql_store import SqlStore
from weightledger.ledger.tensors.spec import WEIGHTS

DATABASE = "WEIGHTLEDGER_DATABASE"
"""Where a worker finds the ledger, if not where the driver does."""

Load = Callable[[list[tuple[str, torch.Tensor]]], None]


@dataclass
class Instruction:
    """What the driver asks of a worker, as the route carries it.

    `digest` is the state's, in hex. `names` are bare tensor names that changed since the state with
    digest `since`, None for all of them: a worker that does not hold that state refuses a part.
    """

    action: Literal["stage", "confirm"]
    model: str
    seq: int
    digest: str
    database: str | None = None
    names: list[str] | None = None
    since: str | None = None

    @property
    def target(self) -> StateRef:
        return StateRef(self.seq, bytes.fromhex(self.digest))


class Staging:
    """What one worker has staged, and the version it holds."""

    def __init__(self, packed: Mapping[str, Sequence[str]] | None = None) -> None:
        self._packed = {**PACKED, **(packed or {})}
        self._staged: tuple[StateRef, list[tuple[str, torch.Tensor]]] | None = None
        self._held: StateRef | None = None

    def follow(self, asked: Instruction) -> None:
        """Do what `asked` says. Raises, changing nothing that is loaded, when it cannot be done."""
        if asked.action == "stage":
            self._stage(asked)
        elif asked.action == "confirm":
            if not self._holds(asked.digest):
                raise WeightsMismatch(f"this worker holds {self._what()}, not {asked.digest}")
        else:
            raise InvalidRequest(f"action must be stage or confirm, got {asked.action!r}")

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
        self._staged = (asked.target, read(asked, self._packed))


def read(
    asked: Instruction, packed: Mapping[str, Sequence[str]] = PACKED
) -> list[tuple[str, torch.Tensor]]:
    """Tensors of a state by bare name, in whole groups, every one verified.

    Raises CorruptLedger when the log does not lead to that state, StorageError when it cannot be
    read.
    """
    url = os.environ.get(DATABASE) or asked.database
    if url is None:
        raise InvalidRequest(f"set {DATABASE} where the workers run", param="database")
    target = asked.target
    store = SqlStore.open(url, upgrade=False)
    try:
        with ThreadPoolExecutor(1) as pool:
            history = History(store.model(asked.model), pool)
            event = history.require(target.seq)
            if event.state_after != target.digest:
                raise WeightsMismatch(f"this ledger's event {target.seq} leads to another state")
            weights = [name for name in history.head_state().specs if name.startswith(WEIGHTS)]
            every = [name.removeprefix(WEIGHTS) for name in weights]
            names = every if asked.names is None else whole_groups(asked.names, every, packed)
            full = history.tensors(event.node, target.digest, [WEIGHTS + name for name in names])
    finally:
        store.close()
    return [(name.removeprefix(WEIGHTS), tensor) for name, tensor in full.items()]
