"""The loops of `compiled`, which is imported when the first of them is asked for.

numba takes 0.2 s and 56 MB that most commands never need. vLLM's CPU workers also fail at start
where it has been imported before them, as a plugin's import would do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from weightledger.ledger import interrupts

if TYPE_CHECKING:
    from weightledger.ledger.codecs.compiled import all_differences as all_differences
    from weightledger.ledger.codecs.compiled import differences as differences
    from weightledger.ledger.codecs.compiled import differing as differing
    from weightledger.ledger.codecs.compiled import few_lead as few_lead
    from weightledger.ledger.codecs.compiled import few_planes as few_planes
    from weightledger.ledger.codecs.compiled import fold as fold
    from weightledger.ledger.codecs.compiled import from_planes as from_planes
    from weightledger.ledger.codecs.compiled import from_runs as from_runs
    from weightledger.ledger.codecs.compiled import move as move
    from weightledger.ledger.codecs.compiled import move_all as move_all
    from weightledger.ledger.codecs.compiled import move_several as move_several
    from weightledger.ledger.codecs.compiled import outside as outside
    from weightledger.ledger.codecs.compiled import same as same
    from weightledger.ledger.codecs.compiled import square_distance as square_distance
    from weightledger.ledger.codecs.compiled import square_distance_of_all as square_distance_of_all
    from weightledger.ledger.codecs.compiled import to_planes as to_planes
    from weightledger.ledger.codecs.compiled import to_runs as to_runs


def __getattr__(name: str) -> Any:
    with interrupts.held:  # an import that is left half-way cannot be begun again
        compiled = import_module("weightledger.ledger.codecs.compiled")
    loop = getattr(compiled, name)
    globals()[name] = loop  # from now on it is found without asking
    return loop
