"""Processes that run functions of tests, forked from one that has imported what those need.

One per worker of pytest, whoever asks first: multiprocessing has one fork server a process.
"""

import functools
import multiprocessing
import os
import sys
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

import pytest

# What any of them imports before it can do its work, which costs more than the work.
_PRELOADED = [
    "pytest",
    "psycopg",
    "pysqlite3",
    "torch",
    "weightledger.ledger.codecs.compiled",
    "weightledger.ledger.ledger",
    "weightledger.ledger.opening",
    "weightledger.ledger.history.rebuilding",
    "weightledger.ledger.projection.starting",
    "weightledger.ledger.sql.hold",
    "weightledger.ledger.sql.postgres",
    "weightledger.ledger.sql.sqlite",
    "weightledger.ledger.sql.torn_copies",
    "weightledger.ledger.sql.triggers",
    "tests.numba_ready",
    "tests.serving",
    "tests.engines.inference_server",
]


@functools.cache
def forking() -> ForkServerContext:
    """Starts the processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    return context
