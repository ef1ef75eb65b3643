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
  the tasks that are at work.
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
    """A piece of work: `function` is "package.module:function", `data` its keywords."""

    function: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TaskFinished:
    """The result of the task with this number."""

    number: int
    result: Any


class Cancelled(Exception):
    """Nobody waits for this task any more."""


class Executor(Protocol):
    """Does tasks."""

    @property
    def jobs(self) -> int:
        """How many tasks are done at once."""

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
