"""A fork that ends as a Python does that was started, and without going back to who forked it."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn


def fork(work: Callable[[], object]) -> int:
    """The pid of a process that does this and ends."""
    pid = os.fork()
    if pid == 0:
        be(work)
    return pid


def be(work: Callable[[], object]) -> NoReturn:
    """Do this as the whole of a process: what it raises is printed, and is its status."""
    try:
        work()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            leave(ended.code or 0)
        sys.stderr.write(f"{ended.code}\n")
        leave(1)
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # the interpreter would do it
        sys.excepthook(*sys.exc_info())
        leave(1)
    leave(0)


def leave(status: int) -> NoReturn:
    """End as the interpreter does, but for taking apart all that was imported.

    That takes longer than most commands do.
    """
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)
