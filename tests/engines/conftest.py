"""One inference server of each surface, healed before each test."""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext

import pytest

from tests.engines.replica import Replica


@pytest.fixture(scope="session")
def ready_made() -> Iterator[ForkServerContext]:
    """Starts processes that have imported what an inference server needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ledger.store.sql", "tests.engines.inference_server"])
        yield context


@pytest.fixture(scope="session", params=["vllm", "aphrodite"])
def shared_replica(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    ready_made: ForkServerContext,
) -> Iterator[Replica]:
    made = Replica(request.param, tmp_path_factory.mktemp(request.param), ready_made).start()
    yield made
    made.close()


@pytest.fixture
def replica(shared_replica: Replica) -> Replica:
    """A server of either surface that is up; a test that kills it starts it again."""
    shared_replica.heal()
    return shared_replica
