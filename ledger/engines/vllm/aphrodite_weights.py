"""The backend "ledger" inside Aphrodite's workers. Importable where it is installed, only there.

In newer releases (0.24.1 was looked at) the weight transfer is vLLM's; `aphrodite_older` is for
those before.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from aphrodite.config import set_current_aphrodite_config
from aphrodite.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferUpdateInfo,
)

from weightledger.ledger.engines.vllm.transfer import WorkerTransfer


@dataclass
class StagedState(WeightTransferUpdateInfo):
    """Which staged state to load: its seq and hex digest."""

    seq: int
    digest: str


class LedgerWeights(WorkerTransfer, WeightTransferEngine):
    """Loads states of the ledger into one worker's model."""

    update_info_cls = StagedState
    package = "aphrodite"

    def configured(self) -> AbstractContextManager[Any]:
        """See `WorkerTransfer.configured`."""
        context: AbstractContextManager[Any] = set_current_aphrodite_config(self.aphrodite_config)
        return context
