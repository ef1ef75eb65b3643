"""All routes of one manager, to mount in a server that exists already.

app.include_router(api.router(manager))
api.install_errors(app)
"""

from fastapi import APIRouter

from api.prometheus import Metrics
from api.routes import audit, catalog, dynamic, inference, operations, text, verification
from api.settings import INFERENCE_QUEUE, INFERENCE_THREADS, JSON_BODY_BYTES
from api.workers import Workers
from ledger import DynamicModelManager


def router(
    manager: DynamicModelManager,
    *,
    max_body_bytes: int = JSON_BODY_BYTES,
    inference_threads: int = INFERENCE_THREADS,
    inference_queue: int = INFERENCE_QUEUE,
) -> APIRouter:
    """The REST API of a manager. Static names below `/v1/models` come before `{model}`."""
    routes = APIRouter(max_body_size=max_body_bytes)
    routes.include_router(operations.router(manager, Metrics(manager)))
    routes.include_router(inference.router(manager))
    routes.include_router(text.router(manager, Workers(inference_threads, inference_queue)))
    routes.include_router(dynamic.router(manager))
    routes.include_router(audit.router(manager))
    routes.include_router(verification.router(manager))
    routes.include_router(catalog.router(manager))
    routes.include_router(catalog.by_name(manager))
    return routes
