"""Learning rules on a live model: what a rule proposes becomes an event of the model's ledger.

    integration = DTESNDynamicIntegration(dynamic_manager=manager)
    await integration.enhanced_incremental_update("fc.weight", delta)
    await integration.learn("fc.weight", {"x": x, "y": y, "target": d}, rule="rls")

A call is one event: the weight's change and the rule's next state, or a refusal that changes
neither. `calls` checks what was sent, `learner` is the pure part, `plan` runs it on the newest
state of the model, and `event` is all that knows how an event is written.
"""

from weightledger.rules.dtesn.config import DTESNLearningConfig
from weightledger.rules.dtesn.gate import PairedGate
from weightledger.rules.dtesn.integration import DTESNDynamicIntegration
from weightledger.rules.dtesn.recomputing import Recomputed, recompute
from weightledger.rules.dtesn.streams import Stream

__all__ = [
    "DTESNDynamicIntegration",
    "DTESNLearningConfig",
    "PairedGate",
    "Recomputed",
    "Stream",
    "recompute",
]
