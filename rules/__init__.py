"""Learning rules: pure functions that propose updates for the ledger to record.

A rule turns activities and its own state into a proposal; whether the proposal is applied is the
ledger's business. Rules know only the public names of `ledger`.
"""

from rules.protocol import Proposal, Rule

__all__ = ["Proposal", "Rule"]
