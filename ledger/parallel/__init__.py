"""Work shared out: tasks that read the ledger themselves, done by processes here or by Ray.

The contract
------------
- A task is the name of a function, "package.module:function", and plain data, what JSON can say.
  Its result is plain data too: digests, counts, facts. Tensors never travel this way: a task reads
  what it needs and writes what is large to where it belongs.
- A task changes nothing that it would not do again: one whose worker died is done once more by
  another, so whoever waits gets the same results. After `TRIES` deaths `WorkersDied` says so.
- The function is called with `told` and its data as keywords. It calls `told(done, total)` now and
  then, which raises Cancelled once nobody waits for it any more.
- What a task raises is raised to who waits, LedgerErrors as they were.
- Results come as they are finished, each with its task's number. Who stops asking for them ends
  the tasks that are at work, and the commands that they started by `parallel.commands`.
- A task that calls what is not ours, and so may never come back, is done `apart`: by a process
  that can be ended. With `limit_s` it is ended when it has told nothing for so long, counted from
  the first time that it tells something, and its result says so.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Told = Callable[[int, int], None]
"""Is told how much of how much is done."""

TRIES = 3
"""How often a task is begun whose workers die."""


@dataclass(frozen=True, slots=True)
class Task:
    """A piece of work: `function` is "package.module:function", `data` its keywords.

    It is done `apart` from the process that asks, or wherever; what has a limit is done apart.
    """

    function: str
    data: Mapping[str, Any]
    apart: bool = False
    limit_s: float | None = None

    @property
    def is_apart(self) -> bool:
        """Whether it is left to a process that can be ended."""
        return self.apart or self.limit_s is not None


@dataclass(frozen=True, slots=True)
class TaskFinished:
    """The result of the task with this number; None where it was at work for too long."""

    number: int
    result: Any
    late: bool = False


class Cancelled(Exception):
    """Nobody waits for this task any more."""


class Executor(Protocol):
    """Does tasks."""

    @property
    def jobs(self) -> int:
        """How many tasks are done at once."""

    @property
    def start_s(self) -> float:
        """About how many seconds of processor time it takes until another process is at work."""

    def run(self, tasks: Sequence[Task], told: Told = ...) -> Iterator[TaskFinished]:
        """Do all tasks; see the contract. `told` counts the work of all of them together.

        Raises WorkersDied, ExecutorUnavailable, and what tasks raise.
        """

    def close(self) -> None:
        """Leave no process behind."""


def untold(done: int, total: int) -> None:
    """Tells nobody."""


def in_order(finished: Iterator[TaskFinished], count: int) -> list[Any]:
    """All results, each at its task's place."""
    results: list[Any] = [None] * count
    for one in finished:
        results[one.number] = one.result
    return results
