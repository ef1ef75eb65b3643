"""Evaluators that hang: after their time limit the candidate is refused, and nobody waits longer.

A thread cannot be killed. One that hangs is left behind, and until it ends no other is started:
candidates are refused at once, so that a hanging evaluator costs one thread and not one an update.
Evaluators of other processes end by themselves and are not wrapped.
"""

import threading
import time
import weakref
from queue import SimpleQueue
from typing import Any

import torch

from weightledger.ledger.monitoring.evaluation import Evaluator, Scores, scores_of


class EvaluatorHangs(Exception):
    """It has not answered within its time limit."""


class Limited:
    """Calls an evaluator on another thread, for at most `timeout_s`.

    The thread is kept for the next call: torch gives each one workers of its own, which takes
    longer than scoring a small model. One that hangs is left behind.
    """

    def __init__(self, evaluator: Evaluator, timeout_s: float) -> None:
        self._evaluator = evaluator
        self.timeout_s = timeout_s
        self._idle: list[_Apart] = []
        self._hanging: tuple[_Call, float] | None = None

    def __call__(self, module: torch.nn.Module) -> Scores:
        if self._hanging is not None:
            call, since = self._hanging
            if not call.over.is_set():
                raise EvaluatorHangs(
                    f"it has been at an earlier state for {time.monotonic() - since:.0f} s, and"
                    f" may take {self.timeout_s:g}"
                )
            self._hanging = None
        began = time.monotonic()
        try:
            apart = self._idle.pop()
        except IndexError:  # the first call, one beside another, or after one that hung
            apart = _Apart()
        call = apart.begin(self._evaluator, module)
        if not call.over.wait(self.timeout_s):
            self._hanging = (call, began)
            raise EvaluatorHangs(f"it did not answer within {self.timeout_s:g} s")
        self._idle.append(apart)
        told = call.answer
        if isinstance(told, Exception):
            raise told
        if isinstance(told, BaseException):  # such as SystemExit, which is not for the writer
            raise RuntimeError(f"it ended with {told!r}") from told
        return scores_of(told)


class _Call:
    """One call of an evaluator; `answer` is what it gave or raised once it is `over`."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.over = threading.Event()


class _Apart:
    """A thread that makes calls, one after the other, until nobody has this any more."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[_Call, Evaluator, torch.nn.Module] | None] = SimpleQueue()
        weakref.finalize(self, self._calls.put, None)
        args = (self._calls,)
        threading.Thread(target=_work_off, args=args, name="ledger-evaluator", daemon=True).start()

    def begin(self, evaluator: Evaluator, module: torch.nn.Module) -> _Call:
        call = _Call()
        self._calls.put((call, evaluator, module))
        return call


def _work_off(calls: "SimpleQueue[tuple[_Call, Evaluator, torch.nn.Module] | None]") -> None:
    while (one := calls.get()) is not None:
        call, evaluator, module = one
        try:
            call.answer = evaluator(module)
        except BaseException as error:  # noqa: BLE001  (it is raised where it was called)
            call.answer = error
        call.over.set()
        del one, call, evaluator, module  # a candidate is not kept until the next one


def limited(evaluator: Evaluator, timeout_s: float) -> Evaluator:
    """The evaluator with a time limit, unless it says that it has one of its own."""
    return evaluator if hasattr(evaluator, "timeout_s") else Limited(evaluator, timeout_s)
