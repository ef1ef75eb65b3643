"""The composition root of the server: settings in, a running process out."""

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from weightledger import DynamicModelManager, Engine
from weightledger.api.rest.tail import Tail
from weightledger.api.rest.uploads import discard_leftovers
from weightledger.api.rest.writer import WriterServer
from weightledger.api.server.app import create_app
from weightledger.api.server.connections import limited, raise_limit, room
from weightledger.api.server.driving import drive
from weightledger.api.server.folder import hold
from weightledger.api.server.greeting import greeting
from weightledger.api.server.headless import hold_weights
from weightledger.api.server.listening import KEEP_ALIVE_S, bound, url_of
from weightledger.api.server.loading import load
from weightledger.api.server.scraping import INTERVAL_S, Scraper, scraping
from weightledger.api.server.settings import Settings
from weightledger.api.server.stopping import Stop
from weightledger.ledger.codecs.warming import warm
from weightledger.ledger.errors import CorruptLedger, InvalidRequest, StorageFull
from weightledger.ledger.history.intact import skipped
from weightledger.ledger.http import is_loopback
from weightledger.ledger.monitoring.drift import detector_of, require_streams
from weightledger.ledger.monitoring.evaluation import Evaluator
from weightledger.ledger.monitoring.evaluators.registry import evaluator_of
from weightledger.ledger.monitoring.policy_files import policy_of
from weightledger.ledger.monitoring.supervision import require_consistent
from weightledger.ledger.monitoring.webhooks import Webhooks
from weightledger.ledger.sql.presence import announce
from weightledger.ledger.store.sql_store import SqlStore

logger = logging.getLogger(__name__)

# Python threads hand over every 5 ms by default, which a waiting inference feels while an update
# computes. Measured by the prototype of this project: p99 1.4 × idle by default, 1.0–1.1 × at this.
_SWITCH_INTERVAL_S = 0.0005

# So many more objects than there were are looked through for garbage. By default it is 700, which
# eight updates on their way are by themselves: each eight of them paid for that, 20 µs an update.
_YOUNG = 10_000

# Whatever this process writes, what libraries write for it included, is its owner's only.
_UMASK = 0o077

# Told to stop, the server lets replies finish for so long; a generation may take minutes. Streams
# end with a last event some time before, so that it still arrives.
_GRACE_S = 5
_STREAMS_S = 3.0


def serve(settings: Settings, stop: Stop | None = None) -> None:
    """Serve until told to stop; raises a LedgerError when it cannot start."""
    require_key(settings)
    require_consistent(policy_of(settings.policy), settings.auto_rollback_threshold)
    if settings.drift_metrics:
        require_streams(settings.drift_metrics)
        detector_of(settings.drift_detector)
    if settings.two_person_rule and not _has_key(settings):
        raise InvalidRequest(
            "the two-person rule tells people apart by their keys: make two or more with"
            " `weightledger keys create`",
            param="two_person_rule",
        )
    prepare()
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(bound(settings.host, settings.port))
        url = url_of(listener)
        opened.enter_context(hold(settings.data_dir, url))
        discard_leftovers(settings.data_dir)
        hooks = _webhooks(settings.webhook_url, settings.webhook_secret)
        if hooks is not None:
            opened.callback(hooks.close)
        logger.info("loading the model %s", settings.model)
        name, engine, evaluator = engine_of(settings)
        config = settings.update_config()
        logger.info("opening the ledger of %s", name)
        manager = DynamicModelManager(
            engine,
            name,
            settings.lora_config(),
            config=config,
            evaluator=evaluator,
            on_mismatch=settings.on_mismatch,
        )
        opened.callback(manager.close)
        if hooks is not None:
            manager.log.subscribe(hooks.after)
        opened.enter_context(figures(settings, manager))
        opened.enter_context(announce(config.url, url))
        if settings.enable_versioning:
            asyncio.run(name_initial(manager))
        logger.info("compiling what updates need")
        warm(spec.element.lane for spec in manager.log.specs.values())
        run(manager, settings, listener, url, stop, hooks)


