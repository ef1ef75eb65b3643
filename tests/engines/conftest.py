"""One inference server of each surface, healed before each test."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.replica import Replica
from tests.forked import forking


@pytest.fixture(scope="session", params=["vllm", "aphrodite"])
def shared_replica(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replica]:
    made = Replica(request.param, tmp_path_factory.mktemp(request.param), forking()).start()
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path, migrated_file: Path) -> Path:
    """A data folder with a ledger of its own."""
    shutil.copy(migrated_file, tmp_path)
    return tmp_path


@pytest.fixture
def replica(shared_replica: Replica) -> Replica:
    """A server of either surface that is up; a test that kills it starts it again.

    One that failed in between left it dead: the tests after it get it back.
    """
    shared_replica.ensure_up()
    shared_replica.heal()
    return shared_replica
