"""Evidence that can be checked without this server: checkpoints, and proofs against them."""

from typing import Annotated, Any

from fastapi import Query, Response

from weightledger import DynamicModelManager
from weightledger.api.rest import queries
from weightledger.api.rest.answers.events import Consistency
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import TEXT_READ_ERRORS, answers
from weightledger.api.rest.writers import require_writer
from weightledger.ledger.audit.notary import Notary
from weightledger.ledger.audit.signing import consistency

_TEXT = "text/plain; charset=utf-8"


def router(manager: DynamicModelManager, notary: Notary) -> Declared:
    """`/checkpoint`, `/consistency` and `/v1/models/updates/{id}/proof`."""
    routes = Declared(tags=["audit"])
    history = manager.log.history

    @routes.get("/checkpoint", response_class=_Text, responses=_text(_CHECKPOINT))
    def checkpoint() -> Response:
        """A signed checkpoint: how many events the log has, and the root of their tree.

        A signed note (c2sp.org/tlog-checkpoint); keep it somewhere else, with the verifier key of
        `weightledger checkpoint --key`.
        """
        require_writer(manager)
        return _Text(str(notary.signer.checkpoint(history.store)))

    @routes.get("/consistency", responses=answers(Consistency))
    def get_consistency(query: Annotated[queries.ConsistencyQuery, Query()]) -> dict[str, Any]:
        """A proof that the log's first `second` events begin with its first `first`."""
        proof = consistency(history.store, query.first, query.second)
        return {"object": "consistency_proof", **proof.to_json()}

    @routes.get(
        "/v1/models/updates/{event_id}/proof", response_class=_Text, responses=_text(_PROOF)
    )
    def proof(event_id: str, query: Annotated[queries.ProofQuery, Query()]) -> Response:
        """A proof that an event is in the log: one file, checkable offline.

        For a reply, ask with its X-Weights-Seq as `seq:N` and its X-Weights-Digest as `digest`: the
        file is the receipt that these weights were live from that event on; 404 when they were not.
        """
        require_writer(manager)
        event = history.event(event_id)
        return _Text(str(notary.signer.prove(history.store, event.seq, query.digest)))

    return routes


class _Text(Response):
    media_type = _TEXT


def _text(example: str) -> dict[int | str, dict[str, Any]]:
    media = {"schema": {"type": "string"}, "example": example}
    described = {"description": "Successful Response", "content": {_TEXT: media}}
    return {200: described, **TEXT_READ_ERRORS}


_CHECKPOINT = (
    "weightledger/digits/0f343b0931126a20\n"
    "20852163\n"
    "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    "\n"
    "— weightledger/digits/0f343b0931126a20 Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URY"
    "N7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
)
_PROOF = (
    f"c2sp.org/tlog-proof@v1\nextra eyJib2R5Ijp7fX0=\nindex 17\n"
    f"PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n\n{_CHECKPOINT}"
)
