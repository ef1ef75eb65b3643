"""What rules raise on purpose.

    LedgerError
    ├── InvalidRequest
    │   └── RuleError           the rule cannot be run on what was given; nothing was changed
    │       └── ForeignState        the state belongs to another shape, rule or version of the rule
    └── NotFound
        ├── UnknownRule         no rule has this id
        ├── UnknownStream       no such stream is open, or it expired
        └── UnknownRequest      nothing waits for this request's reward, or it expired

Messages name what was expected, so that the caller can act on them.
"""

from weightledger import InvalidRequest, NotFound


class RuleError(InvalidRequest):
    """The rule cannot be run on what was given.

    `param` names the offending activity or field, where there is one.
    """


class ForeignState(RuleError):
    """The state was made for another shape, rule or version of the rule."""


class UnknownRule(NotFound):
    """No rule has this id."""


class UnknownStream(NotFound):
    """No such stream is open, or it expired."""


class UnknownRequest(NotFound):
    """Nothing waits for the reward of this request, or it expired."""
