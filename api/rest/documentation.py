"""What the OpenAPI document says beyond what FastAPI reads off the routes.

Bodies are parsed by hand (`requests.body`), so the routes describe them here; so do headers that
every write takes, the one form of an error, and the key. Bodies are written out in place, so the
routes can be mounted in an application of somebody else's; ours gives them names.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel, ConfigDict, Field

from weightledger.api.rest.answers.writes import Waiting
from weightledger.api.rest.authentication import is_open
from weightledger.api.rest.scopes import needs, wanted
from weightledger.ledger.access.keys import Scope

DESCRIPTION = """
Every change to the served model's weights is one immutable event.

**Errors** have one form, `{"error": {"message", "type", "param", "code"}}`; `code` is stable.

**Writes** take `Idempotency-Key`: the same key with the same request happens once. They take
`If-Match` with the `ETag` of a reply: 412 when the weights have changed since. `X-Reason` says
why, and `X-Actor` who, unless a key does.

**Positions** are a version id, an update id, `seq:N`, `head`, `head~N` or a UTC time.
"""

JSON = "application/json"


class ErrorDetails(BaseModel):
    """What went wrong, for people (`message`) and for programs (`code`, `param`)."""

    model_config = ConfigDict(extra="forbid")

    message: str = Field(description="What was expected, or what to do.")
    type: str = Field(description="The kind of error, as OpenAI's clients know it.")
    param: str | None = Field(description="The field, query parameter or header that is wrong.")
    code: str = Field(description="Stable, for programs.")


class ErrorReply(BaseModel):
    """Every error reply."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "message": "Parameter '2.bais' not found",
                        "type": "not_found_error",
                        "param": "parameter_name",
                        "code": "not_found",
                    }
                }
            ]
        },
    )

    error: ErrorDetails


_MEANINGS = {
    400: "Malformed, or it does not fit the model; nothing was changed",
    401: "No API key, or one that is unknown, revoked or expired",
    403: "Switched off, a key that is not for this, or a stranger's Host or Origin",
    404: "No such thing",
    409: "Other writers kept winning; nothing was changed",
    410: "Its data were dropped by gc",
    412: "If-Match is not the last state change; its ETag is in the reply",
    413: "The body is larger than this route takes",
    415: "The body is encoded",
    422: "The idempotency key was used for another request",
    429: "The key has asked as often as it may; Retry-After says when to ask again",
    503: "Not now: the database, the disk or the engine; Retry-After says when to ask again",
}
ERROR: dict[str, Any] = {"model": ErrorReply, "description": "Any other error"}
_READ = (400, 401, 403, 404, 410, 429, 503)
_WRITE = (400, 401, 403, 404, 409, 412, 413, 415, 422, 429, 503)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Their form is only referred to: FastAPI compiles it for each route that names it. ERROR on
    one route of all brings it into the document."""
    return {
        **{status: _in_our_form(_MEANINGS[status]) for status in statuses},
        "default": _in_our_form(ERROR["description"]),
    }


def _in_our_form(description: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{ErrorReply.__name__}"}
    return {"description": description, "content": {JSON: {"schema": schema}}}


READ_ERRORS = _errors(*_READ)
WRITE_ERRORS = _errors(*_WRITE)

BODY_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: WRITE_ERRORS[status] for status in (413, 415, 422)
}
"""What a question that comes with a body may be refused with, beside what a GET may."""


def _as_text(errors: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """The same errors on a route whose reply is text: FastAPI would call them text as well."""
    return {status: _in_our_form(told["description"]) for status, told in errors.items()}


TEXT_READ_ERRORS = _as_text(READ_ERRORS)
TEXT_WRITE_ERRORS = _as_text(WRITE_ERRORS)


def answers(
    model: type[BaseModel], *, write: bool = False, also: Mapping[str, Any] | None = None
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: its reply, and the errors it may answer.

    `also` are other media types that the reply may have.
    """
    reply: dict[str, Any] = {"model": model}
    if also:
        reply["content"] = dict(also)
    if not write:
        return {200: reply, **READ_ERRORS}
    waits = {"model": Waiting, "description": "It waits for a second person to approve it"}
    return {200: reply, 202: waits, **WRITE_ERRORS}


