"""The faces of the ledger: REST and command line."""

from api.errors import install as install_errors
from api.router import router

__all__ = ["install_errors", "router"]
