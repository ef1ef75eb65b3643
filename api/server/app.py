"""The server application around one manager."""

import asyncio
import contextlib
import importlib.metadata
import logging
import threading
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from weightledger import DynamicModelManager
from weightledger.api.dashboard import routes as dashboard
from weightledger.api.dashboard.sessions import Sessions
from weightledger.api.rest import documentation, errors, pages
from weightledger.api.rest.authentication import Door
from weightledger.api.rest.direct import Direct
from weightledger.api.rest.heads import HeadAsGet
from weightledger.api.rest.keyring import Keyring
from weightledger.api.rest.limits import TooLargeInOurForm
from weightledger.api.rest.observing import ObservedRequests
from weightledger.api.rest.oidc import Issuer
from weightledger.api.rest.prometheus import Metrics
from weightledger.api.rest.reaching import Replicated
from weightledger.api.rest.router import router
from weightledger.api.rest.routes import keys
from weightledger.api.rest.tail import Tail
from weightledger.api.rest.writer import WriterServer
from weightledger.api.server.fencing import Fence
from weightledger.api.server.mounting import Mounted
from weightledger.api.server.settings import Settings
from weightledger.ledger import http
from weightledger.ledger.audit.notary import Notary
from weightledger.ledger.audit.signing import Signer
from weightledger.ledger.audit.witnesses import Witness
from weightledger.ledger.errors import InvalidRequest, LedgerError
from weightledger.ledger.monitoring.webhooks import Webhooks

if TYPE_CHECKING:
    from weightledger.api.server.tracing import Tracing

logger = logging.getLogger(__name__)

# How often the log is asked for events of other processes. Writes of this one show at once.
_POLL_S = 0.5

# Spans are ours (`tracing`). For its own the framework looks into the environment, three times a
# request.
_NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}


def create_app(
    manager: DynamicModelManager,
    settings: Settings,
    hooks: Webhooks | None = None,
    writer: WriterServer | None = None,
) -> FastAPI:
    """The REST API, its errors, its door, and the tasks that follow other writers and keys.

    `hooks` are told when the server stops showing the head of the log, and when it does again.
    `writer` is who writes the log, where this one is a replica.
    """
    keyring = Keyring(manager.ledger.keys, settings.api_key, issuer=_issuer(settings))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(_follow(manager, hooks)),
            asyncio.create_task(keyring.follow()),
        ]
        if settings.sign_every_s > 0:
            notary.start()
        yield
        await asyncio.to_thread(notary.stop)
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.to_thread(keyring.write_uses)
        if spans is not None:
            await asyncio.to_thread(spans.close)

    notary = Notary(
        manager.log.history.store,
        Signer.open(settings.data_dir, settings.signing_key),
        [Witness.parse(text) for text in settings.witness],
        settings.witness_quorum,
        settings.sign_every_s,
    )
    manager.log.subscribe(lambda committed: notary.wake(), lambda event: notary.wake())
    spans = _tracing(settings)
    if spans is not None:
        manager.log.subscribe(spans.committed)
    ending, metrics = threading.Event(), Metrics(manager)
    tail = Tail(manager.log, ending)
    rest = router(
        manager,
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.max_upload_bytes,
        inference_threads=settings.inference_threads,
        inference_queue=settings.inference_queue,
        ending=ending,
        metrics=metrics,
        notary=notary,
        tail=tail,
    )
    app = documentation.Documented(
        lambda: keyring.asks,
        title="Weight Ledger",
        version=importlib.metadata.version("weightledger"),
        summary="An event-sourced ledger of live model weights.",
        description=documentation.DESCRIPTION,
        lifespan=lifespan,
        telemetry=_NO_TELEMETRY,
        routes=rest.routes,  # as they are: including a router makes all of its routes again
    )
    app.state.writer = writer
    app.state.writes_enabled = settings.writes_enabled and writer is None
    app.state.keyring = keyring
    app.state.ending = ending
    app.state.tail = tail
    keys.router(manager, keyring, settings.max_body_bytes).add_to(app.router)
    pages.router().add_to(app.router)
    sessions = Sessions()
    dashboard.router(manager, keyring, sessions, notary, ending).add_to(app.router)
    direct = Direct(app, "incremental_update")
    errors.install(app)
    app.add_middleware(Replicated, manager=manager)
    app.add_middleware(TooLargeInOurForm)
    app.add_middleware(HeadAsGet)
    app.add_middleware(direct.before)
    app.add_middleware(Door, keyring=keyring, sessions=sessions)
    app.add_middleware(ObservedRequests, seen=metrics.seen)
    app.add_middleware(Mounted, root=settings.root_path)
    if spans is not None:
        from weightledger.api.server.tracing import Traced  # of the extra otel

        app.add_middleware(Traced, tracing=spans)
    return app


def _tracing(settings: Settings) -> "Tracing | None":
    """What makes spans, where an endpoint for them is configured."""
    endpoint = settings.otlp_endpoint
    if endpoint is None:
        return None
    http.client(endpoint, param="otlp_endpoint").close()  # refuses what is no URL
    try:
        from weightledger.api.server.tracing import Tracing
    except ImportError as error:
        # The variable may be there for other programs.
        logger.warning("no spans are sent (%s): pip install 'weightledger[otel]'", error)
        return None
    return Tracing(endpoint)


def _issuer(settings: Settings) -> Issuer | None:
    """The issuer whose tokens are taken, if one is configured."""
    if settings.oidc_issuer is None:
        return None
    if settings.oidc_audience is None:
        raise InvalidRequest(
            "an issuer's tokens are for many: say with --oidc-audience which are for this server",
            param="oidc_audience",
        )
    return Issuer(settings.oidc_issuer, settings.oidc_audience)


async def _follow(manager: DynamicModelManager, hooks: Webhooks | None) -> None:
    problem: str | None = None
    since = 0.0
    fence = Fence(manager.model_name, hooks)
    while True:
        fence.look(manager.fault)
        await asyncio.sleep(_POLL_S)
        try:
            if manager.follower is not None:
                continue  # it follows by itself
            await manager.catch_up()
            await asyncio.to_thread(manager.log.history.store.index)
        except LedgerError as error:
            if problem is None:
                since = time.monotonic()
            if problem != str(error):  # an outage is one line, not two a second
                problem = str(error)
                logger.error("cannot follow the log: %s", error)
        except Exception:
            logger.exception("cannot follow the log")
        else:
            if problem is not None:
                problem = None
                lasted_s = time.monotonic() - since
                logger.warning("the log can be followed again after %.1f s", lasted_s)
