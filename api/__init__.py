"""The faces of the ledger: REST and command line."""

from weightledger.api.rest.errors import install as install_errors
from weightledger.api.rest.router import router

__all__ = ["install_errors", "router"]
