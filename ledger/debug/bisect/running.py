"""Letting a judge decide: walk to what is to be judged, ask, remember, until it is known."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from weightledger.ledger.debug.bisect.bisection import (
    MOST_EVALUATIONS,
    Bisection,
    Judged,
    Outcome,
    Search,
)
from weightledger.ledger.debug.bisect.candidates import Candidates
from weightledger.ledger.debug.bisect.judges import Answer, Asked, Judge, score_of
from weightledger.ledger.debug.bisect.search import Contradiction, Verdict
from weightledger.ledger.debug.walking import Walker
from weightledger.ledger.errors import JudgeFailed, Pruned

MOST_TIMEOUTS = 3
"""States in a row that a judge may take too long for before it is taken for broken."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run came to: the bisection with its verdicts, and what it cost.

    `evaluations` counts the states that were judged, `judging_s` the seconds spent waiting for
    judges, `path_bytes` what moving between the states read.
    """

    bisection: Bisection
    outcome: Outcome
    evaluations: int
    judging_s: float
    path_bytes: int


def run(
    bisection: Bisection,
    way: Candidates,
    walker: Walker,
    judge: Judge,
    *,
    jobs: int = 1,
    most: int = MOST_EVALUATIONS,
    told: Callable[[Bisection, Judged], None] = lambda bisection, judged: None,
) -> Ran:
    """Ask the judge until the step is known, `most` states were judged, or none is left to judge.

    `told` is called after each verdict, to keep it. A state that gc dropped, and one that takes the
    judge too long, counts as one that cannot be judged. Raises JudgeFailed where the judge fails,
    or calls the good end bad or the bad end good; what was told before stands.
    """
    search = Search(bisection, way)
    run = _Run(bisection, way, walker, judge, search, told)
    while run.evaluations < most:
        try:
            places = search.probes(min(jobs, most - run.evaluations), ends=True)
        except Contradiction as error:
            raise _contradicted(error, way) from error
        if not places:
            break
        run.judge(places)
    try:
        outcome = search.outcome()
    except Contradiction as error:
        raise _contradicted(error, way) from error
    return Ran(run.bisection, outcome, run.evaluations, run.judging_s, walker.read_bytes)


class _Run:
    """One run in progress."""

    def __init__(
        self,
        bisection: Bisection,
        way: Candidates,
        walker: Walker,
        judge: Judge,
        search: Search,
        told: Callable[[Bisection, Judged], None],
    ) -> None:
        self.bisection = bisection
        self.evaluations = 0
        self.judging_s = 0.0
        self._way, self._walker, self._judge = way, walker, judge
        self._search, self._told = search, told
        self._timeouts = 0

    def judge(self, places: list[int]) -> None:
        """Judge these states, all at once."""
        asked: list[tuple[int, float, Asked]] = []
        try:
            for place in places:
                seq = self._way.node(place)
                try:
                    state = self._walker.to(seq)
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

    def _judged(self, seq: int, answer: Answer, duration_s: float) -> Judged:
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
        baseline = self._search.baseline
        verdict: Verdict = "good" if baseline is None else rules.verdict(score, baseline)
        return Judged(seq, verdict, "judge", score, duration_s=took)

    def _tell(self, judged: Judged) -> None:
        place = self._way.place(judged.seq)
        first, last = place == 0, place == len(self._way)
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
        self._search.tell(judged)
        self._told(self.bisection, judged)


def _contradicted(error: Contradiction, way: Candidates) -> JudgeFailed:
    return JudgeFailed(
        f"seq:{way.node(error.good)} was judged good, but seq:{way.node(error.bad)} before it bad: "
        "more than one step changed the verdict, or the judge is not always right. Start again "
        "with --noisy, or with ends that are closer together"
    )
