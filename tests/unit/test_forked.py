"""Processes that are forked for tests, whichever test asks for the first of them."""

import multiprocessing
import os
import shutil
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path

import pytest

from tests.forked import ForkServer


def test_they_outlive_the_folder_of_the_first_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has temporary files in a folder of its own, that is removed when it has passed."""
    folder = tmp_path / "of a test"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    config = vars(multiprocessing.current_process())["_config"]
    monkeypatch.delitem(config, "tempdir", raising=False)  # that it was asked for before
    server = ForkServer()
    server.ensure_running()
    shutil.rmtree(folder)
    monkeypatch.setattr(forkserver, "connect_to_new_process", server.connect_to_new_process)
    process = multiprocessing.get_context("forkserver").Process(target=sys.exit, args=(3,))
    process.start()
    process.join()
    assert process.exitcode == 3
    os.close(server._forkserver_alive_fd)
