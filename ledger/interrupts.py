"""Ctrl-C where it would leave something half done: it is held back until that is done.

Python runs handlers of signals between any two steps of the main thread, and what they raise there
(KeyboardInterrupt, a time limit by SIGALRM) leaves a lock taken, a transaction open, or weights
shown that nobody knows of. A process that goes on afterwards, as a notebook does, would have to
live with that, and with it all who write to the same database. Threads but the main one are never
interrupted, and pay for a look at who they are.
"""

import inspect
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Protocol

_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    *([signal.SIGALRM] if hasattr(signal, "SIGALRM") else ()),
)

LOOK_UP_S = 0.25
"""How long one who waits, and is held back, does not hear of Ctrl-C."""

# The calls themselves: what `signal` has around them takes ten times as long.
_handler_of: Callable[[int], Any] = inspect.unwrap(signal.getsignal)
_set_handler: Callable[[int, Any], Any] = inspect.unwrap(signal.signal)

_depth = 0
# By signal the handler that is to have it, while it is held back; and the signals that came.
_handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
_came: dict[int, FrameType | None] = {}


class _Held:
    """In its block a signal's handler does not run; it does at the end. For any thread, and within
    itself."""

    __slots__ = ()

    def __enter__(self) -> None:
        global _depth
        if not _is_main():
            return
        if not _depth:
            _hold_back()
        _depth += 1

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        global _depth
        if not _is_main():
            return
        _depth -= 1
        if not _depth:
            _let_go()


class _LetThrough:
    """In its block, within a held one, signals are handled as ever: for what takes long and may be
    left at any step, such as somebody else's code."""

    __slots__ = ("_depth",)

    def __enter__(self) -> None:
        global _depth
        self._depth = _depth if _is_main() else 0
        if self._depth:
            _let_go()
            _depth = 0

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        global _depth
        if self._depth:
            _depth = self._depth
            _hold_back()


held = _Held()


def let_through() -> _LetThrough:
    """See `_LetThrough`."""
    return _LetThrough()


def handle() -> None:
    """Run the handlers of what came while it was held back: at a step where anything may fail."""
    if _came and _is_main():
        _run()


class _Lock(Protocol):
    def acquire(self, *, timeout: float) -> bool: ...


def acquire(lock: _Lock) -> None:
    """Take a lock, however long that takes; what comes meanwhile is handled."""
    while not lock.acquire(timeout=LOOK_UP_S):
        handle()


def wait_for(condition: threading.Condition, holds: Callable[[], bool]) -> None:
    """Wait for something of a condition whose lock is held; what comes meanwhile is handled."""
    while not condition.wait_for(holds, LOOK_UP_S):
        handle()


def _is_main() -> bool:
    return threading.get_ident() == threading.main_thread().ident


def _note(signum: int, frame: FrameType | None) -> None:
    """The handler of what is held back."""
    _came[signum] = frame


def _hold_back() -> None:
    try:
        for signum in _SIGNALS:
            handler = _handler_of(signum)
            if callable(handler) and handler is not _note:
                _handlers[signum] = handler
                _set_handler(signum, _note)
    except BaseException:  # by a handler that was not replaced yet
        _put_back()
        raise


def _put_back() -> None:
    """Every handler is where it was when this returns or raises, whatever comes meanwhile."""
    error: BaseException | None = None
    for signum, handler in [*_handlers.items()]:
        for _ in range(2):
            try:
                if _handler_of(signum) is _note:
                    _set_handler(signum, handler)
                break
            except BaseException as raised:  # noqa: BLE001  (by one that was put back already)
                error = raised
    if error is not None:
        raise error


def _let_go() -> None:
    try:
        _put_back()
    finally:
        try:
            _run()
        finally:
            _handlers.clear()


def _run() -> None:
    while _came:
        signum, frame = _came.popitem()
        _handlers[signum](signum, frame)
