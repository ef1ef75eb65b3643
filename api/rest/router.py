"""All routes of one manager, to mount in a server that exists already.

app.include_router(weightledger.api.router(manager))
weightledger.api.install_errors(app)
"""

import asyncio
import threading
from pathlib import Path

from fastapi import APIRouter, Depends

from weightledger import DynamicModelManager
from weightledger.api.rest.prometheus import Metrics
from weightledger.api.rest.reaching import at_least
from weightledger.api.rest.routes import (
    adapters,
    approvals,
    audit,
    batch,
    catalog,
    comparing,
    debugging,
    dynamic,
    enhanced,
    fleet,
    holds,
    inference,
    measurements,
    operations,
    proofs,
    redaction,
    reproducing,
    searching,
    signing,
    trials,
    verification,
    versions,
    watching,
)
from weightledger.api.rest.scopes import admitted
from weightledger.api.rest.tail import Tail
from weightledger.api.rest.text import routes as text
from weightledger.api.rest.workers import Workers
from weightledger.api.server.settings import (
    INFERENCE_QUEUE,
    INFERENCE_THREADS,
    JSON_BODY_BYTES,
    UPLOAD_BYTES,
)
from weightledger.ledger.audit.notary import Notary
from weightledger.ledger.audit.signing import Signer
from weightledger.rules import DTESNDynamicIntegration


def router(
    manager: DynamicModelManager,
    *,
    max_body_bytes: int = JSON_BODY_BYTES,
    max_upload_bytes: int = UPLOAD_BYTES,
    inference_threads: int = INFERENCE_THREADS,
    inference_queue: int = INFERENCE_QUEUE,
    integration: DTESNDynamicIntegration | None = None,
    ending: threading.Event | None = None,
    metrics: Metrics | None = None,
    notary: Notary | None = None,
    tail: Tail | None = None,
) -> APIRouter:
    """The REST API of a manager. Static names below `/v1/models` come before `{model}`.

    JSON bodies are limited to `max_body_bytes`, those that are streamed to a file to
    `max_upload_bytes`. `integration` is what learns, one with the default configuration unless
    given. Whoever stops the server sets `ending`: then generations end with a last event, and so
    do streams of events. `metrics` is what `/metrics` shows, `tail` what the stream of events
    reads; each its own unless given. `notary` signs checkpoints, with the key of the manager's data
    folder unless given.
    """
    routes = APIRouter(max_body_size=max_body_bytes, dependencies=[Depends(admitted)])
    batch.router(manager, max_upload_bytes).add_to(routes)
    workers = Workers(inference_threads, inference_queue, ending)
    metrics = metrics or Metrics(manager)
    metrics.inference = workers
    learning = integration or DTESNDynamicIntegration(manager)
    notary = notary or Notary(manager.log.history.store, Signer(Path(manager.config.backup_dir)))
    metrics.notary = notary
    tail = tail or Tail(manager.log, ending)
    # Routes are tried in this order: what is asked for most comes first.
    dynamic.router(manager).add_to(routes)
    seen = [Depends(at_least(manager))]
    inference.router(manager).add_to(routes, seen)
    text.router(manager, workers).add_to(routes, seen)
    copies = asyncio.Lock()
    for declared in (
        operations.router(manager, metrics, notary),
        adapters.router(manager),
        enhanced.router(learning),
        measurements.router(manager),
        audit.router(manager),
        audit.activity_router(manager),
        proofs.router(manager, notary),
        signing.router(manager, notary),
        approvals.router(manager),
        versions.router(manager),
        holds.router(manager),
        redaction.router(manager),
        comparing.router(manager),
        debugging.router(manager),
        searching.router(manager, copies),
        reproducing.router(manager, copies),
        watching.router(tail),
        verification.router(manager),
        trials.router(manager),
        fleet.router(manager),
        catalog.router(manager),
        catalog.by_name(manager),
    ):
        declared.add_to(routes)
    return routes
