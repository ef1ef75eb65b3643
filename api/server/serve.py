"""The composition root of the server: settings in, a running process out."""

import asyncio
import gc
import logging
import os
import sys

import uvicorn

from weightledger import DynamicModelManager, Engine
from weightledger.api.rest.origins import is_loopback
from weightledger.api.rest.uploads import discard_leftovers
from weightledger.api.server.app import create_app
from weightledger.api.server.driving import drive
from weightledger.api.server.folder import hold
from weightledger.api.server.loading import load
from weightledger.api.server.settings import Settings
from weightledger.ledger.codecs.warming import warm
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.monitoring.evaluation import Evaluator

logger = logging.getLogger(__name__)

# Python threads hand over every 5 ms by default, which a waiting inference feels while an update
# computes. Measured by the prototype of this project: p99 1.4 × idle by default, 1.0–1.1 × at this.
_SWITCH_INTERVAL_S = 0.0005

# Whatever this process writes, what libraries write for it included, is its owner's only.
_UMASK = 0o077

# Told to stop, the server lets replies finish for so long; a generation may take minutes.
_GRACE_S = 5


def serve(settings: Settings) -> None:
    """Serve until told to stop; raises a LedgerError when it cannot start."""
    if settings.api_key is None and not is_loopback(settings.host):
        raise InvalidRequest(
            f"--host {settings.host} is not loopback: set --api-key (or WEIGHTLEDGER_API_KEY) "
            "to listen there",
            param="host",
        )
    os.umask(_UMASK)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    url = f"http://{_bracketed(settings.host)}:{settings.port}"
    with hold(settings.data_dir, url):
        discard_leftovers(settings.data_dir)
        name, engine, evaluator = _engine(settings)
        manager = DynamicModelManager(
            engine,
            name,
            settings.lora_config(),
            config=settings.update_config(),
            evaluator=evaluator,
            on_mismatch=settings.on_mismatch,
        )
        try:
            if settings.enable_versioning:
                asyncio.run(manager.create_initial_version("Initial model state"))
            warm(spec.element.lane for spec in manager.log.specs.values())
            logger.info("serving %s at seq %d on %s", name, manager.log.live.head.state_seq, url)
            _settle()
            config = uvicorn.Config(
                create_app(manager, settings),
                host=settings.host,
                port=settings.port,
                log_level="warning",
                timeout_graceful_shutdown=_GRACE_S,
            )
            uvicorn.Server(config).run()
        finally:
            manager.close()


def _engine(settings: Settings) -> tuple[str, Engine, Evaluator | None]:
    """The model's name in the ledger, what holds its weights, and what scores it, if anything."""
    if settings.engine == "embedded":
        loaded = load(settings.model, settings.data_dir, settings.served_model_name)
        return loaded.name, loaded.engine, loaded.evaluator
    return *drive(settings), None


def _settle() -> None:
    """Keep garbage collection from looking at what was imported and loaded, again and again.

    Every thread stops meanwhile. MiniLM at 100 updates a second: p99 of inference 280 ms without
    this, 44 ms with it (`benchmarks/inference.py`).
    """
    gc.collect()
    gc.freeze()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
