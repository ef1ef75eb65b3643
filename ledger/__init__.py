"""Weight Ledger: an event-sourced ledger of live model weights."""

from ledger.adapters import LoRAConfig
from ledger.caller import Caller
from ledger.config import DynamicUpdateConfig, ModelConfig
from ledger.digest import tensor_digest
from ledger.engines import Engine, Live
from ledger.engines.inplace import InplaceEngine
from ledger.engines.state import StateEngine
from ledger.engines.torch import TorchEngine
from ledger.errors import InvalidRequest, LedgerError, NotFound, OperationDisabled, Pruned
from ledger.events import Event
from ledger.ledger import Ledger
from ledger.log import Log
from ledger.manager import DynamicModelManager
from ledger.proposals import Plan, Planner, Verdict, Write
from ledger.tip import Tip
from ledger.updates import IncrementalUpdateRequest
from ledger.versions import ModelVersion

__all__ = [
    "Caller",
    "DynamicModelManager",
    "DynamicUpdateConfig",
    "Engine",
    "Event",
    "IncrementalUpdateRequest",
    "InplaceEngine",
    "InvalidRequest",
    "Ledger",
    "LedgerError",
    "Live",
    "LoRAConfig",
    "Log",
    "ModelConfig",
    "ModelVersion",
    "NotFound",
    "OperationDisabled",
    "Plan",
    "Planner",
    "Pruned",
    "StateEngine",
    "Tip",
    "TorchEngine",
    "Verdict",
    "Write",
    "tensor_digest",
]
