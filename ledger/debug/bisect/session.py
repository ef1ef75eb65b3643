"""What every face asks of a bisection: begin, tell, and let a judge decide."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from weightledger.ledger.debug.bisect.bisection import (
    MOST_EVALUATIONS,
    Bisection,
    End,
    Judged,
    Rules,
)
from weightledger.ledger.debug.bisect.candidates import Candidates
from weightledger.ledger.debug.bisect.ends import require_own, way
from weightledger.ledger.debug.bisect.judges import CalledJudge, Judge, NamedJudge
from weightledger.ledger.debug.bisect.panels import Place, panel
from weightledger.ledger.debug.bisect.reporting import report
from weightledger.ledger.debug.bisect.running import Ran, run
from weightledger.ledger.debug.bisect.search import Verdict
from weightledger.ledger.debug.bisect.searching import Search
from weightledger.ledger.debug.walking import ReplayedState, Walker
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.history.positions import resolve
from weightledger.ledger.history.reader import History
from weightledger.ledger.monitoring.evaluation import Scores
from weightledger.ledger.parallel import Executor
from weightledger.ledger.parallel.local import ALONE

Said = tuple[Verdict, str | None]
"""A verdict, and the position it is about; None is the state to be judged next."""


def start(
    history: History, good: str | None = None, bad: str | None = None, rules: Rules | None = None
) -> Bisection:
    """A bisection of a log; either end may be told later.

    Raises NotFound for a position that does not exist, and what `candidates` raises.
    """
    origin = history.require(0).hash.hex()
    new = Bisection(
        history.model, origin, _end(history, good), _end(history, bad), rules or Rules()
    )
    if new.good is not None and new.bad is not None:
        way(history, new)
    return new


def tell(history: History, bisection: Bisection, *said: Said) -> Bisection:
    """The same with further verdicts.

    While an end is missing, a good or bad position is that end, and the head is what is bad unless
    it is said. Raises InvalidRequest for verdicts that contradict each other.
    """
    require_own(history, bisection)
    search: Search | None = None
    path: Candidates | None = None
    for verdict, position in said:
        missing = bisection.good is None if verdict == "good" else bisection.bad is None
        if verdict != "skip" and missing:
            bisection = _ended(history, bisection, verdict, position)
            continue
        if bisection.good is None or bisection.bad is None:
            other = "good" if bisection.good is None else "bad"
            raise InvalidRequest(
                f"say first which state is {other}: bisect {other} POSITION", param=other
            )
        if search is None or path is None:
            path = way(history, bisection)
            search = Search(bisection, path)
        if position is None:
            places = search.probes()
            if not places:
                raise InvalidRequest("nothing is left to be judged; say which state is meant")
            seq = path.node(places[0])
        else:
            seq = resolve(history.store, position).node
        judged = Judged(seq, verdict)
        search.tell(judged)
        bisection = bisection.told(judged)
    if search is not None:
        search.outcome()  # raises where they contradict each other
    return bisection


class Here:
    """A log of this process that is searched; for one thread at a time."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._walker = Walker(history)
        self._at: tuple[Bisection, Candidates, Search] | None = None

    def probes(self, bisection: Bisection, most: int) -> list[int]:
        """The seqs of the states to judge next; see `running.Searched`."""
        path, search = self._come_to(bisection)
        return [path.node(place) for place in search.probes(most, ends=True)]

    def state(self, seq: int) -> ReplayedState:
        """A state, on the way from the one before."""
        return self._walker.to(seq)

    def place(self, seq: int) -> Place:
        """Where another process finds a state."""
        return {"url": self._history.store.home.url, "model": self._history.model, "seq": seq}

    @property
    def read_bytes(self) -> int:
        """What the walk has read so far."""
        return self._walker.read_bytes

    def _come_to(self, bisection: Bisection) -> tuple[Candidates, Search]:
        """The search with these verdicts: the one at hand where it lacks only the last of them."""
        if self._at is not None:
            before, path, search = self._at
            count = len(before.judged)
            if replace(before, judged=bisection.judged) == bisection and (
                before.judged == bisection.judged[:count]
            ):
                for one in bisection.judged[count:]:
                    search.tell(one)
                self._at = bisection, path, search
                return path, search
        path = way(self._history, bisection)
        search = Search(bisection, path)
        self._at = bisection, path, search
        return path, search


def judge_all(
    history: History,
    bisection: Bisection,
    judge: Judge | NamedJudge,
    *,
    executor: Executor = ALONE,
    most: int = MOST_EVALUATIONS,
    most_s: float | None = None,
    told: Callable[[Bisection, Judged], None] = lambda bisection, judged: None,
) -> Ran:
    """Let a judge decide until the step is known; see `running.run`.

    A judge that is known by name judges as many states at once as the executor has jobs.
    """
    here = Here(history)
    return run(bisection, here, panel(here, judge, executor), most=most, most_s=most_s, told=told)


def bisect(
    history: History,
    good: str,
    bad: str,
    judge: Callable[[ReplayedState], bool | Mapping[str, float] | Scores | None] | NamedJudge,
    rules: Rules | None = None,
    executor: Executor = ALONE,
) -> dict[str, Any]:
    """Find the state change that made a model bad, with a function as judge; see `report`.

    The judge gets a state and says True (good), False (bad) or None (cannot be judged); with
    `rules.metric` it gives metrics instead. One that is known by name judges several states at
    once, on `executor`.
    """
    by = judge if isinstance(judge, NamedJudge) else CalledJudge(judge)
    ran = judge_all(history, start(history, good, bad, rules), by, executor=executor)
    return report(history, ran.bisection)


def _ended(
    history: History, bisection: Bisection, verdict: Verdict, position: str | None
) -> Bisection:
    """The same with its missing end; both ends are of one way then."""
    if position is None and verdict == "good":
        raise InvalidRequest("say which state is good: bisect good POSITION", param="good")
    end = _end(history, position or "head")
    told = replace(bisection, good=end) if verdict == "good" else replace(bisection, bad=end)
    if told.good is not None and told.bad is not None:
        way(history, told)
    return told


def _end(history: History, position: str | None) -> End | None:
    if position is None:
        return None
    named = resolve(history.store, position)
    return End(named.text, named.node)
