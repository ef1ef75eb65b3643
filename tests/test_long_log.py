"""What is measured on a log that was written without the product is such a log as it writes."""

from pathlib import Path

from benchmarks import long_log
from weightledger import Ledger
from weightledger.ledger.audit.verify import verify

EVENTS = long_log.CHECKED + 200  # the last ones follow on those that are compared with sealed ones


def test_the_log_that_audits_are_measured_on_verifies(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    long_log.load(url, EVENTS)
    with Ledger.open(url) as ledger:
        report = verify(ledger.history(long_log.MODEL), states=False)
    assert report.ok, report
    assert report.events == EVENTS
