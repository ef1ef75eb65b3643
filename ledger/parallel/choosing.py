"""Which executor: by its name and how much at once."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

from weightledger.ledger.parallel import Executor
from weightledger.ledger.parallel.local import LocalExecutor

Kind = Literal["local", "ray"]


@contextlib.contextmanager
def executing(
    kind: Kind, jobs: int, address: str | None = None, *, prepare: Callable[[], None] | None = None
) -> Iterator[Executor]:
    """An executor that does `jobs` tasks at once, and leaves nothing behind.

    `address` is the Ray cluster's; see `RayExecutor` for what is raised where it is of no use.
    A program that has opened nothing yet may say how to `prepare` for its tasks, by imports: then
    processes of this machine are forked from it, and need none.
    """
    if kind == "ray":
        from weightledger.ledger.parallel.ray import RayExecutor  # an extra

        executor: Executor = RayExecutor(jobs, address)
    else:
        executor = LocalExecutor(jobs, prepare)
    with contextlib.closing(executor):
        yield executor
