"""What follows from a ruling: a rollback by the ordinary path, or a verdict in the log.

A rollback is made only while the state it is about is still the last one, at most so often, and
never past a pinned version; what keeps it from being made is itself recorded.
"""

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from weightledger.ledger import events
from weightledger.ledger.errors import (
    Conflict,
    CorruptLedger,
    LedgerError,
    PreconditionFailed,
    StorageError,
)
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies import Observed
from weightledger.ledger.history.intact import newest, skipped
from weightledger.ledger.history.positions import iso_time
from weightledger.ledger.history.reader import History
from weightledger.ledger.monitoring.deciding.deciders import Ruling
from weightledger.ledger.monitoring.policies import RollbackPolicy
from weightledger.ledger.monitoring.trial_log import DEGRADED, TIMED_OUT
from weightledger.ledger.projection.projector import LiveState
from weightledger.ledger.store import EventFilter
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.commands import Command, Observe, RollBack

logger = logging.getLogger("weightledger.ledger.manager")

AUTOMATIC = (DEGRADED, TIMED_OUT)

# A database that is away: again after so many seconds.
_RETRIES_S = (0.1, 0.5, 2.0, 5.0, 10.0)

REMEMBERED = 100
"""Automatic rollbacks whose states are not tried again."""


class HeldBack(Exception):
    """A rollback that was ruled may not be made, now or at all; says why.

    `told`: so does the log. `refused`: not the policy keeps it back, but the log could not do it.
    """

    def __init__(self, why: str, *, told: bool, refused: bool = False) -> None:
        super().__init__(why)
        self.told = told
        self.refused = refused


class WrittenLog(Protocol):
    """The log that is written to."""

    history: History

    @property
    def live(self) -> LiveState:
        """What the live weights show right now."""

    def execute(self, command: Command) -> Event:
        """Carry out a command, and give its event."""


