"""A route that is asked for thousands of times a second, without the framework's own work for it.

FastAPI looks for a route through all routers, solves its dependencies and has its reply validated,
which takes longer than the rest of a small request. Here the very endpoint is called behind the
very dependencies, both read off the route as it is declared: no check and no reply is written a
second time. A request with a query goes the ordinary way, since its parameters are typed models
that FastAPI reads.
"""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import iter_route_contexts
from pydantic import TypeAdapter
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

Check = Callable[[Request], Coroutine[Any, Any, None]]


class Direct(BaseRoute):
    """Answers the POSTs of one route of `app`; goes in front of all routes of its router."""

    def __init__(self, app: FastAPI, name: str) -> None:
        (route,) = (one for one in iter_route_contexts(app.routes) if one.name == name)
        self._route = route.original_route
        self._path = str(route.path_format)
        self._checks: list[Check] = [_check(one.dependency) for one in route.dependencies]
        endpoint: Any = route.endpoint
        if [*inspect.signature(endpoint).parameters] != ["request", "response"]:
            raise TypeError(f"{name} takes more than its request and response")
        self._endpoint = endpoint
        self._reply: TypeAdapter[Any] = TypeAdapter(route.response_model)
        self._limited: ASGIApp = self._answer
        if route.max_body_size is not None:
            self._limited = RequestBodyLimitMiddleware(self._answer, route.max_body_size)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether it is a POST without a query to the route's path."""
        if (
            scope["path"] != self._path
            or scope["type"] != "http"
            or scope["method"] != "POST"
            or scope["query_string"]
            or (scope["root_path"] and self._path.startswith(scope["root_path"]))
        ):
            return Match.NONE, {}
        return Match.FULL, {"route": self._route, "endpoint": self._endpoint, "path_params": {}}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI; the errors are answered by who answers those of all routes."""
        await self._limited(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, noted = Request(scope, receive, send), Response()
        for check in self._checks:
            await check(request)
        content = self._reply.dump_json(await self._endpoint(request, noted))
        reply = Response(content, media_type="application/json")
        reply.raw_headers += [one for one in noted.raw_headers if one[0] != b"content-length"]
        await reply(scope, receive, send)


def _check(dependency: Any) -> Check:
    """A dependency that wants the request, and of the query nothing that it has to have."""
    wants = [*inspect.signature(dependency).parameters.values()]
    if not (
        inspect.iscoroutinefunction(dependency)
        and [one.annotation for one in wants[:1]] == [Request]
        and all(one.default is not inspect.Parameter.empty for one in wants[1:])
    ):
        raise TypeError(f"{dependency.__name__} is not a check of a request alone")
    check: Check = dependency
    return check
