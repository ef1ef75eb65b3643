"""Processes of this machine, this one among them: the default way to share work out.

This process does tasks as well, in a thread, but for those that are done apart. Workers stay for
the next round of tasks until `close`.
"""

import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from weightledger.ledger.errors import LedgerError, WorkersDied
from weightledger.ledger.parallel import TRIES, Cancelled, Task, TaskFinished, Told, untold
from weightledger.ledger.parallel.doing import Answer, asked, do, result_of
from weightledger.ledger.parallel.local_workers import Worker, forks

_IMPORTS_S = 1.5
"""Processor time that an interpreter of its own takes to import what it works with."""

_FORK_S = 0.05


class LocalExecutor:
    """`ledger.parallel.Executor` over `jobs` processes, this one included.

    With `prepare`, which imports what tasks will, as many are forked at once as there may be tasks
    that are done apart; for a program that has opened nothing yet (`local_workers`).
    """

    def __init__(self, jobs: int, prepare: Callable[[], None] | None = None) -> None:
        self._jobs = jobs
        self._threads = max(1, (os.cpu_count() or 1) // jobs)
        self._idle = forks(jobs, prepare, self._threads) if prepare and jobs > 1 else []
        self._forked = bool(self._idle)

    @property
    def jobs(self) -> int:
        return self._jobs

    @property
    def start_s(self) -> float:
        return _FORK_S if self._forked else _IMPORTS_S

    def run(self, tasks: Sequence[Task], told: Told = untold) -> Iterator[TaskFinished]:
        """Do all tasks; see `ledger.parallel`."""
        if (self._jobs == 1 or len(tasks) <= 1) and not any(task.is_apart for task in tasks):
            yield from _alone(tasks, told)
            return
        round_ = _Round(tasks, told, self._idle, self._jobs, self._threads)
        try:
            yield from round_.results()
        finally:
            self._idle = round_.end()

    def close(self) -> None:
        """End the workers."""
        for worker in self._idle:
            worker.end()
        self._idle = []


ALONE = LocalExecutor(1)
"""Does everything in this process, one task after the other; keeps nothing."""


def _alone(tasks: Sequence[Task], told: Told) -> Iterator[TaskFinished]:
    progress = _Progress(len(tasks), told)
    for number, task in enumerate(tasks):

        def one(done: int, total: int, number: int = number) -> None:
            progress.of(number, done, total)

        yield TaskFinished(number, result_of(do(asked(task), one)))
        progress.finished(number)


class _Progress:
    """The work of all tasks together, each counted by its own units; for any thread."""

    def __init__(self, count: int, told: Told) -> None:
        self._parts = [(0, 0)] * count
        self._told = told

    def of(self, number: int, done: int, total: int) -> None:
        self._parts[number] = done, total
        self._tell()

    def finished(self, number: int) -> None:
        _, total = self._parts[number]
        self._parts[number] = max(total, 1), max(total, 1)
        self._tell()

    def _tell(self) -> None:
        parts = list(self._parts)
        largest = max(total for _, total in parts)
        # A task that has not begun yet is as long as the longest that is known.
        self._told(sum(d for d, _ in parts), sum(t or largest for _, t in parts))


class _Round:
    """Tasks at work, until all are done."""

    def __init__(
        self, tasks: Sequence[Task], told: Told, idle: Sequence[Worker], jobs: int, threads: int
    ) -> None:
        self._tasks = tasks
        self._progress = _Progress(len(tasks), told)
        numbers = range(len(tasks))
        self._anywhere = deque(n for n in numbers if not tasks[n].is_apart)
        self._apart = deque(n for n in numbers if tasks[n].is_apart)
        """What workers alone do, also what has to be done again since one died of it."""
        self._most = jobs - 1 if self._anywhere else jobs
        self._tries = [0] * len(tasks)
        self._idle = list(idle)
        self._busy: set[Worker] = set()
        self._threads = threads
        self._selector = selectors.DefaultSelector()
        self._cancelled = threading.Event()
        self._done_here: deque[tuple[int, Answer | BaseException]] = deque()
        self._heard, self._rung = os.pipe()
        self._here = threading.Thread(target=self._work_here, daemon=True)

    def results(self) -> Iterator[TaskFinished]:
        """What comes of the tasks, in the order in which they are finished."""
        self._selector.register(self._heard, selectors.EVENT_READ, None)
        self._here.start()
        left = len(self._tasks)
        while left:
            self._share_out()
            heard = [one for key, _ in self._selector.select(self._patience_s()) for one in
                     self._hear(key.data)]  # fmt: skip
            for finished in [*heard, *self._late()]:
                self._progress.finished(finished.number)
                left -= 1
                yield finished

    def end(self) -> list[Worker]:
        """Stop what is still at work; the workers that are free for another round."""
        self._cancelled.set()
        for worker in self._busy:
            worker.end()
        if self._here.ident is not None:
            self._here.join()
        self._selector.close()
        os.close(self._heard)
        os.close(self._rung)
        return self._idle

    def _share_out(self) -> None:
        while self._apart or self._anywhere:
            if len(self._busy) >= self._most:
                return
            try:
                number = (self._apart or self._anywhere).popleft()
            except IndexError:  # this process took it
                return
            if not self._idle:
                self._idle.append(Worker.started(self._threads))
            worker = self._idle.pop()
            self._busy.add(worker)
            self._selector.register(worker, selectors.EVENT_READ, worker)
            self._tries[number] += 1
            worker.begin(number, self._tasks[number])

    def _hear(self, worker: Worker | None) -> Iterator[TaskFinished]:
        if worker is None:
            os.read(self._heard, 1)
            number, answer = self._done_here.popleft()
            if isinstance(answer, BaseException):
                raise answer
            yield TaskFinished(number, result_of(answer))
            return
        number_there = worker.number
        assert number_there is not None
        message = worker.message()
        if message is not None and "done" in message:
            self._progress.of(number_there, message["done"], message["total"])
            worker.told(self._tasks[number_there])
            return
        self._selector.unregister(worker)
        self._busy.discard(worker)
        if message is None:
            self._died(number_there, worker.end())
            return
        self._idle.append(worker)
        if "fault" in message:
            raise LedgerError(f"a parallel task failed:\n{message['fault']}")
        yield TaskFinished(number_there, result_of(message))

    def _patience_s(self) -> float | None:
        """Seconds until a task has been at work for too long; None where none has a limit."""
        deadlines = [worker.deadline for worker in self._busy if worker.deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _late(self) -> Iterator[TaskFinished]:
        """End the workers that have been at one task for too long."""
        now = time.monotonic()
        for worker in list(self._busy):
            if worker.deadline is not None and worker.deadline <= now:
                assert worker.number is not None
                self._selector.unregister(worker)
                self._busy.discard(worker)
                worker.end()
                yield TaskFinished(worker.number, None, late=True)

    def _died(self, number: int, status: int) -> None:
        if self._tries[number] >= TRIES:
            raise WorkersDied(
                f"a parallel task was begun {TRIES} times and its process died each time, last "
                f"with status {status}{' (killed: was there memory for it?)' * (status == -9)}"
            )
        self._apart.append(number)

    def _work_here(self) -> None:
        """This process's part of the tasks; one whose worker died is left to other workers."""
        while not self._cancelled.is_set():
            try:
                number = self._anywhere.popleft()
            except IndexError:
                return

            def told(done: int, total: int, number: int = number) -> None:
                if self._cancelled.is_set():
                    raise Cancelled
                self._progress.of(number, done, total)

            answer: Answer | BaseException
            try:
                answer = do(asked(self._tasks[number]), told)
            except Cancelled:
                return
            except BaseException as error:  # noqa: BLE001  raised to who waits
                answer = error
            self._done_here.append((number, answer))
            os.write(self._rung, b"!")
