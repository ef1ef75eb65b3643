"""The backend "ledger" inside workers of an older Aphrodite, whose routes are an older vLLM's.

There the worker itself prepares the model for loading and puts it right afterwards; the backend
gets a function that loads. Importable where Aphrodite is installed, only there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from aphrodite.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferUpdateInfo,
)

from weightledger.ledger.engines.vllm import StateRef
from weightledger.ledger.engines.vllm.staging import Instruction, Staging


@dataclass
class StagedState(WeightTransferUpdateInfo):
    """Which staged state to load: its seq and hex digest."""

    seq: int
    digest: str


class LedgerWeights(WeightTransferEngine):
    """Loads states of the ledger into one worker's model."""

    init_info_cls = Instruction
    update_info_cls = StagedState
    _staging: Staging | None = None

    def init_transfer_engine(self, init_info: Instruction) -> None:
        """Stage or confirm; the model is not touched."""
        if self._staging is None:
            self._staging = Staging()
        self._staging.follow(init_info)

    def receive_weights(
        self,
        update_info: StagedState,
        load_weights: Callable[[list[tuple[str, torch.Tensor]]], None],
    ) -> None:
        """Load what is staged, if it is that state."""
        if self._staging is None:
            raise RuntimeError("nothing was staged in this worker")
        target = StateRef(update_info.seq, bytes.fromhex(update_info.digest))
        self._staging.load(target, load_weights)

    def shutdown(self) -> None:
        """Nothing is held between calls."""

    @staticmethod
    def trainer_send_weights(iterator: Any, trainer_args: Any) -> None:
        """Workers read the ledger themselves; no trainer sends to them."""
        raise NotImplementedError("the backend 'ledger' reads its weights from the ledger")
