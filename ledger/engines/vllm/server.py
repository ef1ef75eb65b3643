"""The server's routes, one method each: what is sent, what a good answer is, and what went wrong.

Weight routes exist when the server runs with VLLM_SERVER_DEV_MODE=1 (APHRODITE_SERVER_DEV_MODE=1)
and are not guarded by its --api-key, so keep it on loopback or behind a door of its own.
"""

from collections.abc import Mapping
from typing import Any

import httpx2

from weightledger.ledger.engines.vllm import StateRef
from weightledger.ledger.errors import EngineUnavailable
from weightledger.ledger.http import client

_ASK_S = 5.0


class EngineUnreachable(EngineUnavailable):
    """No answer: gone, restarting, or too slow. Whether it did what was asked is not known."""


class Refused(EngineUnavailable):
    """It answered with an error, or with something that is no answer; `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Server:
    """A vLLM or Aphrodite server by its base URL. Each method raises Unreachable or Refused."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # Connections go before the server's own keep-alive time (5 s) closes them under a request.
        limits = httpx2.Limits(keepalive_expiry=2.0)
        self._client = client(self.url, param="engine_url", headers=headers, limits=limits)
        self._timeout_s = timeout_s

    def close(self) -> None:
        self._client.close()

    # What it is

    def version(self) -> str | None:
        """What it calls its weights; None on the older surface, which does not say."""
        try:
            answer = self._ask("/weight_info")
        except Refused as error:
            if error.status == 404:
                return None
            raise
        return self._text(answer, "/weight_info", "weight_version")

    def confirm(self, model: str, target: StateRef) -> bool:
        """Whether every worker holds that state, by their own word."""
        info = {"action": "confirm", "model": model, **_named(target)}
        try:
            self._post("/init_weight_transfer_engine", {"init_info": info}, timeout_s=_ASK_S)
        except Refused as error:
            if error.status == 404:
                raise Refused(
                    f"{self.url} has no weight routes: start it with VLLM_SERVER_DEV_MODE=1 "
                    "(APHRODITE_SERVER_DEV_MODE=1)",
                    404,
                ) from None
            return False
        return True

    def paused(self) -> bool:
        """Whether it holds requests back."""
        answer = self._ask("/is_paused")
        if not isinstance(answer, dict) or not isinstance(answer.get("is_paused"), bool):
            raise self._nonsense("/is_paused", answer)
        return bool(answer["is_paused"])

    def adapters(self) -> Mapping[str, str]:
        """Adapters that are loaded: name, and the folder each was loaded from."""
        answer = self._ask("/v1/models")
        try:
            return {m["id"]: m.get("root") or "" for m in answer["data"] if m.get("parent")}
        except (TypeError, KeyError, AttributeError):
            raise self._nonsense("/v1/models", answer) from None

    # Updates

    def stage(
        self,
        model: str,
        target: StateRef,
        *,
        database: str | None,
        names: list[str] | None,
        since: StateRef | None,
    ) -> None:
        """Have every worker read and verify tensors of a state; the model is not touched."""
        info = {
            "action": "stage",
            "model": model,
            **_named(target),
            "database": database,
            "names": names,
            "since": since.digest.hex() if since else None,
        }
        self._post("/init_weight_transfer_engine", {"init_info": info})

    def attempt(
        self, model: str, target: StateRef, proposal: str, *, database: str | None, since: StateRef
    ) -> None:
        """Have every worker load a proposed state into copies; what is served stays."""
        info = {
            "action": "try",
            "model": model,
            **_named(target),
            "database": database,
            "since": since.digest.hex(),
            "proposal": proposal,
        }
        self._post("/init_weight_transfer_engine", {"init_info": info})

    def pause(self) -> None:
        """Let running requests finish and hold the others back. Never `keep`: it mixes versions."""
        self._expect("/pause?mode=wait&clear_cache=true", "status", "paused")

    def resume(self) -> None:
        """Serve again."""
        self._expect("/resume", "status", "resumed")

    def name_weights(self, version: str) -> None:
        """Say what the weights are called."""
        self._post("/update_weight_version", {"new_version": version})

    def start(self) -> None:
        """Open an update; one that a killed driver left open is closed first."""
        try:
            self._post("/start_weight_update")
        except Refused as error:
            if "already active" not in str(error):
                raise
            self._post("/finish_weight_update", {})
            self._post("/start_weight_update")

    def load(self, target: StateRef) -> None:
        """Load what is staged into the model."""
        self._post("/update_weights", {"update_info": _named(target)})

    def finish(self, version: str) -> None:
        """Close the update and name the new weights."""
        self._post("/finish_weight_update", {"weight_version": version})

    def reset_caches(self) -> None:
        """Forget what was computed with other weights."""
        answer = self._post("/reset_prefix_cache")
        if isinstance(answer, dict) and answer.get("success", True) is not True:
            raise Refused(f"{self.url} could not reset its prefix cache: {answer}", 200)

    # Adapters

    def load_adapter(self, name: str, folder: str, *, replace: bool) -> None:
        """Load an adapter; `replace` one of that name."""
        body = {"lora_name": name, "lora_path": folder, "load_inplace": replace}
        self._post("/v1/load_lora_adapter", body, plain=True)

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter."""
        self._post("/v1/unload_lora_adapter", {"lora_name": name}, plain=True)

    # Asking

    def _ask(self, path: str) -> Any:
        return self._send("GET", path, None, min(_ASK_S, self._timeout_s), plain=False)

    def _post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        plain: bool = False,
    ) -> Any:
        return self._send("POST", path, body, timeout_s, plain=plain)

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        timeout_s: float | None,
        *,
        plain: bool,
    ) -> Any:
        patience = httpx2.Timeout(
            timeout_s or self._timeout_s, connect=min(_ASK_S, self._timeout_s)
        )
        where = f"{method} {self.url}{path}"
        try:
            answer = self._client.request(method, path, json=body, timeout=patience)
        except httpx2.HTTPError as error:
            raise EngineUnreachable(f"{where}: {type(error).__name__} {error}".rstrip()) from error
        if answer.status_code != 200:
            message = f"{where} answered {answer.status_code}: {_said(answer)}"
            raise Refused(message, answer.status_code)
        if plain or not answer.content:
            return answer.text
        try:
            return answer.json()
        except ValueError:
            raise self._nonsense(path, answer.text) from None

    def _expect(self, path: str, field: str, value: str) -> None:
        answer = self._post(path)
        if self._text(answer, path, field) != value:
            raise self._nonsense(path, answer)

    def _text(self, answer: Any, path: str, field: str) -> str:
        if not isinstance(answer, dict) or not isinstance(answer.get(field), str):
            raise self._nonsense(path, answer)
        return str(answer[field])

    def _nonsense(self, path: str, answer: Any) -> Refused:
        return Refused(f"{self.url}{path} answered {str(answer)[:200]!r}, which is no answer", 200)


def _named(target: StateRef) -> dict[str, Any]:
    return {"seq": target.seq, "digest": target.digest.hex()}


def _said(answer: httpx2.Response) -> str:
    try:
        error = answer.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
