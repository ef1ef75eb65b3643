"""How far a log was verified, remembered beside the data so that the next run can go on from there.

A mark says: the events before `events` were verified, and the root of the tree over them was
`root`. Whoever goes on from it finds out first whether they are still the same.
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from weightledger.ledger.audit import durable
from weightledger.ledger.audit.signing import origin
from weightledger.ledger.audit.tree import EventTree
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.store import EventStore

FOLDER = "verified"


@dataclass(frozen=True, slots=True)
class VerifiedMark:
    """The first `events` events were verified at `verified_at` (Unix seconds); `states` says
    whether every state was rebuilt."""

    events: int
    root: str
    states: bool
    verified_at: float

    def require_same(self, store: EventStore) -> None:
        """Raise CorruptLedger unless the log still begins with the events that were verified."""
        size = store.head().seq + 1
        if size < self.events:
            raise CorruptLedger(
                f"the log has {size} events, and {self.events} were verified before: it was cut off"
            )
        root = EventTree(store).root(self.events).hex()
        if root != self.root:
            raise CorruptLedger(
                f"the first {self.events} events are not those that were verified before: their"
                f" root was {self.root} and is {root}"
            )


def read(folder: Path, store: EventStore) -> VerifiedMark | None:
    """The mark of a log in a data folder; None where there is none that can be read."""
    try:
        fields = json.loads(_file(folder, store).read_text("utf-8"))
        return VerifiedMark(
            fields["events"], fields["root"], fields["states"], fields["verified_at"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # then everything is verified again


def write(folder: Path, store: EventStore, mark: VerifiedMark) -> None:
    """Remember a mark, durably."""
    fields = {name: getattr(mark, name) for name in VerifiedMark.__slots__}
    durable.replace(_file(folder, store), json.dumps(fields) + "\n")


def _file(folder: Path, store: EventStore) -> Path:
    return folder / FOLDER / f"{sha256(origin(store).encode()).hexdigest()[:32]}.json"
