"""What the backend "ledger" does in one worker, whichever server's worker that is.

vLLM and Aphrodite each have a base class of their own for it, with the same methods.
"""

from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import torch

from weightledger.ledger.engines.vllm.loading import Loader, WorkerModel, reload_of
from weightledger.ledger.engines.vllm.staging import Instruction


class WhichState(Protocol):
    """Which staged state to load: its seq and hex digest."""

    seq: int
    digest: str


class WorkerTransfer:
    """Loads states of the ledger into one worker's model; to be put before a server's base class,
    which has the rest."""

    init_info_cls = Instruction
    supports_draft_weight_update = False
    package: ClassVar[str]
    model: torch.nn.Module
    model_config: Any
    device: torch.device
    parse_update_info: Any
    _loader: Loader | None = None

    def configured(self) -> AbstractContextManager[Any]:
        """The server's context in which a model is loaded."""
        raise NotImplementedError

    @property
    def loader(self) -> Loader:
        """Made at first use: what it loads by is imported when the server has its model."""
        if self._loader is None:
            served = WorkerModel(self.model, self.model_config, self.device, self.configured)
            self._loader = Loader(served, reload_of(self.package))
        return self._loader

    def init_transfer_engine(self, init_info: Instruction) -> None:
        """Stage, confirm or try; what the model serves is not touched."""
        self.loader.follow(init_info)

    def start_weight_update(self) -> None:
        """Nothing: until there is something to load, the model stays whole."""

    def update_weights(self, update_info: dict[str, object]) -> None:
        """Load what is staged."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: WhichState) -> None:
        """Load what is staged, if it is that state; raises before touching the model if not."""
        self.loader.show(update_info.seq, update_info.digest)

    def finish_weight_update(self) -> None:
        """Nothing: the model is whole again when `update_weights` returns."""

    def shutdown(self) -> None:
        """Nothing is held between calls."""
