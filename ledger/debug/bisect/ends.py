"""The two ends of a bisection in the log that it is of."""

from weightledger.ledger.debug.bisect.bisection import Bisection
from weightledger.ledger.debug.bisect.candidates import Candidates, candidates
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.history.positions import resolve
from weightledger.ledger.history.reader import History


def way(history: History, bisection: Bisection) -> Candidates:
    """The steps between both ends; InvalidRequest while one is missing or for another's log."""
    require_own(history, bisection)
    if bisection.good is None or bisection.bad is None:
        raise InvalidRequest("a bisection needs a good and a bad state: bisect start --good --bad")
    good, bad = (
        resolve(history.store, f"seq:{end.seq}") for end in (bisection.good, bisection.bad)
    )
    return candidates(history, good, bad)


def require_own(history: History, bisection: Bisection) -> None:
    """InvalidRequest for a bisection of another log."""
    if (history.model, history.require(0).hash.hex()) != (bisection.model, bisection.origin):
        raise InvalidRequest(
            f"a bisection of another ledger's {bisection.model!r} is going on here; end it with: "
            "weightledger bisect reset"
        )
