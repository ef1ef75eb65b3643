"""Processes that run functions of tests, forked from one that has imported what those need.

One per worker of pytest, whoever asks first: multiprocessing has one fork server a process. It is
forked from the worker's warm process, since to import all of that anew takes seconds.
"""

import functools
import multiprocessing
import os
import secrets
import socket
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext

from tests import warm

# What any of them imports before it can do its work and the warm process has not.
_PRELOADED = ["pytest", "tests.serving", "tests.engines.inference_server"]
_PROGRAM = f"""
import sys, warnings
from multiprocessing.forkserver import main
warnings.simplefilter("default")  # what a test's process meets is that test's to judge
main(*map(int, sys.argv[1:]), {_PRELOADED})
"""


class ForkServer(forkserver.ForkServer):
    """What multiprocessing has, but that it starts no Python, and waits for nobody's child."""

    def ensure_running(self) -> None:
        with self._lock:
            resource_tracker.ensure_running()
            if self._forkserver_address is not None:
                return
            with socket.socket(socket.AF_UNIX) as listener:
                # In no folder: the one for temporary files may be a test's, which is removed.
                address = f"\0forked-{os.getpid()}-{secrets.token_hex(8)}"
                listener.bind(address)
                listener.listen()
                alive, self._forkserver_alive_fd = os.pipe()  # it ends with the last who has this
                self._process = warm.begin_with((listener.fileno(), alive), program=_PROGRAM)
                os.close(alive)
            self._forkserver_address = address


@functools.cache
def forking() -> ForkServerContext:
    """Starts the processes."""
    server = ForkServer()
    server.ensure_running()
    # Where contexts of multiprocessing look for it.
    forkserver.connect_to_new_process = server.connect_to_new_process
    return multiprocessing.get_context("forkserver")
