"""Judges: who says whether a state is good.

A command runs in a process group of its own, which is killed when it takes too long; an evaluator
is called. A judge who is known by name can be made in another process too, so that several states
are judged at once (`panels`).
"""

import contextlib
import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from weightledger.ledger.errors import JudgeFailed, LedgerError
from weightledger.ledger.monitoring.evaluation import Scores, scores_of
from weightledger.ledger.parallel.commands import command

GOOD, SKIP, ABORTS = 0, 125, 128
_STDERR = 2


@dataclass(frozen=True, slots=True)
class JudgeVerdict:
    """What a judge said: True for good, False for bad, None where the state cannot be judged.

    `metrics` is what was measured, for those who decide by a metric. `timed_out` says why there is
    no verdict.
    """

    good: bool | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    timed_out: bool = False


class StateToJudge(Protocol):
    """A state as judges see it, wherever the log is."""

    @property
    def seq(self) -> int:
        """The state-changing event that led to it."""

    @property
    def version(self) -> str | None:
        """The id of the newest listed version that names it, if one does."""

    @property
    def weights(self) -> Mapping[str, torch.Tensor]:
        """The model's tensors by bare name, further names of tied ones included."""

    def write(self, out: Path) -> None:
        """All of it to a safetensors file, whose metadata say which state it is."""


class Judge(Protocol):
    """Judges states."""

    def judge(self, state: StateToJudge) -> JudgeVerdict:
        """What it says of a state. Raises JudgeFailed."""


@dataclass(frozen=True, slots=True)
class NamedJudge:
    """A judge as plain data: `made_by` is "package.module:callable", `data` its keywords.

    With `limit_s` whoever has it judge ends it after so long.
    """

    made_by: str
    data: Mapping[str, Any]
    limit_s: float | None = None


@dataclass(frozen=True, slots=True)
class CalledJudge:
    """A function in this process: of a state it says True, False or None, or gives metrics."""

    function: Callable[[Any], bool | Mapping[str, float] | Scores | None]

    def judge(self, state: StateToJudge) -> JudgeVerdict:
        try:
            verdict = self.function(state)
            if not isinstance(verdict, bool | None):
                return JudgeVerdict(None, scores_of(verdict).metrics)
        except LedgerError:
            raise
        except Exception as error:
            raise JudgeFailed(
                f"the evaluator failed on the state at seq:{state.seq}: {error!r}"
            ) from error
        return JudgeVerdict(verdict)


class CommandJudge:
    """A command; its last argument is the path of a safetensors file of the state.

    WEIGHTLEDGER_SEQ and WEIGHTLEDGER_VERSION are in its environment. Exit status 0 is good, 125
    cannot be judged, 1 to 127 bad; 128 or more, or a signal, is a failure of the judge. With
    `metrics` it prints them as its last line instead: a JSON object of numbers.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        timeout_s: float | None = None,
        metric: str | None = None,
    ) -> None:
        """Raises JudgeFailed for a command that is not there or may not be run."""
        if not command or shutil.which(command[0]) is None:
            name = command[0] if command else ""
            raise JudgeFailed(f"the judge cannot be run: there is no command {name!r}")
        self._command, self.timeout_s, self.metric = list(command), timeout_s, metric

    @property
    def named(self) -> NamedJudge:
        """The same for another process."""
        data = {"command": self._command, "timeout_s": self.timeout_s, "metric": self.metric}
        return NamedJudge(f"{__name__}:{type(self).__name__}", data)

    def judge(self, state: StateToJudge) -> JudgeVerdict:
        with tempfile.TemporaryDirectory(prefix="weightledger-bisect-") as folder:
            file = Path(folder) / f"seq-{state.seq}.safetensors"
            state.write(file)
            environment = {
                **os.environ,
                "WEIGHTLEDGER_SEQ": str(state.seq),
                "WEIGHTLEDGER_VERSION": state.version or "",
            }
            printed = Path(folder) / "printed"
            with printed.open("wb") as out, contextlib.ExitStack() as at_work:
                # What a judge prints is for people: standard output is ours, and may be JSON.
                shown = _STDERR if self.metric is None else out
                try:
                    process = at_work.enter_context(
                        command([*self._command, str(file)], shown, environment)
                    )
                except OSError as error:
                    raise JudgeFailed(f"the judge cannot be run: {error}") from error
                try:
                    status = process.wait(self.timeout_s)
                except subprocess.TimeoutExpired:
                    return JudgeVerdict(None, timed_out=True)
            return self._answer(status, state.seq, printed)

    def _answer(self, status: int, seq: int, printed: Path) -> JudgeVerdict:
        metric = self.metric
        if status < 0 or status >= ABORTS:
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise JudgeFailed(
                f"the judge {how} on the state at seq:{seq}: 0 is good, 125 cannot be judged, 1 to "
                "127 bad, and 128 or more ends the search. What was judged so far is kept"
            )
        if status == SKIP:
            return JudgeVerdict(None)
        if metric is None:
            return JudgeVerdict(status == GOOD)
        if status != GOOD:
            raise JudgeFailed(
                f"the judge ended with status {status} on the state at seq:{seq}; with a metric it "
                "has to end with 0, or with 125 where the state cannot be judged"
            )
        return JudgeVerdict(None, _metrics(metric, printed, seq))


def _metrics(metric: str, printed: Path, seq: int) -> dict[str, float]:
    """The last line that was printed: a JSON object, or the one number."""
    lines = printed.read_text(errors="replace").strip().splitlines()
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        value = json.loads(lines[-1]) if lines else None
        said = value if isinstance(value, dict) else {metric: value}
        measured = said.get(metric)
        if isinstance(measured, int | float) and not isinstance(measured, bool):
            return {name: float(one) for name, one in said.items() if isinstance(one, int | float)}
    last = lines[-1][:80] if lines else "nothing"
    raise JudgeFailed(
        f"the judge has to print {metric} of the state at seq:{seq} as its last line, such as "
        f'{{"{metric}": 0.9}}; it printed {last!r}'
    )


def score_of(answer: JudgeVerdict, metric: str, seq: int) -> float:
    """The metric that was measured; JudgeFailed where there is none that is a number."""
    value = answer.metrics.get(metric, math.nan)
    if math.isnan(value):
        measured = ", ".join(answer.metrics) or "nothing"
        raise JudgeFailed(
            f"the judge gave no {metric} of the state at seq:{seq} that is a number, but {measured}"
        )
    return float(value)
