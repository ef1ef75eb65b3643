"""Who judges the states of a round: one judge here, state after state, or several elsewhere.

Elsewhere each state is a task of an executor (`ledger.parallel`), which rebuilds it from the log by
itself and gives the judge's words.
"""

import contextlib
import importlib
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from weightledger.ledger.debug.bisect.downloaded import Downloaded
from weightledger.ledger.debug.bisect.judges import Judge, JudgeVerdict, NamedJudge, StateToJudge
from weightledger.ledger.debug.walking import Walker
from weightledger.ledger.errors import LedgerError, Pruned
from weightledger.ledger.history.reading import reading
from weightledger.ledger.parallel import Executor, Task, TaskFinished, Told
from weightledger.ledger.parallel.local import ALONE

_HERE = "weightledger.ledger.debug.bisect.panels"

Place = Mapping[str, Any]
"""Where another process finds a state: its `seq` with the log's `url` and `model`, or with a `file`
and its `version`."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What was said of the state after event `seq`; `answer` None where gc `pruned` it."""

    seq: int
    answer: JudgeVerdict | None
    took_s: float = 0.0
    read_bytes: int = 0
    pruned: str | None = None


Opinions = Generator[Opinion, None, None]


class JudgePanel(Protocol):
    """Judges the states of one round."""

    @property
    def jobs(self) -> int:
        """How many states it judges at once."""

    def judge(self, seqs: Sequence[int]) -> Opinions:
        """What is said of each, in their order. Raises JudgeFailed."""


class Reached(Protocol):
    """The states of a search."""

    def state(self, seq: int) -> StateToJudge:
        """The state after the state-changing event `seq`; Pruned where gc dropped it."""

    def place(self, seq: int) -> Place:
        """Where another process finds it; Pruned where gc dropped it and that is known here."""

    @property
    def read_bytes(self) -> int:
        """What moving between the states has read so far in this process."""


@dataclass(frozen=True, slots=True)
class JudgeHere:
    """One judge in this process."""

    reached: Reached
    by: Judge
    jobs: int = 1

    def judge(self, seqs: Sequence[int]) -> Opinions:
        """See `JudgePanel`."""
        for seq in seqs:
            before = self.reached.read_bytes
            try:
                state = self.reached.state(seq)
            except Pruned as error:
                yield Opinion(seq, None, pruned=str(error))
                continue
            started = time.perf_counter()
            answer = self.by.judge(state)
            took_s = time.perf_counter() - started
            yield Opinion(seq, answer, took_s, self.reached.read_bytes - before)


@dataclass(frozen=True, slots=True)
class JudgesElsewhere:
    """One judge a task, wherever the executor's processes are."""

    reached: Reached
    by: NamedJudge
    executor: Executor

    @property
    def jobs(self) -> int:
        return self.executor.jobs

    def judge(self, seqs: Sequence[int]) -> Opinions:
        """See `JudgePanel`. A round of several comes to the same in whatever order they finish; a
        state that is in it more than once is judged as often."""
        opinions: dict[int, Opinion] = {}  # by their place in the round
        asked: list[int] = []
        tasks: list[Task] = []
        for place, seq in enumerate(seqs):
            try:
                tasks.append(self._task(seq))
                asked.append(place)
            except Pruned as error:
                opinions[place] = Opinion(seq, None, pruned=str(error))
        left = list(range(len(seqs)))
        try:
            for one in self.executor.run(tasks):
                place = asked[one.number]
                opinions[place] = self._opinion(seqs[place], one)
                while left and left[0] in opinions:
                    yield opinions[left.pop(0)]
        except LedgerError:  # what others said stands
            yield from (opinions[place] for place in left if place in opinions)
            raise
        yield from (opinions[place] for place in left)

    def _task(self, seq: int) -> Task:
        place, by = dict(self.reached.place(seq)), self.by
        data = {"place": place, "made_by": by.made_by, "data": dict(by.data)}
        # What judges is not ours: it can only be ended with its process.
        return Task(f"{_HERE}:opinion", data, apart=True, limit_s=by.limit_s)

    def _opinion(self, seq: int, finished: TaskFinished) -> Opinion:
        if finished.late:
            return Opinion(seq, JudgeVerdict(None, timed_out=True), self.by.limit_s or 0.0)
        told = dict(finished.result)
        answer = told.pop("answer")
        return Opinion(seq, None if answer is None else JudgeVerdict(**answer), **told)


def panel(reached: Reached, judge: Judge | NamedJudge, executor: Executor = ALONE) -> JudgePanel:
    """A judge that is known by name judges on an executor, any other in this process."""
    if isinstance(judge, NamedJudge):
        return JudgesElsewhere(reached, judge, executor)
    return JudgeHere(reached, judge)


def opinion(
    told: Told, place: dict[str, Any], made_by: str, data: dict[str, Any]
) -> dict[str, Any]:
    """What a judge says of a state, as plain data; the state is rebuilt here."""
    module, _, name = made_by.partition(":")
    judge: Judge = getattr(importlib.import_module(module), name)(**data)
    with contextlib.ExitStack() as opened:
        try:
            state, read_bytes = _state(opened, **place)
        except Pruned as error:
            return {"answer": None, "pruned": str(error)}
        told(0, 1)  # from now on a limit counts
        started = time.perf_counter()
        answer = judge.judge(state)
        took_s = time.perf_counter() - started
    return {"answer": asdict(answer), "took_s": took_s, "read_bytes": read_bytes}


def _state(
    opened: contextlib.ExitStack,
    seq: int,
    url: str = "",
    model: str = "",
    file: str | None = None,
    version: str | None = None,
) -> tuple[StateToJudge, int]:
    """A state at its place, and what was read for it beside a file."""
    if file is not None:
        return Downloaded(seq, version, Path(file)), 0
    walker = Walker(opened.enter_context(reading(url, model)))
    return walker.to(seq), walker.read_bytes
