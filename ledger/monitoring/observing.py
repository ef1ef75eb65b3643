"""What events of this process mean for what is measured: which state is live, and its scores."""

from weightledger.ledger import events
from weightledger.ledger.monitoring.collector import Collector
from weightledger.ledger.monitoring.metrics import EVALUATED
from weightledger.ledger.monitoring.samples import Sample
from weightledger.ledger.writing.showing import Committed


class Observing:
    """A listener of a log, on the writer's thread."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def after(self, committed: Committed) -> None:
        """Note the live state, and the evaluator's scores of an update that was applied."""
        event = committed.event
        if event.kind not in events.STATE_CHANGING:
            return
        self._collector.shown(event.seq)
        if event.kind != events.UPDATED:
            return
        scores = [
            Sample(name, float(value), event.recorded_at, event.seq, "evaluator")
            for name, value in event.body.get("post_metrics", {}).items()
            if name in EVALUATED
        ]
        if scores:
            self._collector.add(scores)
