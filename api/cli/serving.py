"""`weightledger serve` and `weightledger follow`."""

import logging
import os

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
        _let_idle_threads_sleep()
        from weightledger.api.server.serve import serve as run  # imports torch: some seconds

        run(settings, stop)
    logger.info("stopped")


_FOLLOWING = (
    *("model", "served_model_name", "data_dir", "database", "host", "port", "api_key", "url"),
    *("engine", "engine_url", "engine_api_key", "engine_timeout_s", "engine_wait_s"),
    *("replica", "wake", "max_stale_s", "max_lag_s", "rolling", "prepares", "proxy_writes"),
    *("max_held_versions", "held_versions_wait_s", "inference_threads", "inference_queue"),
    *("max_body_bytes", "max_loras", "max_lora_rank", "log_level", "log_format"),
    *("oidc_issuer", "oidc_audience"),
)


@configured(*_FOLLOWING)
def follow(settings: Settings) -> None:
    """Serve a model as a replica of the log that others write.

    It answers inference and questions about the log. Writes are refused with the writer's address,
    or handed on to it with --proxy-writes. /readyz says whether it may be sent requests.

    Example: weightledger follow --database postgresql://ledger@db/ledger --port 2243
    """
    configure(settings)
    logger.info("starting")
    with stopping() as stop:
        _let_idle_threads_sleep()
        from weightledger.api.server.follow import follow as run  # imports torch: some seconds

        run(settings, stop)
    logger.info("stopped")


def _let_idle_threads_sleep() -> None:
    """Have torch's threads sleep between two steps, unless the environment says how they wait.

    By default they spin, on processors that the event loop, the writer, the database and whoever
    asks need: on two busy cores scoring a small candidate took thirty times as long. OpenMP reads
    this when it is loaded, so it is said before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