def require_key(settings: Settings) -> None:
    """InvalidRequest for an address that strangers reach, where there is no key."""
    if not is_loopback(settings.host) and not _has_key(settings):
        raise InvalidRequest(
            f"--host {settings.host} is not loopback: set --api-key (or WEIGHTLEDGER_API_KEY), or "
            "make a key with `weightledger keys create`, to listen there",
            param="host",
        )


def prepare() -> None:
    """What a serving process sets for itself."""
    os.umask(_UMASK)
    raise_limit()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)


async def name_initial(manager: DynamicModelManager) -> None:
    """Name the first state, unless it has its name, by a record that may be damaged since."""
    try:
        await manager.create_initial_version("Initial model state")
    except StorageFull as error:
        logger.error("the first state has no name yet: %s", error)
    except CorruptLedger as error:
        skipped(error, "v0 is named, and its words cannot be read")


def _has_key(settings: Settings) -> bool:
    """Whether anybody could come in: by the key of the settings, or by one of the ledger's."""
    if settings.api_key is not None or settings.oidc_issuer is not None:
        return True
    config = settings.update_config()
    if config.database_url is None and not config.file.exists():
        return False
    with contextlib.closing(SqlStore.open(config.url)) as store:
        now = time.time_ns() // 1000
        return any(key.state(now) == "active" for key in store.keys.all())


def run(
    manager: DynamicModelManager,
    settings: Settings,
    listener: socket.socket,
    url: str,
    stop: Stop | None,
    hooks: Webhooks | None = None,
    writer: WriterServer | None = None,
) -> None:
    """Answer requests until told to stop; `writer` is who writes the log where a replica serves."""
    app = create_app(manager, settings, hooks, writer)
    settle()
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # at that level nothing is said, but each line of it is put together
        timeout_graceful_shutdown=_GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        http=limited(room()),
    )

    def started() -> bool:
        sys.stdout.write(greeting(manager, settings, url, asks=app.state.keyring.asks))
        sys.stdout.flush()
        return stop is None or not stop.asked

    if stop is not None:
        stop.interrupts = False  # the server ends by itself
    _Server(config, started, app).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says when it listens, and ends streams before it ends."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], bool], app: FastAPI) -> None:
        super().__init__(config)
        self._goes_on = started
        self._ending: threading.Event = app.state.ending
        self._tail: Tail = app.state.tail

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if not self._goes_on():
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._tail.close()
        asyncio.get_running_loop().call_later(_STREAMS_S, self._ending.set)
        await super().shutdown(sockets=sockets)


def engine_of(settings: Settings) -> tuple[str, Engine, Evaluator | None]:
    """The model's name in the ledger, what holds its weights, and what scores it, if anything."""
    own: Evaluator | None = None
    if settings.engine == "embedded":
        loaded = load(settings.model, settings.data_dir, settings.served_model_name)
        name, engine, own = loaded.name, loaded.engine, loaded.evaluator
    elif settings.engine == "none":
        name, engine = hold_weights(settings)
    else:
        name, engine = drive(settings)
    asked = evaluator_of(settings.evaluator, engine, settings.evaluator_timeout_s)
    return name, engine, own if asked is None else asked


def _webhooks(url: str | None, secret: str | None) -> Webhooks | None:
    """Who is told of events, if somebody is; InvalidRequest for an address without a secret."""
    return None if url is None else Webhooks(url, secret or "")


def figures(
    settings: Settings, manager: DynamicModelManager
) -> contextlib.AbstractContextManager[None]:
    """While it is open, a driven server's own figures are kept with the ledger's."""
    if settings.engine in ("embedded", "none") or settings.engine_url is None:
        return contextlib.nullcontext()
    key, timeout_s = settings.engine_api_key, min(settings.engine_timeout_s, INTERVAL_S)
    return scraping(Scraper(manager, settings.engine_url, api_key=key, timeout_s=timeout_s))


def settle() -> None:
    """Keep garbage collection from looking at what was imported, loaded and made by now, again and
    again, and at requests that are under way.

    Every thread stops meanwhile. MiniLM at 100 updates a second: p99 of inference 280 ms without
    this, 44 ms with it (`benchmarks/inference.py`). The application alone takes 18 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
