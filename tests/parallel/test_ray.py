"""The executors' suite on a real Ray cluster, and a verification there. A cluster takes ten seconds
of processor time to start, so these are for `make soak`."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.debug.histories import make
from tests.parallel.test_bisecting import poisoned, report
from tests.parallel.test_executors import ROOT, Suite, task
from tests.parallel.test_sharing import MODEL, Here, report_of, write
from weightledger import Ledger
from weightledger.ledger.audit import parallel as audit
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.debug.bisect import session
from weightledger.ledger.errors import WorkersDied
from weightledger.ledger.history.reading import reading
from weightledger.ledger.parallel import Executor, in_order
from weightledger.ledger.parallel.choosing import executing

pytest.importorskip("ray")
pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Executor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
        with executing("ray", 2) as executor:
            yield executor


class TestRay(Suite):
    @pytest.fixture
    def executor(self, cluster: Executor) -> Executor:
        return cluster


def test_what_a_killed_worker_did_is_done_again(cluster: Executor, tmp_path: Path) -> None:
    tasks = [task("die", marks=str(tmp_path), times=2, by=os.getpid()), task("square", number=3)]
    assert in_order(cluster.run(tasks), 2)[0] == "done"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_task_whose_workers_always_die_is_given_up(cluster: Executor, tmp_path: Path) -> None:
    with pytest.raises(WorkersDied, match="3 times"):
        list(cluster.run([task("die", marks=str(tmp_path), times=99, by=os.getpid())]))


def test_a_verification_says_what_one_process_says(
    cluster: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a worker is killed on the way."""
    monkeypatch.setattr(audit, "worth", lambda seconds, executor: executor.jobs)
    url = f"sqlite:///{tmp_path}/ledger.db"
    write(url, str(tmp_path / "blobs"))
    alone = report_of(url, Here(1))
    assert report_of(url, cluster) == alone
    killed: list[int] = []

    def told(done: int, total: int) -> None:
        for child in psutil.Process().children(recursive=True) if not killed else ():
            if child.name().startswith("ray::") and "_do_there" in " ".join(child.cmdline()):
                os.kill(child.pid, signal.SIGKILL)
                killed.append(child.pid)

    with reading(url, MODEL) as history:
        assert verify(history, told, executor=cluster) == alone


def test_a_search_is_judged_there_and_a_judge_that_hangs_is_ended(
    cluster: Executor, tmp_path: Path
) -> None:
    made = make(tmp_path / "data")
    alone = report(made, poisoned(tmp_path / "alone"), Here(2))
    assert alone["first_bad"]["seq"] == made.poison
    assert report(made, poisoned(tmp_path / "there"), cluster) == alone
    with Ledger.open(f"sqlite:///{made.folder}/ledger.db") as ledger:
        history = ledger.history("small")
        begun = session.start(history, "v0", "head")
        hung = session.Here(history).probes(begun, 2)[1]
        by = poisoned(tmp_path / "hangs", limit_s=60.0, hangs_on=hung)
        ran = session.judge_all(history, begun, by, executor=cluster)
    assert hung in {one.seq for one in ran.bisection.judged if one.detail == "timed out"}


@pytest.fixture
def guarded(tmp_path: Path, cluster: Executor) -> Iterator[str]:
    """The address of a cluster with one CPU, in a token's keeping."""
    cluster.close()
    token = tmp_path / "token"
    token.write_text("a" * 32)
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    ray = Path(sys.executable).parent / "ray"
    before = set(psutil.pids())
    command = [ray, "start", "--head", "--num-cpus=1", "--port=0", "--include-dashboard=false"]
    started = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    address = (started.stdout + started.stderr).split("--address='")[1].split("'")[0]
    try:
        yield address
    finally:
        for pid in set(psutil.pids()) - before:
            try:
                process = psutil.Process(pid)
                if "/ray/" in " ".join(process.cmdline()) or process.name().startswith("ray::"):
                    process.kill()
            except psutil.Error:
                continue


def test_a_token_that_is_refused_is_told_and_a_cluster_without_room(
    guarded: str, tmp_path: Path
) -> None:
    source = """
import sys
from weightledger.ledger.errors import ExecutorUnavailable
from weightledger.ledger.parallel.ray import RayExecutor
try:
    RayExecutor(1, sys.argv[1])
except ExecutorUnavailable as error:
    print(error)
"""
    wrong = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 32}
    told = subprocess.run(
        [sys.executable, "-c", source, guarded], env=wrong, capture_output=True, text=True
    )
    assert f"the Ray cluster at {guarded} does not let us in" in told.stdout, told.stderr
    busy = """
import os, sys, time
import ray
ray.init(address=sys.argv[1])
@ray.remote(num_cpus=1)
def hold():
    time.sleep(3600)
held = hold.remote()
while ray.available_resources().get("CPU", 0) >= 1:
    time.sleep(0.1)
from weightledger.ledger.errors import ExecutorUnavailable
from weightledger.ledger.parallel import Task
from weightledger.ledger.parallel.ray import RayExecutor
ray.shutdown = lambda: None
ray.init = lambda **_: None
try:
    list(RayExecutor(1, sys.argv[1], patience_s=1).run([Task("json:dumps", {})]))
except ExecutorUnavailable as error:
    print(error, flush=True)
os._exit(0)
"""
    right = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    told = subprocess.run(
        [sys.executable, "-c", busy, guarded], env=right, capture_output=True, text=True
    )
    assert "had no CPU free for 1 s: others use all of its 1" in told.stdout, told.stderr
