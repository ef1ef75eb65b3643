"""How far live weights have gone on a straight way, in the bytes that reading it takes."""

from collections.abc import Iterable

from weightledger.ledger.events import STATE_CHANGING, Event
from weightledger.ledger.history.lineage import EVENT_COST


class Way:
    """Each event of it was applied to the state after the one before; used under the writer's lock.

    Who measures from somewhere compares sizes. Once a `node` is not the live one, live weights came
    there by another way, and `begin` starts anew.
    """

    def __init__(self) -> None:
        self.node = -1
        self.size = 0
        self.step = 0
        """Of it what the last events were, which came together."""
        self.anchor = -1
        """The last node at which a snapshot was written, as far as is known here."""

    def hear_of_anchor(self, node: int) -> None:
        """A writer of this machine says that there is a snapshot at a node."""
        self.anchor = max(self.anchor, node)

    def begin(self, node: int) -> None:
        """From here on, after something else than a straight way."""
        self.node, self.step = node, 0

    def passed(self, events: Iterable[Event]) -> None:
        """The events that live weights were brought over, in order."""
        node, step = self.node, 0
        for event in events:
            if event.kind not in STATE_CHANGING:
                continue
            if event.parent != node or event.node != event.seq:
                return
            node = event.node
            step += event.payload_size + EVENT_COST
        self.node, self.step = node, step
        self.size += step
