"""What was measured of the model's states."""

from typing import Any, get_args

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.monitoring.reading import By, put_together
from weightledger.ledger.monitoring.rollups import Rollup, Where
from weightledger.ledger.monitoring.stored import StoredMetrics
from weightledger.ledger.questions.about import About
from weightledger.ledger.store import require_texts


class Measurements(About):
    """Questions about metrics."""

    def metrics(self, by: By = "seq", **where: Any) -> list[Rollup]:
        """What was measured and is written, newest first; see `monitoring.reading` for `by`.

        Conditions are the fields of `ledger.monitoring.rollups.Where`.
        """
        if by not in get_args(By):
            raise InvalidRequest(f"by must be one of {get_args(By)}, got {by!r:.200}", param="by")
        for name in ("metrics", "sources", "replicas"):
            if name in where:
                require_texts(name, where[name])
        stored = StoredMetrics(self.history.store.metrics)
        return put_together(stored.rollups(Where(**where)), by)
