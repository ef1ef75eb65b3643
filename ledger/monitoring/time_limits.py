"""Evaluators that hang: after their time limit the candidate is refused, and nobody waits longer.

A thread cannot be killed. One that hangs is left behind, and until it ends no other is started:
candidates are refused at once, so that a hanging evaluator costs one thread and not one an update.
Evaluators of other processes end by themselves and are not wrapped.
"""

import threading
import time
from typing import Any

import torch

from weightledger.ledger.monitoring.evaluation import Evaluator, Scores, scores_of


class EvaluatorHangs(Exception):
    """It has not answered within its time limit."""


class Limited:
    """Calls an evaluator on a thread of its own, for at most `timeout_s`."""

    def __init__(self, evaluator: Evaluator, timeout_s: float) -> None:
        self._evaluator = evaluator
        self.timeout_s = timeout_s
        self._hanging: tuple[threading.Thread, float] | None = None

    def __call__(self, module: torch.nn.Module) -> Scores:
        if self._hanging is not None:
            thread, since = self._hanging
            if thread.is_alive():
                raise EvaluatorHangs(
                    f"it has been at an earlier state for {time.monotonic() - since:.0f} s, and"
                    f" may take {self.timeout_s:g}"
                )
            self._hanging = None
        answer: list[Any] = []

        def run() -> None:
            try:
                answer.append(self._evaluator(module))
            except BaseException as error:  # noqa: BLE001  (it is raised where it was called)
                answer.append(error)

        began = time.monotonic()
        thread = threading.Thread(target=run, name="ledger-evaluator", daemon=True)
        thread.start()
        thread.join(self.timeout_s)
        if not answer:
            self._hanging = (thread, began)
            raise EvaluatorHangs(f"it did not answer within {self.timeout_s:g} s")
        (told,) = answer
        if isinstance(told, Exception):
            raise told
        if isinstance(told, BaseException):  # such as SystemExit, which is not for the writer
            raise RuntimeError(f"it ended with {told!r}") from told
        return scores_of(told)


def limited(evaluator: Evaluator, timeout_s: float) -> Evaluator:
    """The evaluator with a time limit, unless it says that it has one of its own."""
    return evaluator if hasattr(evaluator, "timeout_s") else Limited(evaluator, timeout_s)
