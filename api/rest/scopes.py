"""What a key has to be for before a route answers: read, write or admin.

Every route declares it: a route that writes by `require_writes`, one that only reads by being a
GET, and the others with `needs`. One that declares nothing is for admin keys, and a test refuses
it. Where somebody else's application holds the routes, that application says who may ask.
"""

from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute

from weightledger.api.rest.queries import refuse_unknown
from weightledger.api.rest.requests import require_writes
from weightledger.ledger.access.keys import SCOPES, Scope
from weightledger.ledger.errors import InsufficientScope

_SCOPE = "x-scope"
_SAFE = {"GET", "HEAD"}
# Every path that no other route has leads to this one: what is no model is not found, whatever else
# is wrong with the request. It looks at the query itself.
_ASK_FIRST = {"get_model"}


def needs(scope: Scope) -> dict[str, Any]:
    """What goes into a route's `openapi_extra`: the scope of key that it wants."""
    return {_SCOPE: scope}


def declared(route: APIRoute) -> Scope | None:
    """The scope that a route wants, None where it does not say."""
    said: Scope | None = (route.openapi_extra or {}).get(_SCOPE)
    if said is not None:
        return said
    if any(one.dependency is require_writes for one in route.dependencies):
        return "write"
    return "read" if (route.methods or set()) <= _SAFE else None


def wanted(route: APIRoute) -> Scope:
    """The scope that a key needs for a route."""
    return declared(route) or "admin"


def includes(scope: Scope, other: Scope) -> bool:
    """Whether a key with this scope may do what the other one is for."""
    return SCOPES.index(scope) >= SCOPES.index(other)


async def admitted(request: Request) -> None:
    """Before each route: InsufficientScope for too small a scope, InvalidRequest for an odd query.

    A coroutine, since a plain function would be called on a thread for every request.
    """
    scope: Scope | None = getattr(request.state, "scope", None)
    route = request.scope.get("route")
    if scope is not None and scope != "admin" and isinstance(route, APIRoute):
        want = wanted(route)
        if not includes(scope, want):
            raise InsufficientScope(
                f"{request.method} {route.path_format} wants a key with scope {want}; "
                f"{request.state.actor!r} has {scope}",
                scope=want,
            )
    if not isinstance(route, APIRoute) or route.name not in _ASK_FIRST:
        await refuse_unknown(request)
