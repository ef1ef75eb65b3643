"""Is it alive, is it ready, what does it count; and the digest of what it serves."""

from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from weightledger import DynamicModelManager
from weightledger.api.rest.answers.operations import Alive, Healthy, NotReady, Ready
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import ERROR, TEXT_READ_ERRORS
from weightledger.api.rest.prometheus import Metrics
from weightledger.ledger.audit.notary import Notary
from weightledger.ledger.engines import RemoteEngine
from weightledger.ledger.errors import LedgerError
from weightledger.ledger.fleet.follower import Follower
from weightledger.ledger.history.positions import iso_time

_PROBE: dict[int | str, dict[str, Any]] = {
    200: {"model": Ready},
    503: {"model": NotReady, "description": "Not now"},
    "default": ERROR,
}


_HEALTH: dict[int | str, dict[str, Any]] = {**_PROBE, 200: {"model": Healthy}}


def router(manager: DynamicModelManager, metrics: Metrics, notary: Notary) -> Declared:
    """`/livez`, `/readyz`, `/health`, `/metrics`."""
    routes = Declared(tags=["operations"])

    @routes.get("/livez", responses={200: {"model": Alive}, "default": ERROR})
    async def livez() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @routes.get("/readyz", responses=_PROBE)
    def readyz(request: Request) -> Response:
        """The database answers, and what is served is the head of the log.

        Strangers are told why not in few words, whoever is let in everything.
        """
        return probe(request)

    @routes.get("/health", responses=_HEALTH)
    def health(request: Request) -> Response:
        """What `/readyz` says, and whether writes go through, by the last ones' replies."""
        outage = metrics.writes.outage
        if outage is None:
            return probe(request, writes={"status": "ok"})
        failing = {"status": "failing", "code": outage.code, "refused": outage.refused}
        since = iso_time(int(outage.since * 1_000_000))
        return probe(request, status="degraded", writes={**failing, "since": since})

    def probe(request: Request, status: str = "ok", **more: Any) -> Response:
        if manager.follower is not None:
            return _replica(request, manager.follower, manager.model_name, status, more)
        live = manager.log.live
        remote = manager.log.projector.remote
        if manager.fault is not None:
            fenced = remote is not None and remote.fault is not None
            return _unavailable(request, _FENCED if fenced else _BEHIND, manager.fault)
        try:
            head_seq, database = metrics.database()
        except LedgerError as error:
            return _unavailable(request, _NO_DATABASE, str(error))
        if notary.standing.contradictions:
            return _unavailable(request, _CONTRADICTED, "; ".join(notary.standing.contradictions))
        body: dict[str, Any] = {
            "status": status,
            "state": "ready",
            "model": manager.model_name,
            "seq": live.head.state_seq,
            "digest": live.state.value.hex(),
            "target_seq": head_seq,
            "lag_events": head_seq - live.head.seq,
            "lag_s": None if head_seq > live.head.seq else 0.0,
            "stale": False,
            "reason": None,
            "database": database,
            **_evidence(request, notary),
            **more,
        }
        if remote is not None:
            body["engine"] = dict(remote.report())
        return JSONResponse(body)

    @routes.get("/metrics", response_class=PlainTextResponse, responses=TEXT_READ_ERRORS)
    def get_metrics() -> Response:
        """Prometheus exposition."""
        return Response(metrics.exposition(), media_type=metrics.content_type)

    return routes


def _replica(
    request: Request, follower: Follower, model: str, status: str, more: dict[str, Any]
) -> Response:
    """What a replica says of itself, by what it knows: nobody is asked."""
    said = follower.readiness()
    remote = follower.log.engine
    facts = {
        "state": said.state,
        "replica": follower.replica,
        "seq": said.seq,
        "digest": said.digest,
        "target_seq": said.target_seq,
        "lag_events": said.lag_events,
        "lag_s": said.lag_s,
        "stale": said.stale,
    }
    if not said.ready:
        return _unavailable(request, _REPLICA[said.state], said.reason or "", **facts)
    trusted = getattr(request.state, "trusted", False)
    few = None if said.reason is None else _NO_DATABASE if said.stale else _HELD_UP
    body = {
        "status": status,
        "model": model,
        **facts,
        "reason": said.reason if trusted else few,
        **more,
    }
    if isinstance(remote, RemoteEngine):
        body["engine"] = dict(remote.report())
    return JSONResponse(body)


_HELD_UP = "readers hold earlier versions"
_REPLICA = {
    "starting": "what is served is not proven yet",
    "behind": "this replica is behind the log",
    "stale": "the log cannot be followed",
    "fenced": "this replica does not vouch for what it shows",
    "stopped": "this replica is stopping",
}
_FENCED = "the engine does not show the ledger's state"
_BEHIND = "the log cannot be followed"
_NO_DATABASE = "the database does not answer"
_CONTRADICTED = "the log is not the one that was signed"


def _evidence(request: Request, notary: Notary) -> dict[str, Any]:
    """How far the log is vouched for; nothing where nobody does."""
    standing = notary.standing
    if not notary.started:
        return {}
    evidence: dict[str, Any] = {"signed": standing.signed}
    if notary.quorum:
        evidence |= {"witnessed": standing.witnessed, "quorum": notary.quorum}
    if standing.problems and getattr(request.state, "trusted", False):
        evidence["problems"] = list(standing.problems)
    return {"evidence": evidence}


def _unavailable(request: Request, reason: str, detail: str, **facts: Any) -> Response:
    body = {"status": "unavailable", "reason": reason, **facts}
    if getattr(request.state, "trusted", False):
        body["detail"] = detail
    return JSONResponse(body, status_code=503)
