"""Where a bisection has come to on the way between its ends, and what is worth judging next."""

from weightledger.ledger.debug.bisect.bisection import Bisection, Judged, Outcome
from weightledger.ledger.debug.bisect.candidates import Candidates
from weightledger.ledger.debug.bisect.posterior import Posterior, Stretch
from weightledger.ledger.debug.bisect.search import (
    Bracket,
    Contradiction,
    Verdict,
    bracket,
    probes,
)
from weightledger.ledger.errors import InvalidRequest


class Search:
    """What the verdicts of a bisection come to on the way between its ends."""

    def __init__(self, bisection: Bisection, way: Candidates) -> None:
        self._rules = bisection.rules
        self._way = way
        self._last: dict[int, Judged] = {}
        self._posterior = Posterior(len(way), self._rules.rate) if self._rules.noisy else None
        for one in bisection.judged:
            self.tell(one)

    def tell(self, judged: Judged) -> None:
        """Take a verdict into account; NotFound for a state that is not on the way."""
        place = self._way.place(judged.seq)
        self._last[place] = judged
        if self._posterior is not None and judged.verdict != "skip":
            self._posterior.observe(place, bad=judged.verdict == "bad")

    @property
    def skipped(self) -> set[int]:
        return {place for place, one in self._last.items() if one.verdict == "skip"}

    def probes(self, most: int = 1, *, ends: bool = False) -> list[int]:
        """The places to judge next, none when the search is over.

        A metric is measured on the good end first. With `ends` an end that the answer rests on is
        judged too, so that a judge who calls the good end bad is noticed. Raises InvalidRequest
        where verdicts contradict each other.
        """
        if self._rules.metric is not None and (0 not in self._last or self._last[0].score is None):
            return [0]
        if self._posterior is not None:
            if self._blamed(self._posterior) is not None:
                return []
            return self._posterior.probes(most, self.skipped)
        between = self._bracket()
        chosen = probes(between, self.skipped, most)
        if not chosen and ends and between.suspects == 1:
            chosen = [
                end
                for end in (0, len(self._way))
                if end in (between.good, between.bad) and end not in self._last
            ]
        return chosen

    def outcome(self) -> Outcome:
        """Where the search has come to."""
        if self._posterior is not None:
            entropy = self._posterior.entropy_bits
            if (blamed := self._blamed(self._posterior)) is not None:
                only = blamed.first if blamed.steps == 1 else None
                return Outcome(True, only, blamed.steps, blamed.probability, entropy)
            likeliest, probability = self._posterior.best
            chances = self._posterior.probabilities
            # The fewest steps that hold the confidence between them.
            ranked = chances[(-chances).argsort()].cumsum()
            suspects = int((ranked < self._rules.confidence).sum()) + 1
            return Outcome(False, likeliest, min(suspects, len(self._way)), probability, entropy)
        between = self._bracket()
        done = not probes(between, self.skipped)
        step = between.bad if between.suspects == 1 else None
        return Outcome(done, step, between.suspects)

    def probabilities(self) -> list[tuple[int, float]]:
        """Steps and what speaks for them, likeliest first; equal shares in a search without
        noise."""
        if self._posterior is not None:
            chances = self._posterior.probabilities
            return [(int(step) + 1, float(chances[step])) for step in (-chances).argsort()]
        between = self._bracket()
        share = 1 / between.suspects
        return [(step, share) for step in range(between.good + 1, between.bad + 1)]

    def _blamed(self, posterior: Posterior) -> Stretch | None:
        """What a noisy search comes to: the step that is as likely as it has to be, or the steps
        around states that cannot be judged that are so together; None while there are none."""
        step, probability = posterior.best
        alone = Stretch(step, step, probability)
        for one in (alone, posterior.likeliest(self.skipped)):
            if one.probability >= self._rules.confidence:
                return one
        return None

    def _bracket(self) -> Bracket:
        verdicts: dict[int, Verdict] = {
            place: one.verdict for place, one in self._last.items() if one.verdict != "skip"
        }
        try:
            return bracket(len(self._way), verdicts)
        except Contradiction as error:
            good, bad = self._way.node(error.good), self._way.node(error.bad)
            if error.good == error.bad:
                end, other = ("good", "bad") if error.good == 0 else ("bad", "good")
                raise InvalidRequest(
                    f"seq:{good} is the {end} end of what is searched, and was judged {other}: "
                    "start again with other ends, or with --noisy"
                ) from error
            raise InvalidRequest(
                f"seq:{good} was judged good, but seq:{bad} before it bad: more than one step "
                "changed the verdict, or the judge is not always right. Start again with --noisy, "
                "or with ends that are closer together"
            ) from error
