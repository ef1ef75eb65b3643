"""Judging replayed states with an evaluator, in this process or in several of their own."""

import functools
import multiprocessing
import signal
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load_file

from weightledger import DynamicModelManager
from weightledger.api.server import loading
from weightledger.ledger.debug.bisect.judges import CalledJudge, JudgeVerdict, Judging, StateToJudge
from weightledger.ledger.engines import Engine, Separable
from weightledger.ledger.errors import InvalidRequest, JudgeFailed, LedgerError
from weightledger.ledger.monitoring.evaluation import Evaluator, scores_of
from weightledger.ledger.monitoring.evaluators.registry import evaluator_of
from weightledger.ledger.monitoring.time_limits import limited

BUILT_IN = "built-in"

_TIMEOUT_S = 86_400.0  # a judge has a limit of its own


@dataclass(frozen=True, slots=True)
class Subject:
    """What is scored and by what, as text, so that another process can load it too.

    `model` is as for `serve --model`; `evaluator` is "built-in", the model's own, or as for
    `serve --evaluator`.
    """

    model: str
    data_dir: Path
    evaluator: str

    def load(self) -> tuple[loading.LoadedModel, Evaluator]:
        """The model and its evaluator; InvalidRequest where there is none."""
        return _loaded(self)


@functools.lru_cache(maxsize=2)
def _loaded(subject: Subject) -> tuple[loading.LoadedModel, Evaluator]:
    loaded = loading.load(subject.model, subject.data_dir)
    if subject.evaluator == BUILT_IN:
        if loaded.evaluator is None:
            raise InvalidRequest(
                f"{subject.model} has no evaluator of its own: name one as module:function",
                param="evaluator",
            )
        return loaded, loaded.evaluator
    evaluator = evaluator_of([subject.evaluator], loaded.engine, _TIMEOUT_S)
    assert evaluator is not None
    return loaded, evaluator


def score(subject: Subject, weights: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a state; InvalidRequest where the weights are not the model's."""
    loaded, evaluator = subject.load()
    return measured(loaded.engine, evaluator, weights)


def measured(
    engine: Engine, evaluator: Evaluator, weights: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """The metrics of an engine's model with these weights, further names of tied ones included."""
    first = engine.aliases().keys()
    named = {name: tensor for name, tensor in weights.items() if name not in first}
    return dict(scores_of(evaluator(engine.prepare(named).module)).metrics)


class Evaluating(CalledJudge):
    """An evaluator in this process."""

    def __init__(self, subject: Subject) -> None:
        subject.load()
        super().__init__(lambda state: score(subject, state.weights))


def evaluating_served(manager: DynamicModelManager) -> CalledJudge:
    """The evaluator that the manager's candidates meet, as a judge of states.

    It looks at a copy of the served model, beside what is live. InvalidRequest where the server has
    no evaluator, or no model of its own.
    """
    evaluator, engine = manager.evaluator, manager.engine
    if evaluator is None:
        raise InvalidRequest(
            "this server has no evaluator: start it with --evaluator, or judge elsewhere and send "
            "the verdicts",
            param="judge",
        )
    if not isinstance(engine, Separable):
        raise InvalidRequest(
            "the model is in another process: judge elsewhere and send the verdicts", param="judge"
        )
    model = engine.apart()
    limit = limited(evaluator, manager.config.evaluator_timeout_s)
    return CalledJudge(lambda state: measured(model, limit, state.weights))


class EvaluatingApart:
    """An evaluator in processes of its own, so many states at a time."""

    def __init__(self, subject: Subject, jobs: int, timeout_s: float | None = None) -> None:
        self._subject, self._jobs, self._timeout_s = subject, jobs, timeout_s
        self._pool = self._new_pool()
        self._folder = tempfile.TemporaryDirectory(prefix="weightledger-bisect-")

    def __enter__(self) -> "EvaluatingApart":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(self._pool)
        self._folder.cleanup()

    def ask(self, state: StateToJudge) -> Judging:
        file = Path(self._folder.name) / f"seq-{state.seq}.safetensors"
        state.write(file)
        return _Scored(self, self._pool.submit(_score_file, self._subject, file), state.seq, file)

    def renew(self) -> None:
        """End what takes too long; the next state gets a process that is not at work."""
        self._end(self._pool)
        self._pool = self._new_pool()

    @property
    def timeout_s(self) -> float | None:
        return self._timeout_s

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._jobs, multiprocessing.get_context("spawn"), initializer=_ignore_interrupts
        )

    @staticmethod
    def _end(pool: ProcessPoolExecutor) -> None:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Scored:
    judge: EvaluatingApart
    future: "Future[dict[str, float]]"
    seq: int
    file: Path

    def wait(self) -> JudgeVerdict:
        try:
            return JudgeVerdict(None, self.future.result(self.judge.timeout_s))
        except TookTooLong:
            self.judge.renew()
            return JudgeVerdict(None, timed_out=True)
        except LedgerError:
            raise
        except Exception as error:
            raise JudgeFailed(
                f"the evaluator failed on the state at seq:{self.seq}: {error!r}"
            ) from error

    def close(self) -> None:
        self.future.cancel()
        self.file.unlink(missing_ok=True)


def _ignore_interrupts() -> None:
    """Ctrl-C is for the process that asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _score_file(subject: Subject, file: Path) -> dict[str, float]:
    engine = subject.load()[0].engine
    own = engine.specs().keys()
    return score(subject, {n: t for n, t in load_file(file).items() if n in own})
