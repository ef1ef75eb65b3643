"""Asking a running server: who asks and what its refusals become."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx2

from weightledger.ledger.errors import (
    AwaitingApproval,
    InvalidRequest,
    LedgerError,
    NotFound,
    Pruned,
    WhatIfRefused,
)
from weightledger.ledger.http import client

_TIMEOUT_S = 120.0

Item = dict[str, Any]


class ServerError(LedgerError):
    """The server refused, or could not be reached."""


class ServerUnreachable(ServerError):
    """The server did not answer, or could not just then."""


class Connection:
    """One server; every error becomes a ServerError with the server's own words.

    `caller` are the headers that say who asks and why.
    """

    def __init__(
        self, url: str, api_key: str | None, caller: Mapping[str, str] | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = {**(caller or {})}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"

    def _client(self) -> httpx2.Client:
        return client(self.url, param="url", headers=self._headers, timeout=_TIMEOUT_S)

    def _get(self, path: str, query: Mapping[str, str | Sequence[str]] | None = None) -> Item:
        return self._answer("GET", path, params=query)

    def _post(self, path: str, body: Mapping[str, Any]) -> Item:
        return self._answer("POST", path, json=dict(body))

    def _answer(self, method: str, path: str, **options: Any) -> Item:
        reply = self._reply(method, path, **options)
        try:
            return dict(reply.json())
        except (ValueError, TypeError) as error:
            raise ServerUnreachable(
                f"{self.url} answered, but not as a ledger does: is that its address?"
            ) from error

    def _reply(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            with self._client() as http:
                reply = http.request(method, path, **options)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        except ValueError as error:  # what a body may not be: NaN and infinities
            raise InvalidRequest(f"this cannot be sent: {error}") from error
        if reply.status_code == 202:
            waiting = reply.json()
            raise AwaitingApproval(waiting["message"], approval_id=waiting["data"]["approval_id"])
        if reply.status_code != 200:
            raise self._refusal(reply)
        return reply

    def _unreachable(self, error: Exception) -> ServerUnreachable:
        return ServerUnreachable(f"no answer from {self.url}: {error}")

    def _refusal(self, reply: httpx2.Response) -> LedgerError:
        code = None
        try:
            error = reply.json()["error"]
            message, code = str(error["message"]), error.get("code")
        except (ValueError, KeyError, TypeError, AttributeError):
            message = f"{self.url} answered {reply.status_code}: {reply.text[:200]}"
        if reply.status_code == 401:
            return ServerError(f"{message}; give one with --api-key or WEIGHTLEDGER_API_KEY")
        if reply.status_code == 410:
            return Pruned(message)
        if code == "what_if_refused":
            return WhatIfRefused(message)
        kind = {400: InvalidRequest, 404: NotFound}.get(reply.status_code, ServerError)
        return kind(message)
