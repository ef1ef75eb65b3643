"""Processes that run functions of the test modules, all at the same moment."""

from collections.abc import Callable
from typing import Any

import torch

from tests.forked import forking
from tests.waiting import PATIENCE_S
from weightledger.ledger.errors import LedgerError


class Children:
    """Some processes that wait for work; each has imported the ledger already."""

    def __init__(self, count: int) -> None:
        self.context = forking()
        self._barrier = self.context.Barrier(count, timeout=PATIENCE_S)  # one of them may die
        self._pipes: list[Any] = []
        self.processes: list[Any] = []
        for _ in range(count):
            ours, theirs = self.context.Pipe()
            process = self.context.Process(target=_child, args=(theirs, self._barrier), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self.processes.append(process)

    def run(self, work: Callable[..., object], *given: tuple[object, ...]) -> list[Any]:
        """work(*given[n]) in process n; results, and for an exception its class's name.

        None stands for the result of a process that was killed.
        """
        assert len(given) == len(self.processes)
        for pipe, args in zip(self._pipes, given, strict=True):
            pipe.send((work, args))
        return [_received(pipe) for pipe in self._pipes]

    def end(self) -> None:
        for process, pipe in zip(self.processes, self._pipes, strict=True):
            pipe.close()
            process.join(10)


def _received(pipe: Any) -> Any:
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError):
        return None


def _child(pipe: Any, barrier: Any) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            work, args = pipe.recv()
        except EOFError:
            return
        barrier.wait()
        try:
            result = work(*args)
        except LedgerError as error:
            result = type(error).__name__
        pipe.send(result)
