"""Writes that wait for a second person: listed, approved, rejected."""

from typing import Annotated, Any

from fastapi import Depends, Query, Request

from weightledger import DynamicModelManager
from weightledger.api.items import approval_item
from weightledger.api.rest import queries
from weightledger.api.rest.answers.writes import Approval, ApprovalList
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import answers, write_headers
from weightledger.api.rest.requests import caller, require_no_body, require_writes


def router(manager: DynamicModelManager) -> Declared:
    """What the two-person rule holds back."""
    routes = Declared(prefix="/v1/models/approvals", tags=["approvals"])
    alone = [Depends(require_writes), Depends(require_no_body)]

    @routes.get("", responses=answers(ApprovalList))
    def list_approvals(query: Annotated[queries.ApprovalsQuery, Query()]) -> dict[str, Any]:
        """Writes that wait for a second person, or did, newest first."""
        listed = manager.log.approvals(limit=query.limit)
        wanted = [one for one in listed if query.state in (None, one.state)]
        return {"object": "list", "data": [approval_item(one) for one in wanted]}

    @routes.post(
        "/{approval_id}/approve",
        dependencies=alone,
        responses=answers(Approval, write=True),
        openapi_extra=write_headers(),
    )
    async def approve_write(request: Request, approval_id: str) -> dict[str, Any]:
        """Approve what somebody else asked for, and carry it out."""
        who = caller(request, manager.log.live.head)
        return approval_item(await manager.approve(approval_id, caller=who))

    @routes.post(
        "/{approval_id}/reject",
        dependencies=alone,
        responses=answers(Approval, write=True),
        openapi_extra=write_headers(),
    )
    async def reject_write(request: Request, approval_id: str) -> dict[str, Any]:
        """Reject what somebody else asked for: it is never carried out."""
        who = caller(request, manager.log.live.head)
        return approval_item(await manager.reject(approval_id, caller=who))

    return routes
