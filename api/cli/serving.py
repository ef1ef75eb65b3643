"""`weightledger serve`."""

import logging

from weightledger.api.cli.options import configured
from weightledger.api.server.logs import configure
from weightledger.api.server.settings import Settings
from weightledger.api.server.stopping import stopping

logger = logging.getLogger(__name__)


@configured()
def serve(settings: Settings) -> None:
    """Serve a model whose every weight change is an event.

    With no options: a small classifier of handwritten digits, from SQLite in ./weightledger-data,
    on http://127.0.0.1:2242. Ctrl-C or SIGTERM ends it in order: replies are finished, streams get
    a last event, the ledger is closed, and the exit status is 0.

    Example: weightledger serve --model package.module:factory --port 8080
    """
    configure(settings)
    logger.info("starting")
    with stopping() as stop:
        from weightledger.api.server.serve import serve as run  # imports torch: some seconds

        run(settings, stop)
    logger.info("stopped")
