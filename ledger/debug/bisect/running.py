"""Letting a judge decide: walk to what is to be judged, ask, remember, until it is known."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from weightledger.ledger.debug.bisect.bisection import MOST_EVALUATIONS, Bisection, Judged
from weightledger.ledger.debug.bisect.judges import JudgeVerdict, score_of
from weightledger.ledger.debug.bisect.panels import JudgePanel
from weightledger.ledger.debug.bisect.search import Verdict
from weightledger.ledger.errors import JudgeFailed

MOST_TIMEOUTS = 3
"""States in a row that a judge may take too long for before it is taken for broken."""


class Searched(Protocol):
    """The log that is searched, in this process or behind a server."""

    def probes(self, bisection: Bisection, most: int) -> list[int]:
        """The seqs of up to `most` states to judge next, none when the search is over.

        An end that the answer rests on is judged too, so that a judge who calls the good end bad
        is noticed. Raises InvalidRequest where the verdicts contradict each other.
        """


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run came to: the bisection with its verdicts, and what it cost.

    `evaluations` counts the states that were judged, `judging_s` the seconds that judges
    took together, `path_bytes` what moving between the states read.
    """

    bisection: Bisection
    evaluations: int
    judging_s: float
    path_bytes: int


def run(
    bisection: Bisection,
    searched: Searched,
    panel: JudgePanel,
    *,
    most: int = MOST_EVALUATIONS,
    most_s: float | None = None,
    told: Callable[[Bisection, Judged], None] = lambda bisection, judged: None,
) -> Ran:
    """Ask the panel until the step is known, `most` states were judged, or none is left to judge.

    After `most_s` seconds no further state is taken up. `told` is called after each verdict, to
    keep it. A state that gc dropped, and one that takes the judge too long, counts as one that
    cannot be judged. Raises JudgeFailed where the judge fails, or calls the good end bad or the bad
    end good, and InvalidRequest where it contradicts itself; what was told before stands.
    """
    run = _Run(bisection, told)
    until = None if most_s is None else time.monotonic() + most_s
    while run.evaluations < most and (until is None or time.monotonic() < until):
        seqs = searched.probes(run.bisection, min(panel.jobs, most - run.evaluations))
        if not seqs:
            break
        run.judge(panel, seqs)
    return Ran(run.bisection, run.evaluations, run.judging_s, run.path_bytes)


class _Run:
    """One run in progress."""

    def __init__(self, bisection: Bisection, told: Callable[[Bisection, Judged], None]) -> None:
        self.bisection = bisection
        self.evaluations = 0
        self.judging_s = 0.0
        self.path_bytes = 0
        self._told = told
        self._timeouts = 0

    def judge(self, panel: JudgePanel, seqs: list[int]) -> None:
        """Have these states judged, as many at once as the panel can."""
        with contextlib.closing(panel.judge(seqs)) as opinions:
            for one in opinions:
                if one.answer is None:
                    self._tell(Judged(one.seq, "skip", "judge", detail=one.pruned))
                    continue
                self.evaluations += 1
                self.judging_s += one.took_s
                self.path_bytes += one.read_bytes
                self._tell(self._judged(one.seq, one.answer, one.took_s))

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
