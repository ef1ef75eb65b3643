"""Learning rules: pure functions that propose updates for the ledger to record.

A rule turns activities and its own state into a proposal; whether the proposal is applied is the
ledger's business. Rules know only the public names of `ledger`.

    rule = rules.make_rule("oja", {"learning_rate": 0.1})
    state = rules.init(rule, weight)
    proposal = rules.propose(rule, weight, {"x": x, "y": y}, state)
    judgement = rules.judge(rules.Guards(), weight, proposal)

A package adds a rule by an entry point in the group `weightledger.rules`, named by the rule's id
("decay = package.module:Decay"), which brings a class that keeps the contract of `rules.protocol`
and has a default for each of its fields. It is loaded when its id is asked for.
"""

from weightledger.rules.checking import init, propose
from weightledger.rules.dtesn import DTESNDynamicIntegration, DTESNLearningConfig, PairedGate
from weightledger.rules.errors import (
    ForeignState,
    RuleError,
    UnknownRequest,
    UnknownRule,
    UnknownStream,
)
from weightledger.rules.guards import Guards, Judgement, judge
from weightledger.rules.library.ewc import fisher_diagonal
from weightledger.rules.library.reinforcement import perturbation
from weightledger.rules.protocol import Activity, Proposal, Rule
from weightledger.rules.registry import (
    RULES,
    Description,
    config_of,
    describe,
    get_rule,
    make_rule,
    rule_ids,
)
from weightledger.rules.selectors import (
    DiscountedUcb,
    Feedback,
    FeedbackThresholds,
    Fixed,
    Selector,
)

__all__ = [
    "RULES",
    "Activity",
    "DTESNDynamicIntegration",
    "DTESNLearningConfig",
    "Description",
    "DiscountedUcb",
    "Feedback",
    "FeedbackThresholds",
    "Fixed",
    "ForeignState",
    "Guards",
    "Judgement",
    "PairedGate",
    "Proposal",
    "Rule",
    "RuleError",
    "Selector",
    "UnknownRequest",
    "UnknownRule",
    "UnknownStream",
    "config_of",
    "describe",
    "fisher_diagonal",
    "get_rule",
    "init",
    "judge",
    "make_rule",
    "perturbation",
    "propose",
    "rule_ids",
]
