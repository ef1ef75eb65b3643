"""Trials: which run, how they ended, and ending one by hand."""

from typing import Any

from fastapi import Depends, Request, Response

from weightledger import DynamicModelManager
from weightledger.api.items import evidence_item, trial_item
from weightledger.api.rest.answers.measurements import TrialEvidence, TrialList, TrialReply
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import answers, write_headers
from weightledger.api.rest.paging import page
from weightledger.api.rest.requests import caller, require_no_body, require_writes
from weightledger.ledger.events import Event

_SHOWN = 20


def router(manager: DynamicModelManager) -> Declared:
    """`GET /v1/models/trials` and `/{id}/evidence`, `POST /{id}/promote` and `/abort`."""
    routes = Declared(prefix="/v1/models/trials", tags=["trials"])
    alone = [Depends(require_writes), Depends(require_no_body)]

    @routes.get("", responses=answers(TrialList))
    def list_trials() -> dict[str, Any]:
        """The trial that runs, and the last that ended, newest first."""
        return page([trial_item(one) for one in manager.trials(_SHOWN)], "id", has_more=False)

    @routes.get("/{trial_id}/evidence", responses=answers(TrialEvidence))
    def show_evidence(trial_id: str) -> dict[str, Any]:
        """How much worse the new state is, with bounds that hold at every moment."""
        return evidence_item(trial_id, manager.trial_evidence(trial_id))

    @routes.post(
        "/{trial_id}/promote",
        dependencies=alone,
        responses=answers(TrialReply, write=True),
        openapi_extra=write_headers(),
    )
    async def promote_trial(request: Request, response: Response, trial_id: str) -> dict[str, Any]:
        """Let every request meet the state that is on trial."""
        who = caller(request, manager.log.live.head)
        event = await manager.promote_trial(trial_id, caller=who)
        return _reply(response, trial_id, event, "promoted")

    @routes.post(
        "/{trial_id}/abort",
        dependencies=alone,
        responses=answers(TrialReply, write=True),
        openapi_extra=write_headers(),
    )
    async def abort_trial(request: Request, response: Response, trial_id: str) -> dict[str, Any]:
        """Roll the state that is on trial back."""
        who = caller(request, manager.log.live.head)
        event = await manager.abort_trial(trial_id, caller=who)
        return _reply(response, trial_id, event, "aborted")

    return routes


def _reply(response: Response, trial_id: str, event: Event, status: str) -> dict[str, Any]:
    response.headers["etag"] = f'"{event.state_seq}"'
    return {
        "success": True,
        "message": f"Successfully {status} trial {trial_id}",
        "data": {"trial_id": trial_id, "event_id": event.name, "status": status},
    }
