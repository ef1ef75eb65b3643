"""Ray's cluster, or one that it starts on this machine: the way to share work out over machines.

A task's request and its answer pass through Ray, a few kilobytes of JSON each; what it reads it
reads from the ledger's database and blob store, which every node has to reach under the same URL.
Ray begins a task whose worker died again by itself.
"""

import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

from weightledger.ledger.errors import ExecutorUnavailable, LedgerError, WorkersDied
from weightledger.ledger.parallel import TRIES, Task, TaskFinished, Told, untold
from weightledger.ledger.parallel.doing import asked, do, result_of

PATIENCE_S = 60.0
"""How long a cluster may be without room for one task."""

_IMPORTS_S = 2.0
_CONNECT_S = 5.0
_LOOK_EVERY_S = 0.5


class RayExecutor:
    """`ledger.parallel.Executor` over a Ray cluster; `jobs` None is as many as it has CPUs.

    `address` is the cluster's HOST:PORT, None for a cluster on this machine that ends with this
    executor. Raises ExecutorUnavailable where Ray is not installed, the cluster does not answer or
    refuses our token, or has no CPU.
    """

    def __init__(
        self, jobs: int | None = None, address: str | None = None, *, patience_s: float = PATIENCE_S
    ) -> None:
        # Nothing is told to anybody elsewhere.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise ExecutorUnavailable(
                "the executor 'ray' needs Ray: pip install 'weightledger[ray]', or use 'local'"
            ) from None
        self._ray: Any = ray
        self._patience_s = patience_s
        self._connect(address, jobs)
        cpus = int(self._ray.cluster_resources().get("CPU", 0))
        if cpus < 1:
            self.close()
            raise ExecutorUnavailable(
                f"the Ray cluster at {address} has no CPU: add a node that has one"
            )
        self._jobs = min(jobs or cpus, cpus)

    @property
    def jobs(self) -> int:
        return self._jobs

    @property
    def start_s(self) -> float:
        return _IMPORTS_S

    def run(self, tasks: Sequence[Task], told: Told = untold) -> Iterator[TaskFinished]:
        """Do all tasks; see `ledger.parallel`. Told is how many are finished.

        The limit of a task is counted from when the cluster is given it.
        """
        ray = self._ray
        self._wait_for_room()
        remote = ray.remote(_do_there).options(num_cpus=1, max_retries=TRIES - 1)
        waiting = deque(enumerate(tasks))
        at_work: dict[Any, int] = {}
        deadlines: dict[Any, float] = {}
        finished = 0
        try:
            while waiting or at_work:
                while waiting and len(at_work) < self._jobs:
                    number, task = waiting.popleft()
                    begun = remote.remote(asked(task))
                    at_work[begun] = number
                    if task.limit_s is not None:
                        deadlines[begun] = time.monotonic() + task.limit_s
                done, _ = ray.wait(list(at_work), timeout=_LOOK_EVERY_S)
                late = [one for one in at_work if deadlines.get(one, inf) <= time.monotonic()]
                for one in late:
                    if one not in done:
                        ray.cancel(one, force=True)
                        finished += 1
                        told(finished, len(tasks))
                        yield TaskFinished(at_work.pop(one), None, late=True)
                for one in done:
                    number = at_work.pop(one)
                    result = self._result(one)
                    finished += 1
                    told(finished, len(tasks))
                    yield TaskFinished(number, result)
        finally:
            for one in at_work:
                ray.cancel(one, force=True)

    def close(self) -> None:
        """Leave the cluster; one that was started for this ends."""
        self._ray.shutdown()

    def _result(self, reference: Any) -> Any:
        exceptions = self._ray.exceptions
        try:
            answer = self._ray.get(reference)
        except exceptions.WorkerCrashedError as error:
            raise WorkersDied(
                f"a parallel task was begun {TRIES} times and its worker died each time: was there "
                "memory for it?"
            ) from error
        except exceptions.RayTaskError as error:
            raise LedgerError(f"a parallel task failed: {error}") from error
        except exceptions.RayError as error:
            raise WorkersDied(f"the Ray cluster lost a parallel task: {error}") from error
        return result_of(answer)

    def _connect(self, address: str | None, jobs: int | None) -> None:
        ray = self._ray
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address is None:
            # "local": not one that somebody else runs on this machine, which Ray would join
            ray.init(address="local", num_cpus=jobs, include_dashboard=False, **quiet)
            return
        _require_listening(address)
        refused = ExecutorUnavailable(
            f"the Ray cluster at {address} does not let us in: is the token right that "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH says (with RAY_AUTH_MODE=token), and is this "
            "machine a node of the cluster?"
        )
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise refused from error
        except SystemExit as error:  # how Ray ends a process that it cannot connect
            raise refused from error

    def _wait_for_room(self) -> None:
        until = time.monotonic() + self._patience_s
        while self._ray.available_resources().get("CPU", 0) < 1:
            if time.monotonic() > until:
                raise ExecutorUnavailable(
                    f"the Ray cluster had no CPU free for {self._patience_s:.0f} s: others use all "
                    f"of its {int(self._ray.cluster_resources().get('CPU', 0))}"
                )
            time.sleep(_LOOK_EVERY_S)


def _do_there(request: bytes) -> dict[str, Any]:
    """A task on a node of the cluster."""
    return do(request, untold)


def _require_listening(address: str) -> None:
    """ExecutorUnavailable unless something listens there; Ray itself takes minutes to say so."""
    host, _, port = address.rpartition(":")
    try:
        with contextlib.closing(socket.create_connection((host, int(port)), _CONNECT_S)):
            return
    except (OSError, ValueError) as error:
        raise ExecutorUnavailable(
            f"no Ray cluster answers at {address} (HOST:PORT is expected): {error}"
        ) from error
