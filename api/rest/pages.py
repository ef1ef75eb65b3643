"""`/docs`: the OpenAPI document to read and try, without asking any other server.

The page and its files (`swagger/`) need no key; the document does, and the page asks for it.
"""

import gzip
from functools import cache
from importlib.resources import files

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from weightledger.api.rest.declared import Declared
from weightledger.ledger.errors import NotFound

FILES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
}
_COMPRESSED = frozenset({"swagger-ui-bundle.js", "swagger-ui.css"})

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline';"
        " img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def router() -> Declared:
    """The page, and the files that it loads."""
    routes = Declared(include_in_schema=False)

    @routes.get("/docs")
    def docs() -> Response:
        return Response(_read("docs.html"), media_type="text/html", headers=_HEADERS)

    @routes.get("/docs/{name}")
    def file(request: Request, name: str) -> Response:
        if name not in FILES:
            raise NotFound(f"no file {name!r} here", param="name")
        headers = {**_HEADERS, "cache-control": "public, max-age=86400", "vary": "accept-encoding"}
        if name not in _COMPRESSED:
            return Response(_read(name), media_type=FILES[name], headers=headers)
        content = _read(f"{name}.gz")
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
        else:
            content = gzip.decompress(content)
        return Response(content, media_type=FILES[name], headers=headers)

    @routes.get("/openapi.json")
    def document(request: Request) -> JSONResponse:
        described = request.app.openapi()
        root = str(request.scope.get("root_path", "")).rstrip("/")
        return JSONResponse({**described, "servers": [{"url": root}]} if root else described)

    return routes


@cache
def _read(name: str) -> bytes:
    return files("weightledger.api.rest").joinpath("swagger", name).read_bytes()
