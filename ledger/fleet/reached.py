"""Whether enough replicas show a state."""

from dataclasses import dataclass
from typing import Self

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.history.reader import History


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many replicas: a number, "quorum" (more than half of those that are there) or "all"."""

    number: int | None = None
    everyone: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """From its words; InvalidRequest for others."""
        if text == "quorum":
            return cls()
        if text == "all":
            return cls(everyone=True)
        if text.isdecimal() and text.isascii() and int(text) > 0:
            return cls(int(text))
        raise InvalidRequest(f"wait must be committed, quorum, all or a number, got {text!r}")

    def of(self, there: int) -> int:
        """How many of those that are there; one at least, for nobody is not everybody."""
        if self.number is not None:
            return self.number
        return max(1, there if self.everyone else there // 2 + 1)


def reached(history: History, seq: int, wanted: Wanted) -> tuple[int, bool]:
    """How many replicas within their lease show the state at a seq or a later one, and whether
    they are enough."""
    there = [one for one in history.store.replicas.all() if one.leased]
    showing = sum((one.standing.seq or 0) >= seq and one.standing.state == "ready" for one in there)
    return showing, showing >= wanted.of(len(there))
