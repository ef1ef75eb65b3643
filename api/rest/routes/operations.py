"""Is it alive, is it ready, what does it count; and the digest of what it serves."""

from typing import Any

from fastapi import APIRouter, Request, Response
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
    def readyz(request: Request) -> Response:
        """The database answers, and live weights show the head of the log.

        Strangers are told why not in few words, who is let in everything.
        """
        live = manager.log.live
        remote = manager.log.projector.remote
        if manager.fault is not None:
            fenced = remote is not None and remote.fault is not None
            return _unavailable(request, _FENCED if fenced else _BEHIND, manager.fault)
        try:
            head = manager.log.history.head()
            database = manager.log.history.store.home.version()
        except LedgerError as error:
            return _unavailable(request, _NO_DATABASE, str(error))
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


_FENCED = "the engine does not show the ledger's state"
_BEHIND = "the log cannot be followed"
_NO_DATABASE = "the database does not answer"


def _unavailable(request: Request, reason: str, detail: str) -> Response:
    body = {"status": "unavailable", "reason": reason}
    if getattr(request.state, "trusted", False):
        body["detail"] = detail
    return JSONResponse(body, status_code=503)
