"""What there is in the log: states, events, versions, approvals, and whether it is whole."""

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch

from weightledger.ledger.audit.chain import Progress
from weightledger.ledger.audit.report import Report
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.debug.follow import follow
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import KINDS, Event
from weightledger.ledger.history import approvals, holds, versions
from weightledger.ledger.history.approvals import Approval
from weightledger.ledger.history.holds import Hold
from weightledger.ledger.questions.about import About
from weightledger.ledger.sql.wakeups import Wake
from weightledger.ledger.store import DayCount, EventFilter


class Past(About):
    """Questions about what was recorded."""

    def state(self, position: str = "head") -> dict[str, torch.Tensor]:
        """Every tensor at a position, by bare name; see `history.positions` for the forms."""
        return self.history.state(position)

    def events(self, *, limit: int | None = None, **where: Any) -> list[Event]:
        """Events, newest first; filters are the fields of `ledger.store.EventFilter`."""
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, Integral)):
            raise InvalidRequest(f"limit must be a whole number, got {limit!r:.200}", param="limit")
        return self.history.events(_filter(where), limit=limit)

    def activity(self, **where: Any) -> list[DayCount]:
        """How many events there were by day, kind and actor; see `History.activity`."""
        return self.history.activity(_filter(where))

    def versions(self) -> Sequence[versions.ModelVersion]:
        """Listed versions, newest first."""
        return self.history.versions()

    def follow(self, after_seq: int | None = None, *, wake: Wake = "auto") -> Iterator[Event]:
        """Every event from now on (or after a seq), of whichever process; see `debug.follow`."""
        return follow(self.history.store, after_seq, wake=wake)

    def wait(self, after_seq: int, timeout_s: float, *, wake: Wake = "auto") -> int:
        """Wait, at most so long, for an event behind a seq, of whichever process; gives the last
        seq. What is live follows it or not: see `Ledger.follow`."""
        return self.history.store.wait(after_seq, timeout_s, wake)

    def approvals(self, *, limit: int = 100) -> list[Approval]:
        """Writes that wait for a second person, or did, newest first."""
        return approvals.every(self.history.store, limit=limit)

    def holds(self) -> list[Hold]:
        """Every legal hold that there is or was, newest first."""
        return holds.every(self.history.store)

    def verify(self, progress: Progress | None = None) -> Report:
        """Recompute every digest from the log; see `ledger.audit.verify`."""
        return verify(self.history, progress)


def _filter(where: Mapping[str, Any]) -> EventFilter:
    """The filter; InvalidRequest for a kind that no event has, which would find nothing."""
    asked = EventFilter(**where)
    for kind in asked.kinds:
        if kind not in KINDS:
            raise InvalidRequest(
                f"kinds are some of {', '.join(sorted(KINDS))}; got {kind!r:.200}", param="kinds"
            )
    return asked
