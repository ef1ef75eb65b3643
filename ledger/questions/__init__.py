"""All that can be asked of one model's log, a file for each subsystem that answers.

A subsystem adds its questions as a class of its own here, on `About`, and its name to `Questions`.
"""

from weightledger.ledger.questions.debugging import Debugging
from weightledger.ledger.questions.measurements import Measurements
from weightledger.ledger.questions.past import Past


class Questions(Past, Debugging, Measurements):
    """What one model's log answers. `Log` answers it too; this needs no engine and no server."""
