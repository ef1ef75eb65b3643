"""Whether a replica may be sent requests, and why not."""

from dataclasses import dataclass
from typing import Literal

State = Literal["starting", "ready", "behind", "stale", "fenced", "stopped"]
"""`behind` is later than may be, `stale` without the database for longer than may be, and `fenced`
a replica that does not vouch for what it shows."""

MAX_STALE_S = 300.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a replica is ready without the database, and how far it may lag; None: however far.

    By default it stays in service however late it is: if a slow database took every replica out at
    once, nobody would be served.
    """

    max_stale_s: float = MAX_STALE_S
    max_lag_s: float | None = None


@dataclass(frozen=True, slots=True)
class Readiness:
    """What `/readyz` says of a replica.

    `seq` and `digest` are of the state that is served, as replies name it, `position` is the last
    event of the log that it takes account of. `target_seq` is where it is to be by what is known of
    the log, `lag_events` how many events that is away and `lag_s` since when. With `stale` the
    database has not been heard of for a moment.
    """

    state: State
    seq: int
    digest: str
    position: int
    target_seq: int
    lag_events: int
    lag_s: float
    stale: bool
    reason: str | None

    @property
    def ready(self) -> bool:
        """Whether requests may be sent here."""
        return self.state == "ready"


@dataclass(frozen=True, slots=True)
class SelfKnowledge:
    """What a replica knows of itself; times are seconds until now, by its own monotonic clock.

    `fault` is why it does not vouch for what it shows, `held_up` why it cannot go on just now,
    `lost` why the database was not reached when it was tried last.
    """

    proven: bool
    ended: bool
    fault: str | None
    held_up: str | None
    lost: str | None
    unheard_s: float
    lag_s: float


_UNHEARD_S = 10.0  # a look lasts a second at most


def judged(known: SelfKnowledge, limits: Limits) -> tuple[State, bool, str | None]:
    """The state, whether it is stale, and the reason for what is not as it should be."""
    stale = known.lost is not None or known.unheard_s > _UNHEARD_S
    if known.ended:
        return "stopped", stale, "it was told to stop"
    if known.fault is not None:
        return "fenced", stale, known.fault
    if not known.proven:
        return "starting", stale, "the digest of what is served is not proven yet"
    if stale:
        reason = known.lost or "the database has not answered"
        if known.unheard_s > limits.max_stale_s:
            said = f"for {known.unheard_s:.0f} s: {reason}"
            return "stale", True, f"the log cannot be followed {said}"
        return "ready", True, reason
    if limits.max_lag_s is not None and known.lag_s > limits.max_lag_s:
        reason = known.held_up or "it has not caught up with the log"
        return "behind", False, f"{known.lag_s:.1f} s behind: {reason}"
    return "ready", False, known.held_up
