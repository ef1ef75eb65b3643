"""Does what is served equal what the ledger says?"""

from typing import Any

from fastapi import Depends

from weightledger import DynamicModelManager
from weightledger.api.rest.answers.events import Verification
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import answers
from weightledger.api.rest.requests import require_no_body
from weightledger.api.rest.scopes import needs
from weightledger.ledger.errors import WeightsMismatch


def router(manager: DynamicModelManager) -> Declared:
    """`POST /v1/models/verify`: hash the tensors that are served right now."""
    routes = Declared(prefix="/v1/models", tags=["audit"])

    @routes.post(
        "/verify",
        dependencies=[Depends(require_no_body)],
        responses=answers(Verification),
        openapi_extra=needs("read"),
    )
    def verify() -> dict[str, Any]:
        """The digest of the live tensors, hashed afresh; 503 when it is not the ledger's."""
        live, hashed = manager.log.verify_live()
        if hashed.value != live.state.value:
            differing = sorted(
                name for name, d in hashed.digests.items() if d != live.state.digests[name]
            )
            raise WeightsMismatch(
                f"live weights differ from the ledger at seq {live.head.state_seq}: "
                + ", ".join(differing)
            )
        return {
            "object": "verification",
            "seq": live.head.state_seq,
            "digest": hashed.value.hex(),
            "tensors": len(hashed.digests),
            "ok": True,
        }

    return routes
