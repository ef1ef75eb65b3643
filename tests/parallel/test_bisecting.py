"""Bisecting with several judges at once: the same report, whoever dies or hangs on the way."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.api.test_command import ok
from tests.debug.histories import Made, judge, make
from tests.parallel.test_executors import ROOT
from tests.parallel.test_sharing import Here
from tests.waiting import until
from weightledger import Ledger
from weightledger.ledger.debug.bisect import session
from weightledger.ledger.debug.bisect.bisection import Rules
from weightledger.ledger.debug.bisect.judges import NamedJudge
from weightledger.ledger.parallel import Executor
from weightledger.ledger.parallel.choosing import executing


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("bisect") / "data")


@pytest.fixture(scope="module")
def three_processes() -> Iterator[Executor]:
    """Forks of this one, but for those that take the place of one that died."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
        with executing("local", 3, prepare=lambda: None) as executor:
            yield executor


def poisoned(marks: Path, limit_s: float | None = None, **data: Any) -> NamedJudge:
    marks.mkdir()
    return NamedJudge("tests.parallel.judging:Poisoned", {"marks": str(marks), **data}, limit_s)


def report(made: Made, by: NamedJudge, executor: Executor) -> dict[str, Any]:
    """What a search comes to, but for how long its judges took."""
    with Ledger.open(f"sqlite:///{made.folder}/ledger.db") as ledger:
        return ledger.model("small").bisect("v0", "head", by, executor=executor)


def test_the_report_is_the_same_though_a_judges_process_is_killed(
    made: Made, three_processes: Executor, tmp_path: Path
) -> None:
    """Three states a round, in this process one after the other, and in three."""
    alone = report(made, poisoned(tmp_path / "alone"), Here(3))
    assert alone["first_bad"]["seq"] == made.poison
    assert report(made, poisoned(tmp_path / "all"), three_processes) == alone
    killed = tmp_path / "killed"
    assert report(made, poisoned(killed, dies=True), three_processes) == alone
    assert len(list(killed.iterdir())) > 1  # another process did what the first died of


def test_a_state_that_is_judged_several_times_in_a_round_has_as_many_verdicts(
    tmp_path: Path,
) -> None:
    """One verdict would count for all of them otherwise, and the others for nothing."""
    made = make(tmp_path / "data", before=1, after=0, rollbacks=False)  # one state to judge
    said = tmp_path / "said"
    by = NamedJudge("tests.parallel.judging:Fickle", {"said": str(said)})
    with Ledger.open(f"sqlite:///{made.folder}/ledger.db") as ledger:
        history = ledger.history("small")
        begun = session.start(history, "v0", "head", Rules(noisy=True, rate=0.1))
        assert len(session.Here(history).probes(begun, 3)) == 3
        ran = session.judge_all(history, begun, by, executor=Here(3), most=9)
    assert [one.verdict for one in ran.bisection.judged] == said.read_text().split()


def test_a_judge_that_hangs_is_ended_with_its_process(
    made: Made, three_processes: Executor, tmp_path: Path
) -> None:
    """A state that it never answers about counts as not judged."""
    with Ledger.open(f"sqlite:///{made.folder}/ledger.db") as ledger:
        history = ledger.history("small")
        begun = session.start(history, "v0", "head")
        hung = session.Here(history).probes(begun, 3)[1]
        by = poisoned(tmp_path / "marks", limit_s=5.0, hangs_on=hung)
        ran = session.judge_all(history, begun, by, executor=three_processes)
        found = session.report(history, ran.bisection)
    assert hung in {one.seq for one in ran.bisection.judged if one.detail == "timed out"}
    suspects = {one["seq"] for one in found["suspected"]} | {(found["first_bad"] or {}).get("seq")}
    assert made.poison in suspects


def test_nothing_is_left_of_a_search_that_is_stopped(made: Made, tmp_path: Path) -> None:
    """Commands of workers have process groups of their own, which Ctrl-C does not reach."""
    pids = tmp_path / "pids"
    pids.mkdir()
    waits = f"open(f'{pids}/{{os.getpid()}}', 'w').close()\nimport time\ntime.sleep(1000)"
    at = (*made.at, "--state", str(tmp_path / "search.json"))
    ok("bisect", "start", "--good", "v0", "--bad", "head", *at)
    words = ("bisect", "run", "--jobs", "2", *at, "--", judge(tmp_path, waits))
    running = subprocess.Popen(
        [sys.executable, "-m", "weightledger", *words], stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: len(list(pids.iterdir())) == 2, "two judges were not asked", pid=running.pid)
        below = psutil.Process(running.pid).children(recursive=True)
    finally:
        running.send_signal(signal.SIGINT)
        running.wait()
    assert {int(one.name) for one in pids.iterdir()} < {one.pid for one in below}
    until(lambda: not any(map(_is_at_work, below)), "a judge or a worker is left")


def _is_at_work(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
