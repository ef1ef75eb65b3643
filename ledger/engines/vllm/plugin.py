"""The backend "ledger" inside vLLM's workers. Importable where vLLM is installed, only there.

vLLM finds it by the entry point group `vllm.general_plugins`, in every process it starts.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferUpdateInfo

from weightledger.ledger.engines.vllm import BACKEND
from weightledger.ledger.engines.vllm.transfer import WorkerTransfer


@dataclass
class StagedState(WeightTransferUpdateInfo):
    """Which staged state to load: its seq and hex digest."""

    seq: int
    digest: str


class LedgerWeights(WorkerTransfer, WeightTransferEngine):
    """Loads states of the ledger into one worker's model."""

    update_info_cls = StagedState
    package = "vllm"

    def configured(self) -> AbstractContextManager[Any]:
        """See `WorkerTransfer.configured`."""
        context: AbstractContextManager[Any] = set_current_vllm_config(self.vllm_config)
        return context


def register() -> None:
    """Make the backend known to this process of vLLM."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, LedgerWeights)
