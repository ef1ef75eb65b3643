"""What was measured of the model's states."""

from typing import Any

from weightledger.ledger.monitoring.reading import By, put_together
from weightledger.ledger.monitoring.rollups import Rollup, Where
from weightledger.ledger.monitoring.stored import StoredMetrics
from weightledger.ledger.questions.about import About


class Measurements(About):
    """Questions about metrics."""

    def metrics(self, by: By = "seq", **where: Any) -> list[Rollup]:
        """What was measured and is written, newest first; see `monitoring.reading` for `by`.

        Conditions are the fields of `ledger.monitoring.rollups.Where`.
        """
        stored = StoredMetrics(self.history.store.metrics)
        return put_together(stored.rollups(Where(**where)), by)
