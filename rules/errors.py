"""What rules raise on purpose.

    LedgerError
    └── RuleError           the rule cannot be run on what was given; nothing was changed
        ├── UnknownRule         no rule has this id, or no field of its config this name
        └── ForeignState        the state belongs to another shape, rule or version of the rule

Messages name what was expected, so that the caller can act on them.
"""

from ledger import LedgerError


class RuleError(LedgerError, ValueError):
    """The rule cannot be run on what was given.

    `param` names the offending activity or field, where there is one.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnknownRule(RuleError, LookupError):
    """No rule has this id, or no field of its config this name."""


class ForeignState(RuleError):
    """The state was made for another shape, rule or version of the rule."""
