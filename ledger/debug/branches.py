"""Which events are part of a state, and which rollback took one out of it.

Between two rollbacks each state stands on the one before it, so the way from a state up the tree
leaps from one rollback to where it led. Only the rollbacks are read, whatever lies between them.
"""

from bisect import bisect_left
from collections.abc import Sequence

from weightledger.ledger.events import ROLLED_BACK, Event
from weightledger.ledger.history.reader import History
from weightledger.ledger.store import EventFilter


class Branches:
    """The rollbacks since some event, and what they left behind; of state changes alone."""

    def __init__(self, history: History, since: int) -> None:
        where = EventFilter(kinds=[ROLLED_BACK], min_seq=since)
        self._rollbacks: Sequence[Event] = history.events(where, newest_first=False)
        self._seqs = [event.seq for event in self._rollbacks]
        self._head = history.head().node

    def live(self, seq: int) -> bool:
        """Whether the state change at `seq` is part of the live state."""
        return self._holds(seq, self._head)

    def undone_by(self, seq: int) -> Event | None:
        """The rollback that last took the state change at `seq` out; None where it is live."""
        if self.live(seq):
            return None
        for event in reversed(self._rollbacks):
            if event.seq <= seq:
                break
            if event.parent is not None and self._holds(seq, event.parent):
                return event
        return None

    def _holds(self, seq: int, node: int) -> bool:
        """Whether the state at `node` stands on the state change at `seq`."""
        while node > seq:
            before = bisect_left(self._seqs, node) - 1  # the last rollback before the node
            if before < 0 or self._seqs[before] < seq:
                return True
            node = self._rollbacks[before].node
        return node == seq
