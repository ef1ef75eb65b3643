"""Letting a judge decide: walk to what is to be judged, ask, remember, until it is known."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from weightledger.ledger.debug.bisect.bisection import MOST_EVALUATIONS, Bisection, Judged
from weightledger.ledger.debug.bisect.judges import (
    Judge,
    JudgeVerdict,
    Judging,
    StateToJudge,
    score_of,
)
from weightledger.ledger.debug.bisect.search import Verdict
from weightledger.ledger.errors import JudgeFailed, Pruned

MOST_TIMEOUTS = 3
"""States in a row that a judge may take too long for before it is taken for broken."""


class Searched(Protocol):
    """The log that is searched, in this process or behind a server."""

    def probes(self, bisection: Bisection, most: int) -> list[int]:
        """The seqs of up to `most` states to judge next, none when the search is over.

        An end that the answer rests on is judged too, so that a judge who calls the good end bad
        is noticed. Raises InvalidRequest where the verdicts contradict each other.
        """

    def state(self, seq: int) -> StateToJudge:
        """The state after the state-changing event `seq`; Pruned where gc dropped it."""

    @property
    def read_bytes(self) -> int:
        """What moving between the states has read so far."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run came to: the bisection with its verdicts, and what it cost.

    `evaluations` counts the states that were judged, `judging_s` the seconds spent waiting for
    judges, `path_bytes` what moving between the states read.
    """

    bisection: Bisection
    evaluations: int
    judging_s: float
    path_bytes: int


def run(
    bisection: Bisection,
    searched: Searched,
    judge: Judge,
    *,
    jobs: int = 1,
    most: int = MOST_EVALUATIONS,
    most_s: float | None = None,
    told: Callable[[Bisection, Judged], None] = lambda bisection, judged: None,
) -> Ran:
    """Ask the judge until the step is known, `most` states were judged, or none is left to judge.

    After `most_s` seconds no further state is taken up. `told` is called after each verdict, to
    keep it. A state that gc dropped, and one that takes the judge too long, counts as one that
    cannot be judged. Raises JudgeFailed where the judge fails, or calls the good end bad or the bad
    end good, and InvalidRequest where it contradicts itself; what was told before stands.
    """
    run = _Run(bisection, searched, judge, told)
    until = None if most_s is None else time.monotonic() + most_s
    while run.evaluations < most and (until is None or time.monotonic() < until):
        seqs = searched.probes(run.bisection, min(jobs, most - run.evaluations))
        if not seqs:
            break
        run.judge(seqs)
    return Ran(run.bisection, run.evaluations, run.judging_s, searched.read_bytes)


class _Run:
    """One run in progress."""

    def __init__(
        self,
        bisection: Bisection,
        searched: Searched,
        judge: Judge,
        told: Callable[[Bisection, Judged], None],
    ) -> None:
        self.bisection = bisection
        self.evaluations = 0
        self.judging_s = 0.0
        self._searched, self._judge, self._told = searched, judge, told
        self._timeouts = 0

    def judge(self, seqs: list[int]) -> None:
        """Judge these states, all at once."""
        asked: list[tuple[int, float, Judging]] = []
        try:
            for seq in seqs:
                try:
                    state = self._searched.state(seq)
                except Pruned as error:
                    self._tell(Judged(seq, "skip", "judge", detail=str(error)))
                    continue
                started = time.perf_counter()
                asked.append((seq, started, self._judge.ask(state)))
                self.judging_s += time.perf_counter() - started
            for seq, started, one in asked:
                waiting = time.perf_counter()
                answer = one.wait()
                now = time.perf_counter()
                self.judging_s += now - waiting
                self.evaluations += 1
                self._tell(self._judged(seq, answer, now - started))
        finally:
            for _, _, one in asked:
                one.close()

    def _judged(self, seq: int, answer: JudgeVerdict, duration_s: float) -> Judged:
        rules = self.bisection.rules
        took = round(duration_s, 3)
        if answer.timed_out:
            self._timeouts += 1
            if self._timeouts == MOST_TIMEOUTS:
                raise JudgeFailed(
                    f"the judge took too long {MOST_TIMEOUTS} times in a row, last on the state at "
                    f"seq:{seq}; what was judged so far is kept"
                )
            return Judged(seq, "skip", "judge", detail="timed out", duration_s=took)
        self._timeouts = 0
        if rules.metric is None:
            said: Verdict = "skip" if answer.good is None else "good" if answer.good else "bad"
            return Judged(seq, said, "judge", duration_s=took)
        if not answer.metrics and answer.good is None:
            return Judged(seq, "skip", "judge", duration_s=took)
        score = score_of(answer, rules.metric, seq)
        baseline = self.bisection.baseline
        verdict: Verdict = "good" if baseline is None else rules.verdict(score, baseline)
        return Judged(seq, verdict, "judge", score, duration_s=took)

    def _tell(self, judged: Judged) -> None:
        good, bad = self.bisection.good, self.bisection.bad
        assert good is not None and bad is not None
        first, last = judged.seq == good.seq, judged.seq == bad.seq
        if judged.verdict == "skip" and first and self.bisection.rules.metric is not None:
            raise JudgeFailed(
                f"the good state, seq:{judged.seq}, could not be judged, and every other is "
                "compared with it"
            )
        if not self.bisection.rules.noisy and (
            (first and judged.verdict == "bad") or (last and judged.verdict == "good")
        ):
            end, said = ("good", "bad") if first else ("bad", "good")
            raise JudgeFailed(
                f"the judge calls the {end} end, seq:{judged.seq}, {said}: it is not what it was "
                "taken for, or the judge looks at something else"
            )
        self.bisection = self.bisection.told(judged)
        self._told(self.bisection, judged)
