"""Bisecting a log: by hand, by a command, by an evaluator, with judges that fail and err."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.api.test_command import as_json, inside, ok
from tests.debug.histories import POISONED, Made, judge, make
from tests.waiting import until
from weightledger import IncrementalUpdateRequest, InvalidRequest, Ledger
from weightledger.ledger.debug.bisect.bisection import Rules
from weightledger.ledger.debug.walking import ReplayedState
from weightledger.ledger.errors import JudgeFailed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("bisect") / "data")


@pytest.fixture
def at(made: Made, tmp_path: Path) -> tuple[str, ...]:
    """Where the ledger is, and a search of this test's own."""
    return (*made.at, "--state", str(tmp_path / "search.json"))


def is_good(state: ReplayedState) -> bool:
    return bool(state.weights["w"][POISONED] < 0.5)


def ran(*args: str) -> dict[str, Any]:
    """What `bisect run` says; the judge is the last word."""
    return dict(json.loads(ok("bisect", "run", "--json", *args)))


def test_by_hand_as_with_git(made: Made, at: tuple[str, ...]) -> None:
    assert as_json("bisect", "start", *at)["next"] is None
    as_json("bisect", "bad", *at)
    found = as_json("bisect", "good", "v0", *at)
    judged = 0
    while not found["done"]:
        seq = found["next"]["seq"]
        with Ledger.open(f"sqlite:///{made.folder}/ledger.db") as ledger:
            good = ledger.history("small").state(f"seq:{seq}")["w"][POISONED] < 0.5
        if judged == 1:
            found = as_json("bisect", "skip", *at)
            assert found["next"]["seq"] != seq
        found = as_json("bisect", "good" if good else "bad", f"seq:{seq}", *at)
        judged += 1
    blamed = found["first_bad"]
    assert (blamed["seq"], blamed["actor"], blamed["reason"]) == (made.poison, "mallory", "tuning")
    assert blamed["tensors"] == [{"name": "weights/w", "changed": 1}]
    # Each command of its log says the same again.
    commands = ok("bisect", "log", *at).splitlines()
    ok("bisect", "reset", *at)
    for line in commands:
        ok(*line.partition("  #")[0].split()[1:], *at)
    assert as_json("bisect", "visualize", *at)["first_bad"] == blamed
    assert as_json("bisect", "reset", *at) == {"ended": True}


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_a_command_finds_it_across_rollbacks(
    made: Made, at: tuple[str, ...], tmp_path: Path, jobs: str
) -> None:
    ok("bisect", "start", "--good", "v0", "--bad", "head", *at)
    found = ran("--jobs", jobs, *at, "--", judge(tmp_path))
    assert found["first_bad"]["seq"] == made.poison
    assert found["evaluations"] <= (6 if jobs == "1" else 9)
    assert found["undo"][0].startswith("weightledger rollback --to head --without update_")
    assert found["undo"][1].startswith("weightledger rollback --to seq:")
    # It is over: asked again, nothing is judged.
    again = ran(*at, "--", "/bin/false")
    assert again["evaluations"] == found["evaluations"]


def test_the_way_between_branches_is_searched(tmp_path: Path) -> None:
    """A fix that a rollback took back is the step to blame, whichever way it is passed."""
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        log = ledger.model("m", base={"w": torch.ones(4)})
        for step in (0.0, 0.1, -2.0, 0.1):  # the third mends what was bad from the first
            log.apply(IncrementalUpdateRequest("w", step, learning_rate=1.0))
        log.rollback("update_2")
        log.apply(IncrementalUpdateRequest("w", 0.1, learning_rate=1.0))
        found = log.bisect("update_4", "head", lambda state: bool(state.weights["w"][0] < 0.5))
    blamed = found["first_bad"]
    assert (blamed["id"].split("_")[1], blamed["undone"]) == ("3", True)
    assert found["undo"] == [
        f"weightledger rollback --to {blamed['id']} -m 'bisect: without {blamed['id']} it is bad'"
    ]


