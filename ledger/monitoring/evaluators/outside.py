"""Evaluators of another process: a command, or an HTTP endpoint.

Both get the whole state as a safetensors file and answer with JSON, `{"accuracy": 0.97}` or
`{"metrics": {"accuracy": 0.97}, "items": {"accuracy": [1, 0, 1]}}`, items in a fixed order, higher
being better. They end at their time limit: a command is killed with all it started.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import torch
from safetensors.torch import save, save_file

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.http import body_of, client
from weightledger.ledger.monitoring.evaluation import Scores, scores_of

_SHOWN = 500  # characters of what a command wrote to stderr
_MOST_ANSWER = 64 * 1024 * 1024


class EvaluatorFailed(Exception):
    """It did not answer with scores."""


class CommandEvaluator:
    """Runs a program with the path of the state's file as its last argument.

    It answers on its standard output, and exits with 0.
    """

    def __init__(self, words: list[str], timeout_s: float) -> None:
        self._words = words
        self.timeout_s = timeout_s

    def __call__(self, module: torch.nn.Module) -> Scores:
        with tempfile.TemporaryDirectory(prefix="weightledger-evaluator-") as folder:
            file = Path(folder) / "state.safetensors"
            save_file(_state(module), file)
            out, err = Path(folder) / "out", Path(folder) / "err"
            with out.open("wb") as to, err.open("wb") as errors:
                status = self._run([*self._words, str(file)], to, errors)
            said = err.read_bytes().decode(errors="replace")[-_SHOWN:].strip()
            if status:
                raise EvaluatorFailed(f"{self._words[0]} ended with status {status}: {said}")
            with out.open("rb") as answer:
                return _answer(answer.read(_MOST_ANSWER), self._words[0])

    def _run(self, words: list[str], out: Any, err: Any) -> int:
        # A session of its own, so that what it started ends with it.
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            return process.wait(self.timeout_s)
        except subprocess.TimeoutExpired:
            raise EvaluatorFailed(
                f"{words[0]} did not answer within {self.timeout_s:g} s and was killed"
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Endpoint:
    """Posts the state's file, `application/octet-stream`, to a URL, which answers 200 with JSON."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self.timeout_s = timeout_s
        client(url).close()  # says now what is wrong with it

    def __call__(self, module: torch.nn.Module) -> Scores:
        body = save(_state(module))
        headers = {"content-type": "application/octet-stream"}
        deadline = time.monotonic() + self.timeout_s
        try:
            with (
                client(self._url, timeout=self.timeout_s) as http,
                http.stream("POST", self._url, content=body, headers=headers) as reply,
            ):
                answer = body_of(reply, _MOST_ANSWER, deadline)
        except httpx2.HTTPError as error:
            raise EvaluatorFailed(f"no answer from {self._url}: {error!r}") from error
        if answer is None:
            raise EvaluatorFailed(
                f"{self._url} did not end its answer within {self.timeout_s:g} s and"
                f" {_MOST_ANSWER >> 20} MiB"
            )
        if reply.status_code != 200:
            said = answer.decode(errors="replace")[:200]
            raise EvaluatorFailed(f"{self._url} answered {reply.status_code}: {said}")
        return _answer(answer, self._url)


def command(line: str, timeout_s: float) -> CommandEvaluator:
    """`command:PROGRAM ARGUMENTS`, quoted as in a shell; no shell runs it."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise InvalidRequest(f"command {line!r}: {error}") from None
    if not words or shutil.which(words[0]) is None:
        raise InvalidRequest(f"command {line!r}: there is no program {(words or [''])[0]!r}")
    return CommandEvaluator(words, timeout_s)


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: one.detach().cpu().contiguous().clone() for name, one in module.state_dict().items()
    }


def _answer(content: bytes, whose: str) -> Scores:
    try:
        told = json.loads(content)
        if not isinstance(told, Mapping):
            raise ValueError(f"expected an object, got {type(told).__name__}")
        if "metrics" in told:
            return scores_of(Scores(told["metrics"], told.get("items", {})))
        return scores_of(told)
    except (ValueError, TypeError, AttributeError, InvalidRequest) as error:
        raise EvaluatorFailed(f"{whose} gave no scores: {error}") from error
