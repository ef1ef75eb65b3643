"""What differs between two states, and who touched a parameter."""

from typing import Annotated, Any

from fastapi import Query, Response
from fastapi.responses import JSONResponse

from weightledger import DynamicModelManager
from weightledger.api.rest import queries
from weightledger.api.rest.answers.debugging import BlameReply, DiffReply
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import answers
from weightledger.api.tables import blame_rows, csv_text, diff_rows
from weightledger.ledger.debug.drawn import blame_picture, diff_picture

_OTHER_FORMS: dict[str, Any] = {
    "text/csv": {"schema": {"type": "string"}},
    "image/svg+xml": {"schema": {"type": "string"}},
}


def router(manager: DynamicModelManager) -> Declared:
    """`GET /v1/models/diff` and `/blame`."""
    routes = Declared(prefix="/v1/models", tags=["debugging"])
    log = manager.log

    @routes.get("/diff", responses=answers(DiffReply, also=_OTHER_FORMS))
    def diff(query: Annotated[queries.DiffQuery, Query()]) -> Response:
        """What differs between two states, what moved farthest first.

        Tensors that are the same are known by their digests and not read. As JSON, as CSV with a
        row for each tensor, or as an SVG picture: a bar for each layer, with `each` a heat map of
        layers by updates.
        """
        if query.each:
            found = log.each(query.before, query.after, columns=query.columns).to_json()
        else:
            found = log.diff(query.before, query.after, ranks=query.ranks).to_json()
        if query.form == "svg":
            return Response(diff_picture(found), media_type="image/svg+xml")
        if query.form == "csv":
            return Response(csv_text(*diff_rows(found)), media_type="text/csv")
        return JSONResponse(found)

    @routes.get("/blame", responses=answers(BlameReply, also=_OTHER_FORMS))
    def blame(query: Annotated[queries.BlameQuery, Query()]) -> Response:
        """Who touched a parameter, or one element of it, newest first.

        Each event with the value (of a whole parameter its norm) before and after, and whether it
        is part of the live state or which rollback took it out. As JSON, as CSV, or as an SVG
        picture of the values over time.
        """
        touches = log.blame(query.parameter, query.index, limit=query.limit, max_seq=query.max_seq)
        found = touches.to_json()
        if query.form == "svg":
            return Response(blame_picture(found), media_type="image/svg+xml")
        if query.form == "csv":
            return Response(csv_text(*blame_rows(found)), media_type="text/csv")
        return JSONResponse(found)

    return routes
