"""The backend "ledger" inside vLLM's workers. Importable where vLLM is installed, only there.

vLLM finds it by the entry point group `vllm.general_plugins`, in every process it starts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from weightledger.ledger.engines.vllm import BACKEND, StateRef
from weightledger.ledger.engines.vllm.copies import partly_loaded, set_aside
from weightledger.ledger.engines.vllm.staging import Instruction, Staging
from weightledger.ledger.errors import WeightsMismatch


@dataclass
class StagedState(WeightTransferUpdateInfo):
    """Which staged state to load: its seq and hex digest."""

    seq: int
    digest: str


class LedgerWeights(WeightTransferEngine):
    """Loads states of the ledger into one worker's model, in checkpoint form, layer by layer."""

    init_info_cls = Instruction
    update_info_cls = StagedState
    supports_draft_weight_update = False
    _staging: Staging | None = None
    _padded: Mapping[str, int] | None = None  # what modules got of themselves when all was loaded

    def init_transfer_engine(self, init_info: Instruction) -> None:
        """Stage, confirm or try; what the model serves is not touched."""
        if self._staging is None:
            packed = getattr(self.model, "packed_modules_mapping", None)
            self._staging = Staging(packed, self._attempt)
        self._staging.follow(init_info)

    def start_weight_update(self) -> None:
        """Nothing: until there is something to load, the model stays whole."""

    def update_weights(self, update_info: dict[str, object]) -> None:
        """Load what is staged."""
        self.receive_weights(self.parse_update_info(update_info))
        # Not on a CPU, where torch has no accelerator to wait for.
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: StagedState) -> None:
        """Load what is staged, if it is that state; raises before touching the model if not."""
        if self._staging is None:
            raise RuntimeError("nothing was staged in this worker")
        target = StateRef(update_info.seq, bytes.fromhex(update_info.digest))
        self._staging.load(target, self._load)

    def finish_weight_update(self) -> None:
        """Nothing: the model is whole again when `update_weights` returns."""

    def shutdown(self) -> None:
        """Nothing is held between calls."""

    def _load(self, tensors: list[tuple[str, torch.Tensor]]) -> None:
        with torch.device(self.device):
            initialize_layerwise_reload(self.model)
            try:
                self.model.load_weights(iter(tensors))
                self._require_whole()
            finally:
                # Puts back what was not loaded; without it the layers would stay without data.
                finalize_layerwise_reload(self.model, self.model_config)

    def _attempt(self, tensors: list[tuple[str, torch.Tensor]]) -> None:
        """Load into copies; WeightsMismatch says at which tensor the model refused and why."""
        at = "the first tensor"

        def told() -> Iterator[tuple[str, torch.Tensor]]:
            nonlocal at
            for name, tensor in tensors:
                at = repr(name)
                yield name, tensor

        with (
            set_current_vllm_config(self.vllm_config),
            torch.device(self.device),
            set_aside(self.model),
        ):
            try:
                self.model.load_weights(told())
                at = "the end"
                self._require_whole()
            except Exception as error:
                problem = f"{type(error).__name__}: {error}".removesuffix(": ")
                raise WeightsMismatch(
                    f"the model takes no such weights, at {at}: {problem}"
                ) from error

    def _require_whole(self) -> None:
        """WeightsMismatch if modules got other parts of themselves than when all was loaded.

        A server would go on with garbage in what a module was not given.
        """
        parts = partly_loaded(self.model)
        if self._padded is None:
            self._padded = parts
        for name, values in parts.items():
            if self._padded.get(name) != values:
                raise WeightsMismatch(f"only {values} values of module {name!r} would be loaded")


def register() -> None:
    """Make the backend known to this process of vLLM."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, LedgerWeights)
