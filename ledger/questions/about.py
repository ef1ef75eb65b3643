"""What every part of the questions has at hand."""

from weightledger.ledger.history.reader import History


class About:
    """Questions about one model's log. They write nothing, and need neither engine nor server."""

    def __init__(self, history: History) -> None:
        self.history = history