class Acting:
    """Carries out what a policy rules, on a thread of its own."""

    def __init__(
        self, log: WrittenLog, policy: RollbackPolicy, clock: Callable[[], float] = time.time
    ) -> None:
        self._log = log
        self._policy = policy
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger-decider")

    @property
    def actor(self) -> str:
        """Who an event says decided."""
        return f"policy:{self._policy.name}"

    def close(self) -> None:
        """Finish what is being done."""
        self._thread.shutdown()

    def soon(self, work: Callable[[], object]) -> "Future[object]":
        """Do something on the deciding thread; what it raises is logged."""

        def logged() -> None:
            try:
                work()
            except Exception:
                logger.exception("what policy %s ruled was not carried out", self._policy.name)

        return self._thread.submit(logged)

    def roll_back(
        self,
        of: int,
        to: int,
        ruling: Ruling,
        cause: str = DEGRADED,
        *,
        newer: Callable[[], int | None] = lambda: None,
        told: bool = False,
        decided_us: int | None = None,
        **facts: Any,
    ) -> Event | None:
        """Roll the state change `of` back to node `to`; None when another one came first.

        `decided_us` is when it was ruled, in microseconds since 1970, which its event says.

        That is an `observed` event, unless `newer` says which one is to be rolled back then.
        None, too, when a policy of another process rolled it back, and that is none.
        HeldBack when the policy lets no rollback be made now, or the log refuses it, as when what
        it leads to was dropped; which is one, too, unless it was `told` before. Raises what the log
        raises when it cannot be written.
        """
        why = f"automatic rollback by policy {self._policy.name}: {ruling}"
        evidence = {"policy": self._policy.name, "decided_by": "policy", **ruling.evidence()}
        if decided_us is not None:
            evidence["decided_at"] = iso_time(decided_us)
        evidence |= facts
        held = self.held_back(of, to)
        if held is not None:
            raise self._kept_back(of, held, why, evidence, told=told)
        pauses = iter(_RETRIES_S)
        while True:
            caller = Caller(actor=self.actor, expected_seq=of)
            try:
                return self._log.execute(RollBack(f"seq:{to}", caller, cause, why, evidence))
            except PreconditionFailed:
                if (later := newer()) is not None and later != of:
                    of = later
                    continue
                if self._is_undone(of):
                    return None
                reason = f"{why}; another state change came first"
                self.observe(of, "superseded", reason, evidence)
                return None
            except (StorageError, Conflict) as error:
                pause_s = next(pauses, None)
                if pause_s is None:
                    raise
                logger.error("not rolled back yet, will try again: %s", error)
                time.sleep(pause_s)
            except LedgerError as error:
                if not told:
                    logger.error("not rolled back: %s", error)
                kept_back = self._kept_back(of, str(error), why, evidence, told=told, refused=True)
                raise kept_back from error

    def _kept_back(
        self,
        of: int,
        held: str,
        why: str,
        evidence: dict[str, Any],
        *,
        told: bool,
        refused: bool = False,
    ) -> HeldBack:
        """The error for a rollback that is not made, once it is in the log that it is not."""
        if not told:
            reason = f"{why}; not carried out: {held}"
            told = self.observe(of, "held_back", reason, evidence) is not None
        return HeldBack(held, told=told, refused=refused)

    def _is_undone(self, of: int) -> bool:
        """Whether a policy of another process has rolled that state change back."""
        later = EventFilter(kinds=[events.ROLLED_BACK], min_seq=of)
        return any(
            event.body["from_seq"] == of and event.body["cause"] in AUTOMATIC
            for event in self._log.history.events(later, limit=100)
        )

    def observe(
        self, of: int, verdict: str, reason: str | None, evidence: dict[str, Any]
    ) -> Event | None:
        """Record a verdict; None, with a line of the log, when it cannot be written."""
        body = Observed(of, verdict, self._policy.name, reason, evidence)
        try:
            return self._log.execute(Observe(body, Caller(actor=self.actor)))
        except LedgerError as error:
            logger.error("the verdict %s on event %d is not recorded: %s", verdict, of, error)
            return None

    def held_back(self, of: int, to: int) -> str | None:
        """Why a rollback is not to be made; None when nothing speaks against it."""
        now = self._clock()
        since = now - max(self._policy.window_s, self._policy.cool_down_s)
        recent = [
            event.timestamp
            for event in self._log.history.events(
                EventFilter(kinds=[events.ROLLED_BACK], since=int(since * 1_000_000)), limit=100
            )
            if event.body["cause"] in AUTOMATIC
        ]
        # A clock may have been set back since: what seems to be of tomorrow was not just now.
        ago = min((abs(now - at) for at in recent), default=math.inf)
        if ago < self._policy.cool_down_s:
            return f"the last one was {ago:.0f} s ago, cool_down_s is {self._policy.cool_down_s:g}"
        within = [at for at in recent if abs(now - at) <= self._policy.window_s]
        if len(within) >= self._policy.most:
            return f"there were {len(within)} in {self._policy.window_s:g} s, the most there may be"
        pinned = {one.node for one in self._log.history.store.listed_versions() if one.pinned}
        for node in ancestors(self._log.history, self._log.history.require(of).node, to):
            if node in pinned:
                return f"a pinned version names the state after event {node}"
        return None


def ancestors(history: History, node: int, to: int) -> list[int]:
    """The nodes from `node` up to `to`, without `to`; up to the first where it is no ancestor."""
    way = []
    at: int | None = node
    while at is not None and at != to and at >= to:
        way.append(at)
        at = history.lineage.parent(at)
    return way


def rejected_states(history: History) -> set[bytes]:
    """The digests of states that were rolled back automatically and not so long ago.

    Who made a rollback that is damaged is not known, so the state that it left counts as one of
    them.
    """
    rejected: set[bytes | None] = set()
    instead = "the state that this rollback left is not tried again"
    for one in newest(history, [events.ROLLED_BACK], REMEMBERED, instead):
        if isinstance(one, Event) and "cause" in one.body:
            rejected.add(one.state_before if one.body["cause"] == DEGRADED else None)
            continue
        seq = one.seq if isinstance(one, Event) else one
        try:
            rejected.add(history.require(seq - 1).state_after)
        except CorruptLedger as error:
            skipped(error, f"which state the rollback of event {seq} left is not known")
    return {digest for digest in rejected if digest is not None}
