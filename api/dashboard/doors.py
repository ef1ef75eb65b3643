"""The way in: the login page, the session's cookie, and the files that pages load."""

import json
from functools import cache
from importlib.resources import files

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from weightledger.api.dashboard.sessions import LOGIN, STATIC, Sessions, cookie, place_of
from weightledger.api.dashboard.showing import HEADERS, page
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.errors import error_response
from weightledger.api.rest.keyring import Access, Keyring
from weightledger.api.rest.scopes import needs
from weightledger.ledger.errors import InvalidRequest, NotFound

_SCRIPT = "text/javascript; charset=utf-8"
_STYLE = "text/css; charset=utf-8"
FILES = {
    "dashboard.css": _STYLE,
    "dashboard.js": _SCRIPT,
    "timeline.js": _SCRIPT,
    "charts.js": _SCRIPT,
    "acting.js": _SCRIPT,
    "login.js": _SCRIPT,
    "uPlot.iife.min.js": _SCRIPT,
    "uPlot.min.css": _STYLE,
    "icon.svg": "image/svg+xml",
}


def router(keyring: Keyring, sessions: Sessions) -> Declared:
    """What needs no key."""
    routes = Declared()

    @routes.get(LOGIN)
    def login(request: Request) -> Response:
        """The page that takes a key; `next` is the page to go on to."""
        return page(request, "login.html", next=_own(request.query_params.get("next", "/")))

    @routes.post(LOGIN, openapi_extra=needs("read"))
    async def enter(request: Request) -> Response:
        """Takes `{"key": …}`; the reply sets the session's cookie."""
        try:
            key = json.loads(await request.body())["key"]
        except (ValueError, KeyError, TypeError):
            key = None
        if not isinstance(key, str):
            raise InvalidRequest('expected {"key": "…"}', param="key")
        judged = await keyring.admit(key)
        if not isinstance(judged, Access):
            return error_response(judged.status, judged.message)
        return _with_cookie(request, sessions.open(key))

    @routes.post("/ui/logout", openapi_extra=needs("read"))
    async def leave(request: Request) -> Response:
        sessions.close(place_of(request.scope))
        return _with_cookie(request, "")

    @routes.get(STATIC + "{name}")
    def file(name: str) -> Response:
        if name not in FILES:
            raise NotFound(f"no file {name!r} here", param="name")
        headers = {**HEADERS, "cache-control": "no-cache"}
        return Response(_read(name), media_type=FILES[name], headers=headers)

    return routes


def _own(path: str) -> str:
    """A path of this site below where it is mounted; the first page for anything else."""
    plain = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if plain else "/"


def _with_cookie(request: Request, value: str) -> Response:
    secure = request.url.scheme == "https"
    kept = cookie(value, place_of(request.scope), secure=secure)
    headers = {"set-cookie": kept, "cache-control": "no-store"}
    return JSONResponse({"success": True}, headers=headers)


@cache
def _read(name: str) -> bytes:
    return files("weightledger.api.dashboard").joinpath("static", name).read_bytes()