_KEY = "^[!-~]([ -~]*[!-~])?$"
_TAG = '(W/)?"[0-9]{1,15}"'
_WRITE_HEADERS = [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "description": "The same key with the same request happens once, and gets the same reply.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": _KEY},
    },
    {
        "name": "If-Match",
        "in": "header",
        "required": False,
        "description": 'The ETag of a reply, such as "12", several of them, or *.',
        "schema": {"type": "string", "pattern": rf"^(\*|{_TAG}(, {_TAG})*|[0-9]{{1,15}})$"},
    },
]


def write_headers() -> dict[str, Any]:
    """The headers of a write that has no body, for `openapi_extra`."""
    return {"parameters": [dict(header) for header in _WRITE_HEADERS]}


def json_body(
    model: type[BaseModel],
    *examples: Mapping[str, Any],
    write: bool = False,
    scope: Scope | None = None,
) -> dict[str, Any]:
    """A JSON body, for `openapi_extra`; the route parses it itself.

    `scope` is what a key needs to be for, where the route is no write (see `scopes`).
    """
    media: dict[str, Any] = {"schema": inlined(model.model_json_schema())}
    if examples:
        media["examples"] = {
            f"example {number}": {"value": dict(example)}
            for number, example in enumerate(examples, 1)
        }
    described = {"requestBody": {"required": True, "content": {JSON: media}}}
    return {
        **described,
        **(write_headers() if write else {}),
        **(needs(scope) if scope else {}),
    }


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema with the definitions it refers to written out in place."""
    definitions = schema.pop("$defs", {})

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            name = str(value.get("$ref", "")).removeprefix("#/$defs/")
            if name in definitions:
                beside = {key: one for key, one in value.items() if key != "$ref"}
                return {**resolve(definitions[name]), **beside}
            return {key: resolve(one) for key, one in value.items()}
        return [resolve(one) for one in value] if isinstance(value, list) else value

    resolved: dict[str, Any] = resolve(schema)
    return resolved


class Documented(FastAPI):
    """An application whose document is worked out when somebody asks for it, and anew once it asks
    for keys, as `keyed` says: it takes as long as all else that a server does before it listens.

    `GET /openapi.json` does so on a thread (`pages`).
    """

    def __init__(self, keyed: Callable[[], bool], **options: Any) -> None:
        super().__init__(**options, openapi_url=None, docs_url=None, redoc_url=None)
        self._keyed = keyed
        self._described: bool | None = None
        self._describing = threading.Lock()

    def openapi(self) -> dict[str, Any]:
        """The document: bodies by name, and what key each route wants."""
        keyed = self._keyed()
        with self._describing:
            if self.openapi_schema is None or self._described != keyed:
                self.openapi_schema = None
                self.openapi_schema = _with_keys(super().openapi(), _scopes(self), keyed=keyed)
                self._described = keyed
            return self.openapi_schema


def _with_keys(
    document: dict[str, Any], scopes: Mapping[tuple[str, str], str], *, keyed: bool
) -> dict[str, Any]:
    components = document["components"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            media = operation.get("requestBody", {}).get("content", {}).get(JSON)
            if media is not None:
                name = media["schema"]["title"]
                components["schemas"][name] = media["schema"]
                media["schema"] = {"$ref": f"#/components/schemas/{name}"}
            operation["x-scope"] = scopes[path, method]
            if keyed:
                # OpenAPI 3.1: a scheme of any kind may name the role that a key needs.
                wanted = [] if is_open(path) else [{"ApiKey": [scopes[path, method]]}]
                operation["security"] = wanted
    schemes = components.setdefault("securitySchemes", {})
    schemes["ApiKey"] = {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of `weightledger keys create`, or that of --api-key. Each route says "
        "its scope: read, write (which includes read) or admin (all). Without any key the server "
        "listens on loopback only and asks for none.",
    }
    if keyed:
        document["security"] = [{"ApiKey": []}]
    return document


def operations(app: FastAPI) -> Iterator[tuple[str, APIRoute]]:
    """Every route that answers for itself, with its path."""
    for context in iter_route_contexts(app.routes):
        if isinstance(context.original_route, APIRoute):
            yield str(context.path_format), context.original_route


def _scopes(app: FastAPI) -> dict[tuple[str, str], str]:
    """The scope that each operation of the document wants, by its path and method."""
    return {
        (path, method.lower()): wanted(route)
        for path, route in operations(app)
        for method in route.methods or ()
    }
