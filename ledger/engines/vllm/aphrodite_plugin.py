"""Registers the backend "ledger" with Aphrodite, in the form that its release knows.

Aphrodite finds it by the entry point group `aphrodite.general_plugins`, in every process it starts.
"""

from aphrodite.distributed.weight_transfer import WeightTransferEngineFactory
from aphrodite.distributed.weight_transfer.base import WeightTransferEngine

from weightledger.ledger.engines.vllm import BACKEND


def register() -> None:
    """Make the backend known to this process of Aphrodite."""
    if BACKEND in WeightTransferEngineFactory._registry:
        return
    sessions = hasattr(WeightTransferEngine, "start_weight_update")
    module = __package__ + (".aphrodite_weights" if sessions else ".aphrodite_older")
    WeightTransferEngineFactory.register_engine(BACKEND, module, "LedgerWeights")
