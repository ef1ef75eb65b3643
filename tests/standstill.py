"""Tests that wait for ever end by name, with what every thread is at, and the run goes on.

How long a test takes says how busy the machine is, so none has a time limit. One that is not over
when the machine has had nothing to do for minutes waits for what will not come: its process ends,
which pytest-xdist reports as that test's failure.
"""

import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.waiting import HELPERS, PATIENCE_S, MachineRest

_LOOK_S = 5.0
_STATUS = 70


class Standstill:
    """A plugin of pytest: it watches over the test that runs."""

    def __init__(
        self,
        config: pytest.Config,
        patience_s: float = PATIENCE_S,
        rest: Callable[[], MachineRest] = MachineRest,
    ) -> None:
        self._config, self._patience_s, self._rest = config, patience_s, rest

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        over = threading.Event()
        watch = threading.Thread(
            target=self._watch, args=(item.nodeid, over), name="standstill", daemon=True
        )
        watch.start()
        try:
            return (yield)
        finally:
            over.set()
            watch.join()

    def _watch(self, name: str, over: threading.Event) -> None:
        machine = self._rest()
        while not over.wait(min(_LOOK_S, self._patience_s)):
            if machine.lasts_s() > self._patience_s:
                self._end(name)

    def _end(self, name: str) -> None:
        capturing = self._config.pluginmanager.getplugin("capturemanager")
        if capturing is not None:
            capturing.suspend(in_=True)
        told = [f"\n{name}: the machine has done nothing for long, and it is not over"]
        for pid in (os.getpid(), *HELPERS):
            with contextlib.suppress(psutil.Error):  # processes end while they are looked at
                told += map(_told, psutil.Process(pid).children(recursive=True))
        sys.stderr.write("\n".join([*told, ""]))
        sys.stderr.flush()
        faulthandler.dump_traceback(2)
        os._exit(_STATUS)


def _told(process: psutil.Process) -> str:
    return f"  {process.pid} {process.status()} {process.cmdline()}"
