"""A route that is asked for thousands of times a second, without the framework's own work for it.

FastAPI looks for a route through all routers, solves its dependencies and has its reply validated,
behind middleware of which each wraps what is received and sent: that takes longer than the rest of
a small request. Here the very endpoint is called behind the very dependencies, both read off the
route as it is declared: no check and no reply is written a second time. Whatever is unusual goes
the ordinary way: a request with a query, since its parameters are typed models that FastAPI reads;
one that does not say how long it is, or is longer than the route takes; and every error, which is
answered by who answers those of all routes.
"""

import inspect
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import iter_route_contexts
from pydantic import TypeAdapter
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

Check = Callable[[Request], Coroutine[Any, Any, None]]


class Direct:
    """ASGI middleware: answers the POSTs of one route of `app` itself, as far as they are usual."""

    def __init__(self, app: FastAPI, name: str) -> None:
        (route,) = (one for one in iter_route_contexts(app.routes) if one.name == name)
        self._framework = app
        self._path = str(route.path_format)
        self._checks: list[Check] = [_check(one.dependency) for one in route.dependencies]
        endpoint: Any = route.endpoint
        if [*inspect.signature(endpoint).parameters] != ["request", "response"]:
            raise TypeError(f"{name} takes more than its request and response")
        self._endpoint = endpoint
        self._matched = {"route": route.original_route, "endpoint": endpoint, "path_params": {}}
        self._reply: TypeAdapter[Any] = TypeAdapter(route.response_model)
        self._most_bytes: int | None = route.max_body_size

    def before(self, others: ASGIApp) -> ASGIApp:
        """In front of what answers all other requests."""

        async def first(scope: Scope, receive: Receive, send: Send) -> None:
            await (self._answer if self.takes(scope) else others)(scope, receive, send)

        return first

    def takes(self, scope: Scope) -> bool:
        """Whether it is a usual POST to the route's path."""
        return (
            scope["type"] == "http"
            and scope["path"] == self._path
            and scope["method"] == "POST"
            and not scope["query_string"]
            and not (scope["root_path"] and self._path.startswith(scope["root_path"]))
            and _is_within(scope["headers"], self._most_bytes)
        )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.update(self._matched)
        request, noted = Request(scope, receive, send), Response()
        try:
            for check in self._checks:
                await check(request)
            content = self._reply.dump_json(await self._endpoint(request, noted))
        except Exception as error:  # noqa: BLE001  (it is raised again there)
            await self._failed(error)(scope, receive, send)
            return
        headers = [
            (b"content-length", b"%d" % len(content)),
            (b"content-type", b"application/json"),
            *[one for one in noted.raw_headers if one[0] != b"content-length"],
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _failed(self, error: Exception) -> ASGIApp:
        """What answers an error that any route may raise; raises it where nobody does."""

        async def failing(_scope: Scope, _receive: Receive, _send: Send) -> None:
            raise error

        return ExceptionMiddleware(failing, self._framework.exception_handlers)


def _is_within(headers: Iterable[tuple[bytes, bytes]], most: int | None) -> bool:
    """Whether a request says how long its body is, once, and that it is no longer than that."""
    said = b""
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and said):
            return False
        if name == b"content-length":
            said = value
    return said.isdigit() and (most is None or int(said) <= most)


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
