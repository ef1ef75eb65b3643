"""Who follows the log, who served what, and rollouts: which replicas show another state."""

from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response

from weightledger import DynamicModelManager
from weightledger.api.items import replica_item, rollout_item, served_item
from weightledger.api.rest import queries, schemas
from weightledger.api.rest.answers.fleet import ReplicaList, RolloutList, RolloutReply, ServedReply
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import answers, json_body, write_headers
from weightledger.api.rest.paging import page
from weightledger.api.rest.requests import body, caller, require_no_body, require_writes
from weightledger.ledger.events import Event
from weightledger.ledger.fleet.served import fleet, served
from weightledger.ledger.history.positions import parse_time
from weightledger.ledger.history.rollouts import ABORTED, FINISHED, latest, rollout_of

_ROLLOUTS = 20


def router(manager: DynamicModelManager) -> Declared:
    """`/v1/fleet`, `/v1/fleet/served` and `/v1/fleet/rollouts`."""
    routes = Declared(prefix="/v1/fleet", tags=["fleet"])
    writes = [Depends(require_writes)]
    alone = [*writes, Depends(require_no_body)]
    history = manager.log.history

    @routes.get("", responses=answers(ReplicaList))
    def list_replicas() -> dict[str, Any]:
        """Every replica, as it was last heard of."""
        return page([replica_item(one) for one in fleet(history)], "replica", has_more=False)

    @routes.get("/served", responses=answers(ServedReply))
    def show_served(query: Annotated[queries.ServedQuery, Query()]) -> dict[str, Any]:
        """What a replica served at a time."""
        at = parse_time(query.at)
        assert at is not None, "the query was checked"
        return served_item(served(history, query.replica, at))

    @routes.get("/rollouts", responses=answers(RolloutList))
    def list_rollouts() -> dict[str, Any]:
        """The rollout that runs, and the last that ended, newest first."""
        listed = latest(history.store, _ROLLOUTS)
        return page([rollout_item(one) for one in listed], "id", has_more=False)

    @routes.post(
        "/rollouts",
        dependencies=writes,
        responses=answers(RolloutReply, write=True),
        openapi_extra=json_body(schemas.RolloutBody, {"to": "v0", "percent": 10}, write=True),
    )
    async def start_rollout(request: Request, response: Response) -> dict[str, Any]:
        """Have some of the replicas show another state, or the head while others are held."""
        sent = await body(request, schemas.ROLLOUT)
        who = caller(request, manager.log.live.head)
        event = await manager.start_rollout(sent.to, sent.percent, caller=who)
        return _reply(response, event)

    @routes.post(
        "/rollouts/{rollout_id}/advance",
        dependencies=writes,
        responses=answers(RolloutReply, write=True),
        openapi_extra=json_body(schemas.AdvanceBody, {"percent": 50}, write=True),
    )
    async def advance_rollout(
        request: Request, response: Response, rollout_id: str
    ) -> dict[str, Any]:
        """Have more of the replicas show it, or fewer."""
        sent = await body(request, schemas.ADVANCE)
        who = caller(request, manager.log.live.head)
        event = await manager.advance_rollout(sent.percent, rollout_id, caller=who)
        return _reply(response, event)

    @routes.post(
        "/rollouts/{rollout_id}/finish",
        dependencies=alone,
        responses=answers(RolloutReply, write=True),
        openapi_extra=write_headers(),
    )
    async def finish_rollout(
        request: Request, response: Response, rollout_id: str
    ) -> dict[str, Any]:
        """Make the state that is rolled out the head, which every replica shows from then on."""
        who = caller(request, manager.log.live.head)
        return _reply(response, await manager.end_rollout(FINISHED, rollout_id, caller=who))

    @routes.post(
        "/rollouts/{rollout_id}/abort",
        dependencies=alone,
        responses=answers(RolloutReply, write=True),
        openapi_extra=write_headers(),
    )
    async def abort_rollout(
        request: Request, response: Response, rollout_id: str
    ) -> dict[str, Any]:
        """Have every replica show what the others showed."""
        who = caller(request, manager.log.live.head)
        return _reply(response, await manager.end_rollout(ABORTED, rollout_id, caller=who))

    return routes


def _reply(response: Response, event: Event) -> dict[str, Any]:
    response.headers["etag"] = f'"{event.state_seq}"'
    rollout = rollout_of(event)
    return {
        "success": True,
        "message": f"Successfully {rollout.status} {rollout.id}",
        "data": rollout_item(rollout),
    }
