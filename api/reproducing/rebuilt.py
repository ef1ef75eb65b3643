"""A state of the past as inference routes see it."""

import contextlib
from collections.abc import Iterator

import torch

from weightledger import Engine
from weightledger.ledger import adapters
from weightledger.ledger.adapters.adapter import all_of
from weightledger.ledger.debug.walking import ReplayedState
from weightledger.ledger.engines import Live
from weightledger.ledger.engines.adapted import AdapterEngine, through
from weightledger.ledger.errors import InvalidRequest, LedgerError
from weightledger.ledger.monitoring.samples import Measuring
from weightledger.ledger.tensors.spec import WEIGHTS


class RebuiltView:
    """The routes' view of an engine that shows that state."""

    def __init__(self, name: str, engine: Engine, state: ReplayedState, seq: int) -> None:
        self.model_name = name
        self.engine = engine
        beside = {n: t for n, t in state.tensors.items() if not n.startswith(WEIGHTS)}
        self.adapter_names = adapters.names(beside)
        _require_unused(engine)
        weights = _weights_for(engine, state)
        try:
            if isinstance(engine, AdapterEngine):
                prepared = engine.prepare_with(weights, all_of(beside))
            else:
                prepared = engine.prepare(weights)
        except InvalidRequest as error:
            raise InvalidRequest(
                f"the loaded model is not the one of the log {name!r}: {error}", param="model"
            ) from error
        engine.publish(prepared, seq=seq, digest=state.digest.value)

    @contextlib.contextmanager
    def lease(
        self, adapter: str | None = None, measuring: Measuring | None = None
    ) -> Iterator[Live]:
        """The state; nothing is measured."""
        with self.engine.lease() as live:
            yield live if adapter is None else through(live, adapter)


def _require_unused(engine: Engine) -> None:
    try:
        with engine.lease():
            pass
    except LedgerError:
        return
    raise InvalidRequest("the engine shows a model already: load another for this", param="engine")


def _weights_for(engine: Engine, state: ReplayedState) -> dict[str, torch.Tensor]:
    """The state's weights by the names of the engine; InvalidRequest when they are not its own."""
    weights = {
        name.removeprefix(WEIGHTS): tensor
        for name, tensor in state.tensors.items()
        if name.startswith(WEIGHTS)
    }
    own = engine.specs().keys()
    if weights.keys() != own:
        missing, unknown = sorted(own - weights.keys()), sorted(weights.keys() - own)
        raise InvalidRequest(
            f"the loaded model is not the one of the log {state.model!r}: "
            f"{len(missing)} of its tensors are not in the state ({', '.join(missing[:3])}), "
            f"{len(unknown)} of the state's are not in it ({', '.join(unknown[:3])})",
            param="model",
        )
    return weights
