"""Processes of this machine, this one among them: the default way to share work out.

This process does tasks as well, in a thread, so that of two jobs one is well under way while the
other's process, which takes a second to import what it needs, begins. Workers stay for the next
round of tasks until `close`.
"""

import contextlib
import os
import selectors
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from weightledger.ledger.errors import LedgerError, WorkersDied
from weightledger.ledger.parallel import TRIES, Cancelled, Task, TaskFinished, Told, untold
from weightledger.ledger.parallel.doing import Answer, asked, do, result_of, unpack
from weightledger.ledger.parallel.frames import receive, send


class LocalExecutor:
    """`ledger.parallel.Executor` over `jobs` processes, this one included."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._idle: list[_Worker] = []

    @property
    def jobs(self) -> int:
        return self._jobs

    def run(self, tasks: Sequence[Task], told: Told = untold) -> Iterator[TaskFinished]:
        """Do all tasks; see `ledger.parallel`."""
        if self._jobs == 1 or len(tasks) <= 1:
            yield from _alone(tasks, told)
            return
        round_ = _Round(tasks, told, self._idle, self._jobs)
        try:
            yield from round_.results()
        finally:
            self._idle = round_.end()

    def close(self) -> None:
        """End the workers."""
        for worker in self._idle:
            worker.kill()
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


class _Worker:
    """A process that does one task at a time."""

    def __init__(self, threads: int) -> None:
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        self._process = subprocess.Popen(
            # -P: a file of the current folder takes no module's place.
            [sys.executable, "-P", "-m", "weightledger.ledger.parallel.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self.number: int | None = None

    def fileno(self) -> int:
        return self._out.fileno()

    def begin(self, number: int, task: Task) -> None:
        self.number = number
        # Where it died while idle, the end of its output tells.
        with contextlib.suppress(BrokenPipeError):
            send(self._in.fileno(), asked(task))

    def message(self) -> Any:
        """The next thing it says; None when it died."""
        data = receive(self._out.fileno())
        return None if data is None else unpack(data)

    def kill(self) -> int:
        """End it, however busy; its exit status."""
        self._process.kill()
        status = self._process.wait()
        self._in.close()
        self._out.close()
        return status


class _Round:
    """Tasks at work, until all are done."""

    def __init__(self, tasks: Sequence[Task], told: Told, idle: Sequence[_Worker], jobs: int):
        self._tasks = tasks
        self._progress = _Progress(len(tasks), told)
        self._fresh = deque(range(len(tasks)))
        self._again: deque[int] = deque()
        self._tries = [0] * len(tasks)
        self._idle = list(idle)
        self._busy: set[_Worker] = set()
        self._jobs = jobs
        self._threads = max(1, (os.cpu_count() or 1) // jobs)
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
            for key, _ in self._selector.select():
                for finished in self._hear(key.data):
                    self._progress.finished(finished.number)
                    left -= 1
                    yield finished

    def end(self) -> list[_Worker]:
        """Stop what is still at work; the workers that are free for another round."""
        self._cancelled.set()
        for worker in self._busy:
            worker.kill()
        if self._here.ident is not None:
            self._here.join()
        self._selector.close()
        os.close(self._heard)
        os.close(self._rung)
        return self._idle

    def _share_out(self) -> None:
        while self._again or self._fresh:
            if not self._idle:
                if len(self._busy) >= self._jobs - 1:
                    return
                self._idle.append(_Worker(self._threads))
            try:
                number = (self._again or self._fresh).popleft()
            except IndexError:  # this process took it
                return
            worker = self._idle.pop()
            self._busy.add(worker)
            self._selector.register(worker, selectors.EVENT_READ, worker)
            self._tries[number] += 1
            worker.begin(number, self._tasks[number])

    def _hear(self, worker: _Worker | None) -> Iterator[TaskFinished]:
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
            return
        self._selector.unregister(worker)
        self._busy.discard(worker)
        if message is None:
            self._died(number_there, worker.kill())
            return
        self._idle.append(worker)
        if "fault" in message:
            raise LedgerError(f"a parallel task failed:\n{message['fault']}")
        yield TaskFinished(number_there, result_of(message))

    def _died(self, number: int, status: int) -> None:
        if self._tries[number] >= TRIES:
            raise WorkersDied(
                f"a parallel task was begun {TRIES} times and its process died each time, last "
                f"with status {status}{' (killed: was there memory for it?)' * (status == -9)}"
            )
        self._again.append(number)

    def _work_here(self) -> None:
        """This process's part of the tasks; one whose worker died is left to other workers."""
        while not self._cancelled.is_set():
            try:
                number = self._fresh.popleft()
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