def test_moving_between_probes_costs_the_way_between_them(made: Made, at: tuple[str, ...]) -> None:
    """Not a rebuild from the first state for each."""
    with Ledger.open(f"sqlite:///{made.folder}/ledger.db") as ledger:
        history = ledger.history("small")
        read: list[int] = []
        original = type(history.store).payloads

        def counted(store: object, events: list[object]) -> object:
            read.append(len(events))
            return original(store, events)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(history.store), "payloads", counted)
            log = ledger.model("small")
            read.clear()
            found = log.bisect("v0", "head", is_good)
    assert found["first_bad"]["seq"] == made.poison
    way = found["steps"]
    # Half the way to the first probe, then a half, a quarter, … of it.
    assert sum(read) <= 1.6 * way


def test_an_evaluators_metric_decides(made: Made) -> None:
    with Ledger.open(f"sqlite:///{made.folder}/ledger.db") as ledger:
        log = ledger.model("small")
        rules = Rules(metric="loss", drop=0.5, lower_is_better=True)
        found = log.bisect(
            "v0", "head", lambda state: {"loss": float(state.weights["w"][POISONED])}, rules=rules
        )
        assert found["first_bad"]["seq"] == made.poison
        with pytest.raises(JudgeFailed, match="gave no loss"):
            log.bisect("v0", "head", lambda state: {"accuracy": 1.0}, rules=rules)
        with pytest.raises(JudgeFailed, match="evaluator failed on the state at seq:"):
            log.bisect("v0", "head", lambda state: 1 / 0)


def test_a_command_prints_the_metric(made: Made, at: tuple[str, ...], tmp_path: Path) -> None:
    ok("bisect", "start", "--good", "v0", "--bad", "head", *at)
    program = judge(tmp_path, 'print("words"); print(json.dumps({"quality": 1 - value}))')
    found = ran("--metric", "quality", "--drop", "0.5", *at, "--", program)
    assert found["first_bad"]["seq"] == made.poison
    same = ("--metric", "quality", "--drop", "0.5")
    for other in (("--metric", "loss"), (*same, "--lower-is-better")):
        status, _, err = inside("bisect", "run", *other, *at, "--", program)
        assert status == 1
        assert "judged in another way" in err


def test_a_judge_that_errs_is_asked_again_and_the_answer_says_how_certain_it_is(
    made: Made, at: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "asked").write_text("")
    wrong = (
        'n = len(open(os.path.join(os.path.dirname(sys.argv[0]), "asked")).read())\n'
        'open(os.path.join(os.path.dirname(sys.argv[0]), "asked"), "a").write("x")\n'
        "sys.exit(int((value > 0.5) != (n % 10 == 4)))"
    )
    ok("bisect", "start", "--good", "v0", "--bad", "head", "--noisy", "0.1", *at)
    found = ran(*at, "--", judge(tmp_path, wrong))
    assert found["first_bad"]["seq"] == made.poison
    assert found["first_bad"]["probability"] == found["probability"] >= 0.95
    chances = as_json("bisect", "visualize", *at)["suspected"]
    assert sum(one["probability"] for one in chances) == pytest.approx(1, abs=0.05)


def test_noise_without_a_rate_is_an_option_of_its_own(
    made: Made, at: tuple[str, ...], tmp_path: Path
) -> None:
    ok("bisect", "start", "--noisy", "--good", "v0", "--bad", "head", *at)
    state = json.loads((tmp_path / "search.json").read_text())
    assert (state["rules"]["noisy"], state["rules"]["rate"]) == (True, None)
    found = ran(*at, "--confidence", "0.9", "--", judge(tmp_path))
    assert found["first_bad"]["seq"] == made.poison


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("sys.exit(200)", "ended with status 200"),
        ("os.kill(os.getpid(), 9)", "ended by signal 9"),
        ("sys.exit(1)", "calls the good end"),
        ("sys.exit(0)", "calls the bad end"),
    ],
)
def test_a_judge_that_cannot_be_right_ends_the_search_and_nothing_is_lost(
    at: tuple[str, ...], tmp_path: Path, ending: str, words: str
) -> None:
    ok("bisect", "start", "--good", "v0", "--bad", "head", *at)
    status, _, err = inside("bisect", "run", *at, "--", judge(tmp_path, ending))
    assert status == 1
    assert words in err
    assert as_json("bisect", "log", *at)["good"]["text"].startswith("v0")


