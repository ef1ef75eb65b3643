"""Where a command's work is done: by how many processes, or on a Ray cluster."""

from contextlib import AbstractContextManager

from weightledger.api.server.settings import Settings
from weightledger.ledger.parallel import Executor
from weightledger.ledger.parallel.choosing import executing

SHARED = ("jobs", "executor", "ray_address")
"""The settings that such a command has flags for."""


def sharing(settings: Settings) -> AbstractContextManager[Executor]:
    """The executor that the settings choose; nothing of it is left afterwards."""
    return executing(settings.executor, settings.jobs, settings.ray_address)
