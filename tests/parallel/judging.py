"""A judge that processes of the executors' suite make by its name."""

import os
import signal
import time
from pathlib import Path

from tests.debug.histories import POISONED
from weightledger.ledger.debug.bisect.judges import JudgeVerdict, StateToJudge


class Poisoned:
    """Judges states of `tests.debug.histories`; what else it does depends on `marks`.

    With `dies` its process is killed the first time that it is asked; with `hangs_on` it never
    answers about that state.
    """

    def __init__(self, marks: str, dies: bool = False, hangs_on: int | None = None) -> None:
        self._marks, self._dies, self._hangs_on = Path(marks), dies, hangs_on

    def judge(self, state: StateToJudge) -> JudgeVerdict:
        try:
            (self._marks / str(os.getpid())).touch(exist_ok=not self._dies)
            if self._dies and len(list(self._marks.iterdir())) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass
        while state.seq == self._hangs_on:
            time.sleep(0.01)
        return JudgeVerdict(bool(state.weights["w"][POISONED] < 0.5))


class Fickle:
    """Says good and bad in turn, whatever it is asked about, and writes down what it said."""

    def __init__(self, said: str) -> None:
        self._said = Path(said)

    def judge(self, state: StateToJudge) -> JudgeVerdict:
        before = self._said.read_text().split() if self._said.exists() else []
        word = "bad" if len(before) % 2 else "good"
        self._said.write_text(" ".join([*before, word]))
        return JudgeVerdict(word == "good")
