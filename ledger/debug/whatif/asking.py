"""What every face asks: what a state would be without some events."""

from collections.abc import Sequence

from weightledger.ledger.debug.whatif.causal import causal
from weightledger.ledger.debug.whatif.mechanical import mechanical
from weightledger.ledger.debug.whatif.selection import select
from weightledger.ledger.debug.whatif.state import MODES, Mode, WhatIf
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.history.reader import History


def what_if(
    history: History,
    without: Sequence[str],
    *,
    to: str = "head",
    mode: Mode = "mechanical",
    only_after: str | None = None,
) -> WhatIf:
    """The state at a position without some events.

    Raises NotDefined (mechanical) and CannotDerive (causal), which name the events that are in the
    way, InvalidRequest or NotFound for events that are no part of the state.
    """
    if mode not in MODES:
        raise InvalidRequest(f"mode must be {' or '.join(MODES)}, got {mode!r}", param="mode")
    at = history.resolve(to)
    selected = select(history, at, without, only_after)
    return (mechanical if mode == "mechanical" else causal)(history, at, selected)
