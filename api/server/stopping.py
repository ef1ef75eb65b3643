"""An orderly stop: SIGTERM and SIGINT end the work, close the ledger, and the process says so.

So does SIGHUP, which a terminal sends that is closed, unless it is ignored (as `nohup` has it).
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """The process was told to stop; what is open is closed on the way out."""


class Stop:
    """The handler: `interrupts` is whether a signal ends what runs, which a server that listens
    does by itself; `asked` is whether there was one."""

    def __init__(self) -> None:
        self.interrupts = True
        self.asked = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        if self.interrupts:
            self.interrupts = False  # closing is not interrupted by the second signal
            raise Stopped


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Turn signals to stop into Stopped, as long as the block runs; to be used in the main thread.

    Stopped ends the block and goes no further.
    """
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, _hung_up)
    try:
        yield stop
    except Stopped:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hung_up(_number: int, _frame: FrameType | None) -> None:
    """To whoever handles SIGTERM by now: the server, once it listens."""
    signal.raise_signal(signal.SIGTERM)
