"""Weight Ledger: an event-sourced ledger of live model weights.

The public surface. A name is imported when it is first asked for, so that what reads a log alone
does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightledger.ledger.adapters import LoRAConfig
    from weightledger.ledger.config import DynamicUpdateConfig, ModelConfig
    from weightledger.ledger.debug.whatif.derivations import Kept, derives
    from weightledger.ledger.engines import Engine, Live
    from weightledger.ledger.engines.inplace import InplaceEngine
    from weightledger.ledger.engines.state import StateEngine
    from weightledger.ledger.engines.torch import TorchEngine
    from weightledger.ledger.errors import (
        InvalidRequest,
        LedgerError,
        NotFound,
        OperationDisabled,
        PluginError,
        Pruned,
    )
    from weightledger.ledger.events import Event
    from weightledger.ledger.history.versions import ModelVersion
    from weightledger.ledger.ledger import Ledger
    from weightledger.ledger.log import Log
    from weightledger.ledger.manager import DynamicModelManager
    from weightledger.ledger.monitoring.significance import sign_test
    from weightledger.ledger.plugins import load_plugin, plugin_ids
    from weightledger.ledger.tensors.lanes import tensor_digest
    from weightledger.ledger.writing.caller import Caller
    from weightledger.ledger.writing.commands import command_digest
    from weightledger.ledger.writing.given import Given
    from weightledger.ledger.writing.handlers import add_command
    from weightledger.ledger.writing.plan import Plan, Write
    from weightledger.ledger.writing.policy import Verdict
    from weightledger.ledger.writing.requests import IncrementalUpdateRequest, metadata_text
    from weightledger.ledger.writing.staged import Staged

_HOMES = {
    "Caller": "weightledger.ledger.writing.caller",
    "DynamicModelManager": "weightledger.ledger.manager",
    "DynamicUpdateConfig": "weightledger.ledger.config",
    "Engine": "weightledger.ledger.engines",
    "Event": "weightledger.ledger.events.event",
    "Given": "weightledger.ledger.writing.given",
    "IncrementalUpdateRequest": "weightledger.ledger.writing.requests",
    "InplaceEngine": "weightledger.ledger.engines.inplace",
    "InvalidRequest": "weightledger.ledger.errors",
    "Kept": "weightledger.ledger.debug.whatif.derivations",
    "Ledger": "weightledger.ledger.ledger",
    "LedgerError": "weightledger.ledger.errors",
    "Live": "weightledger.ledger.engines",
    "Log": "weightledger.ledger.log",
    "LoRAConfig": "weightledger.ledger.adapters",
    "ModelConfig": "weightledger.ledger.config",
    "ModelVersion": "weightledger.ledger.history.versions",
    "NotFound": "weightledger.ledger.errors",
    "OperationDisabled": "weightledger.ledger.errors",
    "Plan": "weightledger.ledger.writing.plan",
    "PluginError": "weightledger.ledger.errors",
    "Pruned": "weightledger.ledger.errors",
    "StateEngine": "weightledger.ledger.engines.state",
    "add_command": "weightledger.ledger.writing.handlers",
    "command_digest": "weightledger.ledger.writing.commands",
    "derives": "weightledger.ledger.debug.whatif.derivations",
    "load_plugin": "weightledger.ledger.plugins",
    "sign_test": "weightledger.ledger.monitoring.significance",
    "metadata_text": "weightledger.ledger.writing.requests",
    "plugin_ids": "weightledger.ledger.plugins",
    "tensor_digest": "weightledger.ledger.tensors.lanes",
    "Staged": "weightledger.ledger.writing.staged",
    "TorchEngine": "weightledger.ledger.engines.torch",
    "Verdict": "weightledger.ledger.writing.policy",
    "Write": "weightledger.ledger.writing.plan",
}

__all__ = [
    "Caller",
    "DynamicModelManager",
    "DynamicUpdateConfig",
    "Engine",
    "Event",
    "Given",
    "IncrementalUpdateRequest",
    "InplaceEngine",
    "InvalidRequest",
    "Kept",
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
    "PluginError",
    "Pruned",
    "Staged",
    "StateEngine",
    "TorchEngine",
    "Verdict",
    "Write",
    "add_command",
    "command_digest",
    "derives",
    "load_plugin",
    "metadata_text",
    "plugin_ids",
    "sign_test",
    "tensor_digest",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