def test_a_judge_that_is_not_there_is_refused_before_anything(at: tuple[str, ...]) -> None:
    ok("bisect", "start", "--good", "v0", "--bad", "head", *at)
    status, _, err = inside("bisect", "run", *at, "--", "no-such-judge")
    assert (status, "no command 'no-such-judge'" in err) == (1, True)


def test_a_judge_that_hangs_is_ended_with_all_that_it_started(
    made: Made, at: tuple[str, ...], tmp_path: Path
) -> None:
    """The states that it hangs on count as not judged."""
    hang = (
        "import subprocess\n"
        "if value > 0.5: sys.exit(1)\n"
        "if int(os.environ['WEIGHTLEDGER_SEQ']) % 5: sys.exit(0)\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        f"open({str(tmp_path / 'pids')!r}, 'a').write(f'{{child.pid}}\\n')\n"
        "child.wait()"
    )
    ok("bisect", "start", "--good", "v0", "--bad", f"seq:{made.poison + 2}", *at)
    status, out, _ = inside(
        "bisect", "run", "--timeout", "5", "--json", *at, "--", judge(tmp_path, hang)
    )
    found = json.loads(out)
    suspects = {one["seq"] for one in found["suspected"]} or {found["first_bad"]["seq"]}
    assert status == (0 if found["first_bad"] else 1)
    assert made.poison in suspects
    for pid in (tmp_path / "pids").read_text().split() if (tmp_path / "pids").exists() else []:
        until(lambda pid=pid: not psutil.pid_exists(int(pid)), "the judge's child is still there")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_it_goes_on_where_it_was_stopped(
    made: Made, at: tuple[str, ...], tmp_path: Path, how: signal.Signals
) -> None:
    ok("bisect", "start", "--good", "v0", "--bad", "head", *at)
    gate = tmp_path / "gate"
    waits = (
        "import time\n"
        f"asked = open({str(tmp_path / 'asked')!r}, 'a'); asked.write('x'); asked.close()\n"
        f"n = len(open({str(tmp_path / 'asked')!r}).read())\n"
        f"while n == 3 and not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
        "sys.exit(int(value > 0.5))"
    )
    program = judge(tmp_path, waits)
    asked, errors = tmp_path / "asked", tmp_path / "errors"
    with errors.open("wb") as err:  # a pipe would be held open by the judge
        running = subprocess.Popen(
            [sys.executable, "-m", "weightledger", "bisect", "run", *at, "--", program],
            stdout=subprocess.DEVNULL,
            stderr=err,
            env={**os.environ, "NO_COLOR": "1"},
        )
    until(lambda: asked.exists() and len(asked.read_text()) == 3, pid=running.pid)
    running.send_signal(how)
    gate.touch()
    running.wait()
    assert "Traceback" not in errors.read_text()
    assert len(as_json("bisect", "log", *at)["judged"]) == 2
    found = ran(*at, "--", program)
    assert found["first_bad"]["seq"] == made.poison
    assert found["evaluations"] <= 6


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ("head", "v0", "came after the bad one"),
        ("head", "head", "are one state"),
        ("v0", "seq:9999", "not found"),
        ("v9", "head", "not found"),
    ],
)
def test_ends_that_cannot_be_are_refused(
    at: tuple[str, ...], tmp_path: Path, good: str, bad: str, words: str
) -> None:
    status, _, err = inside("bisect", "start", "--good", good, "--bad", bad, *at)
    assert status == 1
    assert words in err
    assert not (tmp_path / "search.json").exists()


