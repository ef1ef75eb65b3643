"""The backend "ledger" inside vLLM's workers. Importable where vLLM is installed, only there.

vLLM finds it by the entry point group `vllm.general_plugins`, in every process it starts.
"""

from dataclasses import dataclass

from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferUpdateInfo

from weightledger.ledger.engines.vllm import BACKEND
from weightledger.ledger.engines.vllm.loading import Loader, WorkerModel, reload_of
from weightledger.ledger.engines.vllm.staging import Instruction


@dataclass
class StagedState(WeightTransferUpdateInfo):
    """Which staged state to load: its seq and hex digest."""

    seq: int
    digest: str


class LedgerWeights(WeightTransferEngine):
    """Loads states of the ledger into one worker's model."""

    init_info_cls = Instruction
    update_info_cls = StagedState
    supports_draft_weight_update = False
    _loader: Loader | None = None

    @property
    def loader(self) -> Loader:
        """Made at first use: what it loads by is imported when the server has its model."""
        if self._loader is None:
            config = self.vllm_config
            served = WorkerModel(
                self.model,
                self.model_config,
                self.device,
                lambda: set_current_vllm_config(config),
            )
            self._loader = Loader(served, reload_of("vllm"))
        return self._loader

    def init_transfer_engine(self, init_info: Instruction) -> None:
        """Stage, confirm or try; what the model serves is not touched."""
        self.loader.follow(init_info)

    def start_weight_update(self) -> None:
        """Nothing: until there is something to load, the model stays whole."""

    def update_weights(self, update_info: dict[str, object]) -> None:
        """Load what is staged."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: StagedState) -> None:
        """Load what is staged, if it is that state; raises before touching the model if not."""
        self.loader.show(update_info.seq, update_info.digest)

    def finish_weight_update(self) -> None:
        """Nothing: the model is whole again when `update_weights` returns."""

    def shutdown(self) -> None:
        """Nothing is held between calls."""


def register() -> None:
    """Make the backend known to this process of vLLM."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, LedgerWeights)
