"""API keys: listed, made, rotated and revoked by whoever has one for admin.

A part of our own server only: where the routes are mounted in somebody else's application, that
application says who may ask, and these keys open nothing.
"""

import asyncio
import time
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response

from weightledger import DynamicModelManager
from weightledger.api.items import key_change_item, key_item
from weightledger.api.rest import queries, schemas
from weightledger.api.rest.answers.keys import IssuedKey, Key, KeyChanges, KeyList
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import answers, json_body
from weightledger.api.rest.keyring import Keyring
from weightledger.api.rest.requests import body, caller
from weightledger.api.rest.scopes import admitted, needs
from weightledger.ledger.access.keys import ApiKey
from weightledger.ledger.access.records import Issued
from weightledger.ledger.errors import InvalidRequest, NotAllowed

_NAME = {"name": "trainer"}


def router(manager: DynamicModelManager, keyring: Keyring, max_body_bytes: int) -> Declared:
    """`GET` and `POST /v1/keys`, `GET /v1/keys/changes`, `POST /v1/keys/rotate` and `/revoke`."""
    routes = Declared(
        prefix="/v1/keys",
        tags=["keys"],
        max_body_size=max_body_bytes,
        dependencies=[Depends(admitted)],
    )
    keys = manager.ledger.keys

    def require_secrets_here() -> None:
        if manager.config.two_person_rule:
            raise NotAllowed(
                "under the two-person rule nobody gets a key over HTTP, which would make them two"
                " people: use `weightledger keys` where the database is"
            )

    def actor(request: Request) -> str | None:
        return caller(request, manager.log.live.head).actor

    @routes.get("", responses=answers(KeyList), openapi_extra=needs("admin"))
    def list_keys() -> dict[str, Any]:
        """Every key that there is or was, oldest first, without its secret."""
        return {"object": "list", "data": [_item(key) for key in keys.all()]}

    @routes.get("/changes", responses=answers(KeyChanges), openapi_extra=needs("admin"))
    def list_key_changes(query: Annotated[queries.KeyHistoryQuery, Query()]) -> dict[str, Any]:
        """What was done to one key, when and by whom, oldest first."""
        changes = [key_change_item(change) for change in keys.changes(query.name)]
        return {"object": "list", "data": changes}

    @routes.post(
        "",
        responses=answers(IssuedKey),
        openapi_extra=json_body(
            schemas.KeyBody,
            {"name": "trainer", "scope": "write", "expires_in_s": 2_592_000.0},
            scope="admin",
        ),
    )
    async def create_key(request: Request, response: Response) -> dict[str, Any]:
        """Make a key: the reply has its secret, this once."""
        asked = await body(request, schemas.KEY)
        require_secrets_here()
        if not keyring.asks and asked.scope != "admin":
            raise InvalidRequest(
                "from its first key on this server asks for one, so the first one is for admin:"
                " nobody could make another",
                param="scope",
            )
        issued = await asyncio.to_thread(
            keys.create,
            asked.name,
            asked.scope,
            expires_in_s=asked.expires_in_s,
            requests_per_minute=asked.requests_per_minute,
            actor=actor(request),
        )
        await keyring.renew()
        return _told(response, issued)

    @routes.post(
        "/rotate",
        responses=answers(IssuedKey),
        openapi_extra=json_body(
            schemas.KeyRotationBody, {**_NAME, "overlap_s": 3600.0}, scope="admin"
        ),
    )
    async def rotate_key(request: Request, response: Response) -> dict[str, Any]:
        """Give a key a new secret, which the reply has, this once."""
        asked = await body(request, schemas.KEY_ROTATION)
        require_secrets_here()
        issued = await asyncio.to_thread(
            keys.rotate,
            asked.name,
            overlap_s=asked.overlap_s,
            expires_in_s=asked.expires_in_s,
            actor=actor(request),
        )
        await keyring.renew()
        return _told(response, issued)

    @routes.post(
        "/revoke",
        responses=answers(Key),
        openapi_extra=json_body(schemas.KeyNameBody, _NAME, scope="admin"),
    )
    async def revoke_key(request: Request) -> dict[str, Any]:
        """Let nobody in with a key any more; at this server at once, at others within a second."""
        asked = await body(request, schemas.KEY_NAME)
        key = await asyncio.to_thread(keys.revoke, asked.name, actor=actor(request))
        await keyring.renew()
        return _item(key)

    return routes


def _told(response: Response, issued: Issued) -> dict[str, Any]:
    response.headers["cache-control"] = "no-store"
    return {**_item(issued.key), "key": issued.secret}


def _item(key: ApiKey) -> dict[str, Any]:
    return key_item(key, time.time_ns() // 1000)
