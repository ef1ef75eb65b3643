"""Weight Ledger: an event-sourced ledger of live model weights."""

from ledger.adapters import LoRAConfig
from ledger.caller import Caller
from ledger.config import DynamicUpdateConfig, ModelConfig
from ledger.engines import Engine
from ledger.engines.inplace import InplaceEngine
from ledger.engines.state import StateEngine
from ledger.engines.torch import TorchEngine
from ledger.errors import LedgerError
from ledger.ledger import Ledger
from ledger.log import Log
from ledger.manager import DynamicModelManager
from ledger.updates import IncrementalUpdateRequest
from ledger.versions import ModelVersion

__all__ = [
    "Caller",
    "DynamicModelManager",
    "DynamicUpdateConfig",
    "Engine",
    "IncrementalUpdateRequest",
    "InplaceEngine",
    "Ledger",
    "LedgerError",
    "LoRAConfig",
    "Log",
    "ModelConfig",
    "ModelVersion",
    "StateEngine",
    "TorchEngine",
]