def test_verdicts_that_contradict_each_other_or_name_other_states_are_refused(
    made: Made, at: tuple[str, ...]
) -> None:
    ok("bisect", "start", "--good", "v0", "--bad", "head", *at)
    before = as_json("bisect", "log", *at)
    ok("bisect", "bad", f"seq:{made.poison}", *at)
    status, _, err = inside("bisect", "good", f"seq:{made.poison + 1}", *at)
    assert (status, "--noisy" in err) == (1, True)
    with Ledger.open(f"sqlite:///{made.folder}/ledger.db") as ledger:
        store = ledger.history("small").store
        aside = next(one.seq for one in store.state_changes(0, 99) if one.kind == "rolled_back") - 1
    status, _, err = inside("bisect", "good", f"seq:{aside}", *at)
    assert (status, "not on the way" in err) == (1, True)
    assert len(as_json("bisect", "log", *at)["judged"]) == len(before["judged"]) + 1


@pytest.mark.parametrize(("verdict", "end"), [("bad", "v0"), ("good", "head")])
def test_an_end_is_not_called_the_contrary_and_the_search_goes_on(
    made: Made, at: tuple[str, ...], verdict: str, end: str
) -> None:
    ok("bisect", "start", "--good", "v0", "--bad", "head", *at)
    before = as_json("bisect", "log", *at)
    status, _, err = inside("bisect", verdict, end, *at)
    assert (status, f"end of what is searched, and was judged {verdict}" in err) == (1, True)
    assert as_json("bisect", "log", *at) == before
    assert as_json("bisect", "visualize", *at)["next"] is not None


def test_a_search_of_another_ledger_and_a_file_that_is_none_are_refused(
    at: tuple[str, ...], tmp_path: Path
) -> None:
    other = make(tmp_path / "other", before=2, after=1, rollbacks=False)
    ok("bisect", "start", *at)
    status, _, err = inside("bisect", "bad", *other.at, "--state", at[-1])
    assert (status, "another ledger" in err) == (1, True)
    status, _, err = inside("bisect", "start", *at)
    assert (status, "is going on" in err) == (1, True)
    Path(at[-1]).write_text("{}")
    status, _, err = inside("bisect", "good", "v0", *at)
    assert (status, "is no bisection" in err) == (1, True)
    ok("bisect", "reset", *at)
    status, _, err = inside("bisect", "good", "v0", *at)
    assert (status, "begin with" in err) == (1, True)


def test_states_that_gc_dropped_count_as_not_judged(made: Made) -> None:
    with Ledger.open(f"sqlite:///{made.folder}/ledger.db") as ledger:
        log = ledger.model("small")
        with pytest.MonkeyPatch.context() as patch:
            from weightledger.ledger.debug.walking import Walker
            from weightledger.ledger.errors import Pruned

            original = Walker.to

            def pruned(walker: Walker, node: int) -> ReplayedState:
                if made.poison - 3 <= node < made.poison:
                    raise Pruned(f"the state after event {node} was pruned", seq=node)
                return original(walker, node)

            patch.setattr(Walker, "to", pruned)
            found = log.bisect("v0", "head", is_good)
    assert found["first_bad"] is None
    assert made.poison in {one["seq"] for one in found["suspected"]}
    assert found["suspects"] <= 4


def test_an_unwritable_place_for_the_search_is_told(made: Made, tmp_path: Path) -> None:
    status, _, err = inside("bisect", "start", *made.at, "--state", str(tmp_path / "no" / "file"))
    assert (status, "cannot write" in err) == (1, True)


def test_rules_that_make_no_sense_are_refused() -> None:
    for rules in ({"confidence": 1.0}, {"drop": -1.0}, {"noisy": True, "rate": 0.7}):
        with pytest.raises(InvalidRequest):
            Rules(**rules)
