"""A bisection as data: what was asked for, what was judged, and what that leads to.

It is written to a small file after every verdict, whole or not at all, so that a search that was
interrupted at any moment goes on where it was.
"""

import contextlib
import json
import math
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from weightledger.ledger.debug.bisect.posterior import Posterior
from weightledger.ledger.debug.bisect.search import Verdict
from weightledger.ledger.errors import InvalidRequest, NotFound, StorageError

FORMAT = 1
CONFIDENCE = 0.95
MOST_EVALUATIONS = 1000


@dataclass(frozen=True, slots=True)
class End:
    """One end of the way: the position as it was named, and the state-changing event it names."""

    text: str
    seq: int


@dataclass(frozen=True, slots=True)
class Judged:
    """One verdict: on the state after event `seq`, whose words it is, and what was measured.

    `by` is "user" or "judge"; `score` is the metric's value where a metric decides.
    """

    seq: int
    verdict: Verdict
    by: str = "user"
    score: float | None = None
    detail: str | None = None
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """How verdicts are taken.

    `noisy` says that the judge errs, with a rate of `rate` (None has it learnt); the search then
    ends at `confidence`. With `metric` a state is bad whose metric is worse than the good end's by
    more than `drop`; `lower_is_better` says which way worse is.
    """

    noisy: bool = False
    rate: float | None = None
    confidence: float = CONFIDENCE
    metric: str | None = None
    drop: float = 0.0
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise InvalidRequest(
                f"confidence must be at least 0.5 and below 1, got {self.confidence}",
                param="confidence",
            )
        if not self.drop >= 0:
            raise InvalidRequest(f"drop must be 0 or more, got {self.drop}", param="drop")
        if self.noisy:
            Posterior(1, self.rate)  # says what a rate may be

    def verdict(self, score: float, baseline: float) -> Verdict:
        """Whether a score is worse than the baseline by more than `drop`; NaN is."""
        if score == baseline:  # two infinities have no difference
            return "good"
        loss = score - baseline if self.lower_is_better else baseline - score
        return "good" if loss <= self.drop else "bad"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a search has come to.

    `step` is the number of the step to blame once `done`, the likeliest so far in a noisy search;
    `suspects` counts the steps that may still be it, `probability` is that of `step`. Where states
    could not be judged a search may end with several suspects, and then `step` is None and the
    probability theirs together.
    """

    done: bool
    step: int | None
    suspects: int
    probability: float | None = None
    entropy_bits: float | None = None


@dataclass(frozen=True, slots=True)
class Bisection:
    """A search in one model's log. `origin` is the hash of that log's first event."""

    model: str
    origin: str
    good: End | None = None
    bad: End | None = None
    rules: Rules = field(default_factory=Rules)
    judged: tuple[Judged, ...] = ()

    def told(self, *judged: Judged) -> Self:
        """The same with further verdicts."""
        return replace(self, judged=(*self.judged, *judged))

    @property
    def baseline(self) -> float | None:
        """The metric of the good end, once it was measured; a judge that errs measures it again,
        and what was called bad there is none to compare others with."""
        end = None if self.good is None else self.good.seq
        measured = (
            one.score
            for one in reversed(self.judged)
            if one.seq == end and one.verdict == "good" and one.score is not None
        )
        return next(measured, None)

    def to_json(self) -> dict[str, Any]:
        """Plain values that JSON has; a score that is infinite is a text."""
        told = {"format": FORMAT, **asdict(self)}
        for one in told["judged"]:
            if one["score"] is not None and math.isinf(one["score"]):
                one["score"] = str(one["score"])
        return told

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError for what is none."""
        if value.pop("format") != FORMAT:
            raise ValueError("its format is not known")
        ends = {
            name: None if value[name] is None else End(**value[name]) for name in ("good", "bad")
        }
        judged = tuple(_judged(one) for one in value["judged"])
        return cls(
            value["model"], value["origin"], **ends, rules=Rules(**value["rules"]), judged=judged
        )


def _judged(told: dict[str, Any]) -> Judged:
    score = told.get("score")
    return Judged(**{**told, "score": None if score is None else float(score)})


def load(file: Path) -> Bisection:
    """The bisection in a file; NotFound when there is none, InvalidRequest when it is no such."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        raise NotFound(
            "no bisection is going on here; begin with: weightledger bisect start"
        ) from None
    except OSError as error:
        raise StorageError(f"cannot read {file}: {error}") from error
    try:
        return Bisection.from_json(json.loads(text))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(
            f"{file} is no bisection ({error!r}); remove it with: weightledger bisect reset"
        ) from None


def save(file: Path, bisection: Bisection) -> None:
    """Write it whole, durably, in the place of what was there; StorageError otherwise."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with partial.open("w") as out:
            json.dump(bisection.to_json(), out, indent=1)
            out.write("\n")
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StorageError(f"cannot write {file}: {error}") from error
