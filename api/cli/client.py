"""The REST client that writing commands use."""

from typing import Any
from urllib.parse import quote

import httpx2

from weightledger.ledger.errors import LedgerError

_TIMEOUT_S = 120.0


class ServerError(LedgerError):
    """The server refused, or could not be reached."""


class Client:
    """Calls one server; every error becomes a ServerError with the server's own words."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._url = url

    def update(self, body: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/models/incremental_update; the reply's `data`, with success and message."""
        return self._post("/v1/models/incremental_update", body)

    def enhanced_update(self, body: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/models/enhanced_update"""
        return self._post("/v1/models/enhanced_update", body)

    def create_version(self, description: str) -> dict[str, Any]:
        """POST /v1/models/create_version"""
        return self._post("/v1/models/create_version", {"description": description})

    def pin(self, version_id: str, pinned: bool) -> dict[str, Any]:
        """POST /v1/models/versions/{id}/pin or /unpin"""
        verb = "pin" if pinned else "unpin"
        return self._post(f"/v1/models/versions/{quote(version_id, safe='')}/{verb}", {})

    def rollback(self, position: str) -> dict[str, Any]:
        """POST /v1/models/rollback"""
        return self._post("/v1/models/rollback", {"version_id": position})

    def verify(self) -> dict[str, Any]:
        """POST /v1/models/verify"""
        return self._post("/v1/models/verify", {})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            reply = httpx2.post(
                self._url + path, json=body, headers=self._headers, timeout=_TIMEOUT_S
            )
            answer: dict[str, Any] = reply.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise ServerError(f"no answer from {self._url}: {error}") from error
        if reply.status_code != 200:
            raise ServerError(str(answer.get("error", {}).get("message", reply.text)))
        return answer
