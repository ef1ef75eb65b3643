"""Work shared out between the thread that asks for it and those of a pool.

Threads that wait for each other cost more than they save: a processor that has nothing to do takes
30 to 100 µs to wake up. So whoever asks works too, nobody is woken for each job, and at the end one
thread waits for another at most once.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, wait
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def side_by_side(
    work: Callable[[Job], Result], jobs: Sequence[Job], pool: Executor, *, ahead: int | None = None
) -> Iterator[Result]:
    """`work` of each job, in the order of the jobs: by the caller and by one thread of `pool`.

    Jobs are begun in their order, and with `ahead` no more than so many beyond the last whose
    result was taken, which bounds what is held. The first failure, in that order, is raised. When
    the iterator ends, raises or is closed, no job is being worked on any more.
    """
    if len(jobs) <= 1:
        yield from map(work, jobs)
        return
    shared = _Shared(work, jobs, len(jobs) if ahead is None else ahead)
    helper = pool.submit(shared.help)
    try:
        while shared.taken < len(jobs):
            if shared.taken in shared.ended:
                yield shared.take()
                if shared.left and helper.done():  # it had come too far ahead
                    helper = pool.submit(shared.help)
            elif not shared.begin():
                # The helper has the next one: whoever is not at work, and may begin nothing, ends.
                _await_end(helper)
    finally:
        shared.left.clear()
        _await_end(helper)


def await_all(futures: Iterable[Future[Any]]) -> None:
    """Wait until none is being worked on or ever will be; what they come to is not looked at."""
    wait([future for future in futures if not future.cancel()])


class _Shared(Generic[Job, Result]):
    """Jobs that several threads take from; every step of it is atomic."""

    def __init__(self, work: Callable[[Job], Result], jobs: Sequence[Job], ahead: int) -> None:
        self._work, self._jobs, self._ahead = work, jobs, ahead
        self.left = deque(range(len(jobs)))
        self.ended: dict[int, Result | _Failed] = {}
        self.taken = 0

    def begin(self) -> bool:
        """Do the next job; False where none may be begun now."""
        try:
            if self.left[0] - self.taken >= self._ahead:
                return False
            number = self.left.popleft()
        except IndexError:
            return False
        try:
            self.ended[number] = self._work(self._jobs[number])
        except Exception as error:  # noqa: BLE001  (it is raised when its turn comes)
            self.ended[number] = _Failed(error)
        return True

    def help(self) -> None:
        while self.begin():
            pass

    def take(self) -> Result:
        """The next result, which is there."""
        result = self.ended.pop(self.taken)
        if isinstance(result, _Failed):
            raise result.error
        self.taken += 1
        return result


class _Failed:
    def __init__(self, error: Exception) -> None:
        self.error = error


def _await_end(helper: Future[None]) -> None:
    """Wait until the helper is done, or has not begun and never will."""
    if not helper.cancel():
        helper.result()
