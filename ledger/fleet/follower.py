"""A replica: live weights that follow a log which others write.

One thread waits for new events and shows them, another reports (`reporting`). The ledger's weights
win: whatever the engine began with, it shows a state of the log, and says that it is ready only
once the digest of every tensor it serves has been computed and is that state's.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from weightledger.ledger.codecs.warming import warm
from weightledger.ledger.engines import Engine, Live
from weightledger.ledger.errors import (
    CorruptLedger,
    LedgerError,
    SchemaMismatch,
    StorageError,
    Unavailable,
    WeightsMismatch,
)
from weightledger.ledger.events import ROLLOUT_CHANGED, Event
from weightledger.ledger.fleet.preparing import Preparer
from weightledger.ledger.fleet.readiness import Limits, Readiness, SelfKnowledge, judged
from weightledger.ledger.fleet.reporting import Reporter
from weightledger.ledger.history import rollouts
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.following import MOST_NEWS, News
from weightledger.ledger.projection.projector import LiveState
from weightledger.ledger.sql.backend import Slots
from weightledger.ledger.sql.wakeups import Ending, Wake
from weightledger.ledger.store.replica_rows import ReplicaStanding
from weightledger.ledger.tensors.state import StateDigest

logger = logging.getLogger(__name__)

_LOOK_S = 1.0  # the longest that a follower waits for an event at a time
_RETRY_S = 0.2  # after the database did not answer
_COMPARE_S = 10.0  # between two looks whether the log still has the event that is shown
_FAULT_S = 0.5  # after something went wrong here


class Followed(Protocol):
    """The log that is followed, with the engine that shows it; see `ledger.log.Log`."""

    @property
    def history(self) -> History: ...

    @property
    def live(self) -> LiveState: ...

    @property
    def engine(self) -> Engine: ...

    def catch_up(self, to: int | None = None, news: News | None = None) -> Event: ...

    def look_after(self) -> None: ...

    def rehearse(self, event: Event, payload: bytes | None, proposal: str) -> bytes: ...

    def forget(self) -> None: ...

    def verify_live(self) -> tuple[LiveState, StateDigest]: ...


@dataclass(frozen=True, slots=True)
class Following:
    """How a server follows: as which replica, reached at `url`, woken up how, within which limits.

    `refusal` is what who writes here is told. With `rolling` at most so many replicas change the
    weights they show at once; None: however many. With `prepares` it builds what writers propose,
    see `writing.preparing`.
    """

    replica: str
    refusal: str
    url: str | None = None
    wake: Wake = "auto"
    limits: Limits = field(default_factory=Limits)
    rolling: int | None = None
    prepares: bool = False


class Follower:
    """One replica; safe to use from any thread. `close` it, or use it as a context.

    Which rollout it knows to run, `in_rollout` is told by the seq that began it, before what is
    shown changes for it; None for none.
    """

    def __init__(
        self,
        log: Followed,
        how: Following,
        in_rollout: Callable[[int | None], None] | None = None,
    ) -> None:
        self.log = log
        self._in_rollout = in_rollout
        self.replica = how.replica
        self.limits = how.limits
        self._wake = how.wake
        self._rolling = how.rolling
        self._slots: Slots | None = None
        if how.rolling is not None:
            self._slots = log.history.store.slots(how.rolling, how.replica)
        self._seen = log.live.head.seq
        self._last_seq = self._seen
        self._proven = False
        self._fault: str | None = None
        self._superseded: str | None = None
        self._held_up: str | None = None
        self._lost: str | None = None
        self._heard = time.monotonic()
        self._behind_since: float | None = None
        self._reported: LiveState | None = None
        self._looked = 0.0
        self._compared = time.monotonic()
        self._ending = Ending()
        self._changed = threading.Condition()
        self.rollout: rollouts.Rollout | None = None
        warm(spec.element.lane for spec in log.engine.specs().values())
        self._reporter: Reporter | None = None
        self._begin()
        self._reporter = Reporter(
            log.history.store.replicas, how.replica, how.url, self._standing, self._supersede
        )
        self._note_shown()
        self._reporter.start()
        self._preparer: Preparer | None = None
        if how.prepares:
            mine = how.replica, self._reporter.incarnation
            self._preparer = Preparer(log, log.history.store.proposals, mine, how.wake)
        self._heard = time.monotonic()  # by the reporter; compiling loops may have taken long
        self._thread = threading.Thread(target=self._run, name="ledger-follow", daemon=True)
        self._thread.start()

    # For those who are served

    @property
    def live(self) -> LiveState:
        """What is shown right now."""
        return self.log.live

    def lease(self) -> contextlib.AbstractContextManager[Live]:
        """One committed state to infer with: `live.module`, `live.seq`, `live.digest`."""
        return self.log.engine.lease()

    @property
    def incarnation(self) -> int:
        """How often a replica of this name was started, this time included."""
        return 0 if self._reporter is None else self._reporter.incarnation

    def readiness(self) -> Readiness:
        """Whether requests may be sent here, and why not. Asks nobody."""
        live = self.log.live
        now = time.monotonic()
        since = self._behind_since
        lag_s = 0.0 if since is None else now - since
        known = SelfKnowledge(
            proven=self._proven,
            ended=self._ending.is_set(),
            fault=self._superseded or self._fault,
            held_up=self._held_up,
            lost=self._lost,
            unheard_s=now - self._heard,
            lag_s=lag_s,
        )
        state, stale, reason = judged(known, self.limits)
        return Readiness(
            state=state,
            seq=live.head.state_seq,
            digest=live.state.value.hex(),
            position=self._seen,
            target_seq=self._last_seq,
            lag_events=max(0, self._last_seq - self._seen),
            lag_s=round(lag_s, 3),
            stale=stale,
            reason=reason,
        )

    def wait_for(self, seq: int, timeout_s: float) -> bool:
        """Wait until the state that an event led to is shown; False if it is not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.log.live.head.seq >= seq, timeout_s)

    def close(self) -> None:
        """Stop following, and say so."""
        self._ending.set()
        if self._preparer is not None:
            self._preparer.end()
        self._thread.join()
        if self._preparer is not None:
            self._preparer.close()
        if self._slots is not None:
            self._slots.close()
        if self._reporter is not None:
            self._reporter.close()

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The thread that follows

    def _begin(self) -> None:
        """Show what is to be shown, and prove it, before anybody is served."""
        self._show(())
        self._prove()

    def _run(self) -> None:
        while not self._ending.is_set():
            before = self._fault, self._lost, self._held_up
            pause_s = 0.0
            try:
                self._follow()
                self._look_after()
                self._fault = self._held_up = None
            except SchemaMismatch as error:
                self._fault, pause_s = str(error), _FAULT_S
            except StorageError as error:
                self._lost, pause_s = str(error), _RETRY_S
            except Unavailable as error:  # readers hold as many versions as may be held
                self._held_up = str(error)
            except LedgerError as error:
                self._fault, pause_s = str(error), _FAULT_S
            except Exception as error:
                logger.exception("the log cannot be followed")
                self._fault, pause_s = f"{type(error).__name__}: {error}", _FAULT_S
            if self._fault is not None:
                self._proven = False
            after = self._fault, self._lost, self._held_up
            if after != before:
                self._tell(before, after)
            self._ending.wait(pause_s)

    def _follow(self) -> None:
        """Wait for news, and show them; then whatever was in the way is over."""
        store = self.log.history.store
        # What was in the way is over with the first look: that is no time to wait for news.
        doubtful = (self._fault, self._held_up, self._lost) != (None, None, None)
        last = store.wait(self._seen, 0.0 if doubtful else _LOOK_S, self._wake, self._ending)
        self._heard, self._lost = time.monotonic(), None
        if doubtful or last < self._seen:
            self._require_same_log(last)
        self._last_seq = max(self._last_seq, last)
        if last <= self._seen:
            if self._fault is None and self._proven:
                return
        elif self._behind_since is None:
            self._behind_since = self._heard
        with self._turn() as mine:
            if not mine:
                return
            news = store.news(self._seen, MOST_NEWS)
            head = self.log.live.head
            if not news or head.seq != self._seen or news[0][0].prev != head.hash:
                self._require_same_log(last)
            self._show(news)
        if not self._proven:
            self._prove()
        self._behind_since = None

    def _require_same_log(self, last: int) -> None:
        """Raise CorruptLedger unless what is shown is a state of the log as it is now.

        One that an older copy was put in the place of has other events at these seqs, or none yet.
        """
        head = self.log.live.head
        there = self.log.history.store.event(head.seq) if head.seq <= last else None
        if there is None or there.hash != head.hash:
            what = f"ends at {last}" if there is None else f"has another event {head.seq}"
            raise CorruptLedger(
                f"the log is not the one that was followed: it {what}, and event {head.seq} of that"
                " is shown here. If an older copy was restored on purpose, start again",
                seq=head.seq,
            )

    def _turn(self) -> contextlib.AbstractContextManager[bool]:
        """Around a change of what is shown, while few enough others change; False: it is to end."""
        if self._slots is None:
            return contextlib.nullcontext(True)
        return self._slots.held(self._waits)

    def _waits(self) -> bool:
        self._heard = time.monotonic()
        self._held_up = f"waits for its turn: at most {self._rolling} replicas change at once"
        return not self._ending.is_set()

    def _show(self, news: News) -> None:
        """Show what is to be shown after these events, and those behind them."""
        store = self.log.history.store
        to = rollouts.target(self.rollout, self.replica)
        told = any(event.kind == ROLLOUT_CHANGED for event, _ in news)
        usual = to is None and self.log.live.head.seq == self._seen and not told
        if usual and 0 < len(news) < MOST_NEWS:
            self._seen = self.log.catch_up(None, news).seq
        else:
            # The log first: a rollout that begins meanwhile is behind it, and is looked at next.
            head = store.head()
            self.rollout = rollouts.newest(store)
            if self._in_rollout is not None:
                running = self.rollout is not None and self.rollout.running
                self._in_rollout(self.rollout.started_seq if running and self.rollout else None)
            to = rollouts.target(self.rollout, self.replica)
            self.log.catch_up(head.seq if to is None else to)
            self._seen = head.seq
        self._last_seq = max(self._last_seq, self._seen)
        self._note_shown()

    def _look_after(self) -> None:
        """Now and then look at what is live: was it written to, does the engine still show it."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_S:
            self._looked = now
            self.log.look_after()
        if now - self._compared >= _COMPARE_S:
            self._compared = now
            self._require_same_log(self._seen)

    def _prove(self) -> None:
        """Compute the digest of what is served, all of it, and compare."""
        live, digest = self.log.verify_live()
        if digest.value != live.state.value:
            differing = sorted(
                name for name, one in digest.digests.items() if one != live.state.digests[name]
            )
            raise WeightsMismatch(
                f"what is served is not the state after event {live.head.seq}; different:"
                f" {', '.join(differing[:8])}"
            )
        self._proven = True

    def _note_shown(self) -> None:
        live, before = self.log.live, self._reported
        if self._reporter is not None:
            now = live.head.state_seq, live.state.value
            if before is None or now != (before.head.state_seq, before.state.value):
                self._reporter.shown(live.head.seq, *now)
            self._reported = live
        with self._changed:
            self._changed.notify_all()

    def _standing(self) -> ReplicaStanding:
        known, live = self.readiness(), self._reported or self.log.live
        return ReplicaStanding(
            known.state,
            known.reason,
            known.position,
            live.head.state_seq,
            live.head.node,
            live.state.value,
            known.lag_events,
            known.lag_s,
        )

    def _supersede(self, reason: str) -> None:
        self._superseded = reason
        logger.error("%s is fenced: %s", self.replica, reason)

    def _tell(self, before: tuple[str | None, ...], after: tuple[str | None, ...]) -> None:
        """Log what has begun and what is over, and report it."""
        fault, lost, held_up = after
        if fault is not None and fault != before[0]:
            logger.error("%s is fenced: %s", self.replica, fault)
        elif lost is not None and before[1] is None:
            logger.warning("%s serves on what it has: %s", self.replica, lost)
        elif held_up is not None and before[2] is None:
            logger.warning("%s cannot go on yet: %s", self.replica, held_up)
        elif after == (None, None, None):
            logger.warning("%s follows the log again", self.replica)
        if self._reporter is not None:
            self._reporter.changed()
