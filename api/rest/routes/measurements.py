"""What was measured: read, and pushed from outside."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Query, Request

from weightledger import DynamicModelManager
from weightledger.api.items import drift_item
from weightledger.api.measurements import page
from weightledger.api.rest import queries, schemas
from weightledger.api.rest.answers.measurements import DriftList, PushReply, RollupList
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import WRITE_ERRORS, answers, json_body
from weightledger.api.rest.paging import page as list_of
from weightledger.api.rest.requests import body, to_writer
from weightledger.ledger.history.positions import parse_time
from weightledger.ledger.monitoring.rollups import Where


def router(manager: DynamicModelManager) -> Declared:
    """`GET` and `POST /v1/models/metrics`, `GET /v1/models/metrics/drift`."""
    routes = Declared(prefix="/v1/models/metrics", tags=["metrics"])

    @routes.get("", responses=answers(RollupList))
    def list_metrics(query: Annotated[queries.MeasurementsQuery, Query()]) -> dict[str, Any]:
        """What was measured, newest first; nothing measured is an empty list and no zero."""
        where = Where(
            metrics=query.metric,
            sources=query.source,
            replicas=query.replica,
            min_seq=query.min_seq,
            max_seq=query.max_seq,
            since_us=_micros(query.since),
            until_us=_micros(query.until),
        )
        told = page(
            manager.collector.rollups(where),
            query.by,
            after=query.after,
            before=query.before,
            limit=query.limit,
        )
        return {**told, "collection": asdict(manager.collector.health)}

    @routes.get("/drift", responses=answers(DriftList))
    def list_drift() -> dict[str, Any]:
        """The streams that are looked at for drift, and whether they drifted."""
        streams = [drift_item(one) for one in manager.drift()]
        return list_of(streams, "metric", has_more=False)

    @routes.post(
        "",
        responses={200: {"model": PushReply}, **WRITE_ERRORS},
        openapi_extra=json_body(
            schemas.MetricsBody,
            {"samples": [{"metric": "accuracy", "value": 0.97}]},
            scope="write",
        ),
    )
    async def push_metrics(request: Request) -> dict[str, Any]:
        """Measurements from outside. They are no write to the model, and need no switch; a replica
        names the writer, or hands them on to it."""
        await to_writer(request)
        sent = await body(request, schemas.METRICS)
        samples = [one.model_dump(exclude_unset=True) for one in sent.samples]
        pushed = await manager.push_metrics(samples)
        message = f"Successfully recorded {pushed.accepted} samples"
        return {"success": True, "message": message, "data": asdict(pushed)}

    return routes


def _micros(text: str | None) -> int | None:
    return None if text is None else parse_time(text)
