"""The faces of the ledger: REST and command line, and old replies computed anew.

A name is imported when it is first asked for: the command does not need the web framework.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightledger.api.reproducing.again import reproduce
    from weightledger.api.rest.errors import install as install_errors
    from weightledger.api.rest.router import router

_HOMES = {
    "install_errors": ("weightledger.api.rest.errors", "install"),
    "reproduce": ("weightledger.api.reproducing.again", "reproduce"),
    "router": ("weightledger.api.rest.router", "router"),
}

__all__ = ["install_errors", "reproduce", "router"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = globals()[name] = getattr(import_module(module), attribute)
    return value
