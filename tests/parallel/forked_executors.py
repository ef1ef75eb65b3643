"""Workers that are forked, as commands do before they open anything; run by test_executors.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parallel.test_executors import Suite, importable
from weightledger.ledger.parallel import Executor, Task, in_order
from weightledger.ledger.parallel.choosing import executing

__all__ = ["TestForks", "importable", "three_forks"]


def already() -> None:
    """This process has all that its tasks need."""


@pytest.fixture(scope="module")
def three_forks() -> Iterator[Executor]:
    with executing("local", 3, prepare=already) as executor:
        yield executor


class TestForks(Suite):
    @pytest.fixture
    def executor(self, three_forks: Executor) -> Executor:
        return three_forks

    def test_a_fork_has_none_of_the_files_of_its_origin(self, tmp_path: Path) -> None:
        """Neither its database nor the other end of another worker's pipe."""
        with (tmp_path / "ours").open("w"), executing("local", 3, prepare=already) as forked:
            assert forked.start_s < 1, "this process was not forked: it has other threads"
            tasks = [Task("tests.parallel.tasks:open_files", {}, apart=True)] * 3
            for files in in_order(forked.run(tasks), 3):
                assert all(file.startswith("pipe:") for file in files)
                assert len(files) == 2
