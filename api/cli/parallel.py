"""Where a command's work is done: by how many processes, or on a Ray cluster."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from weightledger.api.server.settings import Settings
from weightledger.ledger.parallel import Executor
from weightledger.ledger.parallel.choosing import executing

SHARED = ("jobs", "executor", "ray_address")
"""The settings that such a command has flags for."""


def sharing(settings: Settings, prepare: Callable[[], None]) -> AbstractContextManager[Executor]:
    """The executor that the settings choose; nothing of it is left afterwards.

    Entered before anything is opened: processes of this machine are forked, once this one has what
    their tasks `prepare` for.
    """
    return executing(settings.executor, settings.jobs, settings.ray_address, prepare=prepare)


def for_chains() -> None:
    """What checking the chain of a log takes."""
    from weightledger.ledger.audit import parallel  # noqa: F401


def for_states() -> None:
    """What rebuilding and comparing states takes, the loops for the commonest type with it."""
    import numpy as np

    from weightledger.ledger.audit import parallel, states  # noqa: F401
    from weightledger.ledger.codecs.warming import warm
    from weightledger.ledger.debug import diff, replaying  # noqa: F401

    warm([np.dtype(np.uint32)])


def for_judges() -> None:
    """What judging states by a command or an evaluator takes."""
    from weightledger.api import evaluating  # noqa: F401

    for_states()
