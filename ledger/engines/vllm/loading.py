"""Loading into one worker's model, for good or only to see whether it would.

vLLM and Aphrodite share this code of theirs under two names, so what is used of it is asked for by
name. Importable everywhere; works where one of them is installed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from weightledger.ledger.engines.vllm import StateRef
from weightledger.ledger.engines.vllm.copies import Reload, partly_loaded, set_aside
from weightledger.ledger.engines.vllm.staging import Instruction, Staging, Tensors
from weightledger.ledger.errors import WeightsMismatch


def reload_of(package: str) -> Reload:
    """The layerwise reload of a server's package, "vllm" or "aphrodite"."""
    at = f"{package}.model_executor.model_loader.reload"
    reload, layerwise, meta = map(import_module, (at, f"{at}.layerwise", f"{at}.meta"))
    return Reload(
        package=package,
        begin=reload.initialize_layerwise_reload,
        finish=reload.finalize_layerwise_reload,
        info_of=layerwise.get_layerwise_info,
        as_they_are=frozenset(meta.SKIP_TENSORS),
        to_meta=meta.to_meta_tensor,
    )


@dataclass(frozen=True, slots=True)
class WorkerModel:
    """What one worker serves: its model with its configuration, where it lies, and the server's
    context in which a model is loaded."""

    model: torch.nn.Module
    model_config: Any
    device: torch.device
    configured: Callable[[], AbstractContextManager[Any]]


class Loader:
    """Follows what the driver asks of one worker; loads in checkpoint form, layer by layer."""

    def __init__(self, served: WorkerModel, reload: Reload) -> None:
        self._served = served
        self._reload = reload
        packed = getattr(served.model, "packed_modules_mapping", None)
        self._staging = Staging(packed, self.attempt)
        # What modules got of themselves when all was loaded.
        self._padded: Mapping[str, int] | None = None

    def follow(self, asked: Instruction) -> None:
        """Stage, confirm or try; what the model serves is not touched."""
        self._staging.follow(asked)

    def show(self, seq: int, digest: str) -> None:
        """Load what is staged, if it is that state; raises before touching the model if not."""
        self._staging.load(StateRef(seq, bytes.fromhex(digest)), self.load)
        # Not on a CPU, where torch has no accelerator to wait for.
        if self._served.device.type != "cpu":
            torch.accelerator.synchronize()

    def load(self, tensors: Tensors) -> None:
        """Load for good."""
        served = self._served
        with torch.device(served.device):
            self._reload.begin(served.model)
            try:
                served.model.load_weights(iter(tensors))  # type: ignore[operator]
                self._require_whole()
            finally:
                # Puts back what was not loaded; without it the layers would stay without data.
                self._reload.finish(served.model, served.model_config)

    def attempt(self, tensors: Tensors) -> None:
        """Load into copies; WeightsMismatch says at which tensor the model refused and why."""
        at = "the first tensor"

        def told() -> Iterator[tuple[str, torch.Tensor]]:
            nonlocal at
            for name, tensor in tensors:
                at = repr(name)
                yield name, tensor

        served = self._served
        with (
            served.configured(),
            torch.device(served.device),
            set_aside(served.model, self._reload),
        ):
            try:
                served.model.load_weights(told())  # type: ignore[operator]
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
        parts = partly_loaded(self._served.model, self._reload)
        if self._padded is None:
            self._padded = parts
        for name, values in parts.items():
            if self._padded.get(name) != values:
                raise WeightsMismatch(f"only {values} values of module {name!r} would be loaded")
