"""Is it alive, is it ready, what does it count; and the digest of what it serves."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from weightledger import DynamicModelManager
from weightledger.api.rest.prometheus import Metrics
from weightledger.ledger.errors import LedgerError


def router(manager: DynamicModelManager, metrics: Metrics) -> APIRouter:
    """`/livez`, `/readyz`, `/health`, `/metrics`."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/livez")
    async def livez() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @routes.get("/readyz")
    @routes.get("/health")
    def readyz() -> Response:
        """The database answers, and live weights show the head of the log."""
        if manager.fault is not None:
            return JSONResponse({"status": "unavailable", "reason": manager.fault}, 503)
        live = manager.log.live
        remote = manager.log.projector.remote
        try:
            head = manager.log.history.head()
            database = manager.log.history.store.home.version()
        except LedgerError as error:
            return JSONResponse({"status": "unavailable", "reason": str(error)}, status_code=503)
        body: dict[str, Any] = {
            "status": "ok",
            "model": manager.model_name,
            "seq": live.head.state_seq,
            "digest": live.state.value.hex(),
            "lag_events": head.seq - live.head.seq,
            "database": database,
        }
        if remote is not None:
            body["engine"] = dict(remote.report())
        return JSONResponse(body)

    @routes.get("/metrics")
    def prometheus() -> Response:
        """Prometheus exposition."""
        return Response(metrics.exposition(), media_type=metrics.content_type)

    return routes
