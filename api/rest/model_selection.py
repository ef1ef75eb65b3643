"""Which weights a request means, and how a reply names them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from weightledger import Engine
from weightledger.ledger.engines import Live
from weightledger.ledger.errors import ModelNotFound
from weightledger.ledger.monitoring.samples import Measuring


class Inferring(Protocol):
    """What inference routes need: DynamicModelManager, or a state of the past that is rebuilt."""

    @property
    def model_name(self) -> str:
        """The name that the model is served under."""

    @property
    def engine(self) -> Engine:
        """What holds the weights."""

    @property
    def adapter_names(self) -> Sequence[str]:
        """The adapters that can be asked for now."""

    def lease(
        self, adapter: str | None = None, measuring: Measuring | None = None
    ) -> AbstractContextManager[Live]:
        """One state to infer with; see `DynamicModelManager.lease`."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a `model` field leads to: the name to answer with, and how to hold its weights.

    What `lease` takes says what is to be measured of the request.
    """

    name: str
    lease: Callable[[Measuring], AbstractContextManager[Live]]


@dataclass(frozen=True, slots=True)
class Origin:
    """The state a reply was computed from."""

    seq: int
    digest: bytes

    @property
    def headers(self) -> dict[str, str]:
        """`X-Weights-Seq` and `X-Weights-Digest`."""
        return {"x-weights-seq": str(self.seq), "x-weights-digest": self.digest.hex()}

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: the same for two replies from the same state."""
        return f"seq-{self.seq}-{self.digest.hex()[:16]}"


def resolve(manager: Inferring, model: str | None) -> ServedModel:
    """What the `model` field of a request names, the served model or one of its adapters.

    Without one it is the served model. An adapter is looked up again in the version that is
    leased, so a request that waited while it was unloaded gets ModelNotFound then.
    Raises ModelNotFound with the names that are served.
    """
    if model is None or model == manager.model_name:
        return ServedModel(manager.model_name, lambda measuring: manager.lease(None, measuring))
    loaded = manager.adapter_names
    if model not in loaded:
        served = ", ".join([manager.model_name, *loaded])
        raise ModelNotFound(f"model {model!r} not found; served here: {served}", param="model")
    return ServedModel(model, lambda measuring: manager.lease(model, measuring))
