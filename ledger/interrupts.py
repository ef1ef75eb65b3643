"""Ctrl-C where it would leave something half done: it is held back until that is done.

Python runs handlers of signals between any two steps of the main thread, and what they raise there
(KeyboardInterrupt, a time limit by SIGALRM) leaves a lock taken, a transaction open, or weights
shown that nobody knows of. A process that goes on afterwards, as a notebook does, would have to
live with that, and with it all who write to the same database. Threads but the main one are never
interrupted, and pay for a look at who they are.
"""

import os
import signal
import threading
from collections.abc import Callable
from importlib import import_module
from threading import get_ident
from types import FrameType, TracebackType
from typing import Any, Protocol

_Handler = Callable[[int, FrameType | None], Any]

_SIGNALS = tuple(
    int(signum)
    for signum in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGALRM", None))
    if signum is not None
)

LOOK_UP_S = 0.25
"""How long one who waits, and is held back, does not hear of Ctrl-C."""

# The calls themselves: what `signal` has around them, which makes enums, takes ten times as long.
_signal: Any = import_module("_signal")
_handler_of: Callable[[int], Any] = _signal.getsignal
_set_handler: Callable[[int, Any], Any] = _signal.signal

# Kept, because three calls each time would be most of what a block costs.
_main = threading.main_thread().ident
_depth = 0
_holding = False
# By signal what came while it was held back, and what is to have it.
_came: dict[int, tuple[_Handler, FrameType | None]] = {}


class _Stand:
    """What stands in for a handler while that is held back, and at any other time is that handler:
    whoever took it for one, calls it later or puts it back loses nothing."""

    __slots__ = ("handler",)

    def __init__(self, handler: _Handler) -> None:
        self.handler = handler

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if _holding:
            _came[signum] = self.handler, frame
        else:
            self.handler(signum, frame)


class _Held:
    """In its block a signal's handler does not run; it does at the end. For any thread, and within
    itself. It ends in the thread in which it began."""

    __slots__ = ()

    def __enter__(self) -> None:
        global _depth
        if get_ident() != _main:
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
        if not _depth or get_ident() != _main:  # none: a fork within the block lets go
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
        self._depth = _depth if get_ident() == _main else 0
        if self._depth:
            _depth = 0
            try:
                _let_go()
            except BaseException:
                self._hold_again()
                raise

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._depth:
            try:
                self._hold_again()
            except BaseException:  # it came at the last moment; what the outer block does is held
                self._hold_again()
                raise

    def _hold_again(self) -> None:
        global _depth
        _hold_back()
        _depth = self._depth


held = _Held()


def let_through() -> _LetThrough:
    """See `_LetThrough`."""
    return _LetThrough()


def handle() -> None:
    """Run the handlers of what came while it was held back: at a step where anything may fail."""
    if _came and get_ident() == _main:
        with let_through():
            pass


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


def _hold_back() -> None:
    global _holding
    try:
        _holding = True
        for signum in _SIGNALS:
            handler = _handler_of(signum)
            if callable(handler) and not _stood_in(signum, handler):
                _holding = False
                return
    except BaseException:  # by a handler that was not replaced yet
        _let_go()
        raise


def _stood_in(signum: int, handler: _Handler) -> bool:
    """Replace a handler; False where Python runs handlers in another thread than `threading` takes
    for the main one, as in a program that began Python or imported that in a thread: then nothing
    is interrupted here."""
    stand = _Stand(_itself(handler))
    try:
        _set_handler(signum, stand)
    except ValueError:
        if _handler_of(signum) is stand:  # by the handler, at the last moment
            raise
        return False
    return True


def _let_go() -> None:
    """What is left in its place by an interruption here is the handler all the same."""
    global _holding
    try:
        for signum in _SIGNALS:
            handler = _handler_of(signum)
            if isinstance(handler, _Stand):
                _set_handler(signum, handler.handler)
    finally:
        _holding = False
        if _came:
            _run()


def _itself(handler: _Handler) -> _Handler:
    return handler.handler if isinstance(handler, _Stand) else handler


def _run() -> None:
    """Each has its turn, whatever the others raise."""
    signum, (handler, frame) = _came.popitem()
    try:
        handler(signum, frame)
    finally:
        if _came:
            _run()


def _forked() -> None:
    """In a fork nobody ends the block of a thread that did not come along, and a process that was
    begun within one does not come back to it."""
    global _depth, _main
    _main, _depth = get_ident(), 0
    _came.clear()
    _let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
