"""For when something went wrong: what differs, who did it, what would be without it."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from weightledger.ledger.debug.bisect import session
from weightledger.ledger.debug.bisect.bisection import Rules
from weightledger.ledger.debug.bisect.judges import NamedJudge
from weightledger.ledger.debug.blame import Blame, blame
from weightledger.ledger.debug.diff import StateDiff, diff
from weightledger.ledger.debug.each import Each, each
from weightledger.ledger.debug.measured import Memo
from weightledger.ledger.debug.rank import Which
from weightledger.ledger.debug.walking import ReplayedState, Walker
from weightledger.ledger.debug.whatif.asking import what_if
from weightledger.ledger.debug.whatif.state import Mode, WhatIf
from weightledger.ledger.monitoring.evaluation import Scores
from weightledger.ledger.parallel import Executor
from weightledger.ledger.parallel.local import ALONE
from weightledger.ledger.questions.about import About


class Debugging(About):
    """Questions about what changes did."""

    @cached_property
    def _memo(self) -> Memo:
        return Memo()

    def diff(self, before: str, after: str = "head", *, ranks: Which = "auto") -> StateDiff:
        """What differs between the states at two positions; see `debug.diff`."""
        return diff(self.history, before, after, ranks=ranks, memo=self._memo)

    def each(self, before: str, after: str = "head", *, columns: int = 60) -> Each:
        """What each update from one state to a later one did, by layer; see `debug.each`."""
        return each(self.history, before, after, columns=columns)

    def what_if(
        self,
        without: Sequence[str],
        *,
        to: str = "head",
        mode: Mode = "mechanical",
        only_after: str | None = None,
    ) -> WhatIf:
        """What the state at a position would be without some events; see `debug.whatif`."""
        return what_if(self.history, without, to=to, mode=mode, only_after=only_after)

    def replayed(self, position: str = "head") -> ReplayedState:
        """A state in memory, verified: its tensors, seq, version and digest."""
        return Walker(self.history).to(self.history.resolve(position).node)

    def bisect(
        self,
        good: str,
        bad: str,
        judge: Callable[[ReplayedState], bool | Mapping[str, float] | Scores | None] | NamedJudge,
        *,
        rules: Rules | None = None,
        executor: Executor = ALONE,
    ) -> dict[str, Any]:
        """Find the state change between two positions that made the model bad.

        `judge` gets a state (`.weights`, `.seq`, `.version`) and says True for good, False for bad,
        None where it cannot be judged; with `rules.metric` it gives metrics. A `NamedJudge` judges
        several states at once, on `executor`. See `debug.bisect`.
        """
        return session.bisect(self.history, good, bad, judge, rules, executor)

    def blame(
        self,
        parameter: str,
        index: str | int | None = None,
        *,
        limit: int = 50,
        max_seq: int | None = None,
    ) -> Blame:
        """Who touched a parameter or one element of it, newest first; see `debug.blame`."""
        return blame(self.history, parameter, index, limit=limit, max_seq=max_seq)
