"""A running server, for commands that read from it or write to it."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx2

from weightledger.api.cli import output
from weightledger.api.cli.connection import Connection, Item, ServerError, ServerUnreachable
from weightledger.ledger.errors import NotFound, StorageError, WhatIfRefused

if TYPE_CHECKING:
    from torch import Tensor

_SILENCE_S = 60.0  # a stream of events has a heartbeat every 15 s
_AGAIN_S = 1.0
_DATA = b"data: "
_KIND = b"event: "
_REFUSED = b"refused"  # the last event, where the key counts no more
_PAGE = 100
_MEASUREMENTS = 1000
_MODELS = "/v1/models"


def _part(name: str) -> str:
    """A name as one part of a path; NotFound for what would make another path of it."""
    if name in ("", ".", "..") or "/" in name:
        raise NotFound(f"{name!r} not found")
    return quote(name, safe="")


class Remote(Connection):
    """One server: what its routes answer, and what they are sent."""

    # Reads

    def model(self) -> str:
        """The name of the model it serves."""
        return str(self._get(_MODELS)["data"][0]["id"])

    def status(self) -> Item:
        """Where the model stands."""
        status = self._get(f"{_MODELS}/status")
        (head,) = self._get(f"{_MODELS}/updates", {"limit": "1"})["data"]
        return {
            "model": self.model(),
            "head_seq": head["seq"],
            "state_seq": head["state_seq"],
            "digest": head["state_after"],
            "recorded_at": head["recorded_at"],
            "total_updates": status["total_updates"],
            "total_versions": status["total_versions"],
            "current_version": status["current_version"],
            "updates_since_version": status.get("updates_since_version"),
            "server": self.url,
        }

    def events(self, query: Mapping[str, Any], number: int) -> list[Item]:
        """Events that pass the filters of `GET /v1/models/updates`, newest first."""
        found: list[Item] = []
        asked: dict[str, Any] = dict(query)
        while len(found) < number:
            asked["limit"] = str(min(_PAGE, number - len(found)))
            page = self._get(f"{_MODELS}/updates", asked)
            found += page["data"]
            if not page["has_more"]:
                break
            asked["after"] = page["last_id"]
        return found

    def activity(self, query: Mapping[str, Any]) -> list[Item]:
        """Counts of events."""
        counted: list[Item] = self._get(f"{_MODELS}/activity", query)["data"]
        return counted

    def approvals(self) -> list[Item]:
        """Writes that wait for a second person, or did, newest first."""
        listed: list[Item] = self._get(f"{_MODELS}/approvals", {"limit": str(_PAGE)})["data"]
        return listed

    def decide(self, approval_id: str, verb: str) -> Item:
        """POST /v1/models/approvals/{id}/approve or /reject"""
        return self._post(f"{_MODELS}/approvals/{_part(approval_id)}/{verb}", {})

    def holds(self) -> list[Item]:
        """Legal holds, newest first."""
        listed: list[Item] = self._get(f"{_MODELS}/holds")["data"]
        return listed

    def event(self, name: str) -> Item:
        """One event."""
        return self._get(f"{_MODELS}/updates/{_part(name)}")

    def versions(self) -> list[Item]:
        """Listed versions, newest first."""
        listed = self._get(f"{_MODELS}/versions")["versions"]
        return [self.version(one["version_id"]) for one in listed]

    def version(self, name: str) -> Item:
        """One listed version."""
        return self._get(f"{_MODELS}/versions/{_part(name)}")

    def follow(self, after: int) -> Iterator[Item]:
        """Events after a seq as they are committed, for ever.

        A connection that is lost, to a server that is restarted for example, is made again, and
        nothing is missed; what the server refuses is raised.
        """
        told = False
        while True:
            try:
                for item in self._stream(after):
                    told = False
                    if item is not None:
                        yield item
                        after = item["seq"]
            except ServerUnreachable as error:
                if not told:
                    output.note(f"{error}; asking again until it answers")
                told = True
            time.sleep(_AGAIN_S)

    def _stream(self, after: int) -> Iterator[Item | None]:
        """One connection's events; first None, when the server has answered."""
        path, headers = f"{_MODELS}/events", {"last-event-id": str(after)}
        try:
            with (
                self._client() as http,
                http.stream("GET", path, headers=headers, timeout=_SILENCE_S) as reply,
            ):
                if reply.status_code != 200:
                    reply.read()
                    refusal = self._refusal(reply)
                    raise refusal if reply.status_code < 500 else ServerUnreachable(str(refusal))
                yield None
                rest, kind = b"", b""
                for piece in reply.iter_bytes():
                    # By hand: texts may have what Python takes for the end of a line.
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        if line.startswith(_KIND):
                            kind = line.removeprefix(_KIND)
                        elif line.startswith(_DATA):
                            item = json.loads(line.removeprefix(_DATA))
                            if kind == _REFUSED:
                                raise ServerError(item["error"]["message"])
                            yield item
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error

    def diff(self, query: Mapping[str, Any]) -> Item:
        """What differs between two states."""
        return self._get(f"{_MODELS}/diff", _texts(query))

    def trials(self) -> list[Item]:
        """The trial that runs and the last that ended, newest first."""
        return list(self._get(f"{_MODELS}/trials")["data"])

    def drift(self) -> list[Item]:
        """GET /v1/models/metrics/drift"""
        return list(self._get(f"{_MODELS}/metrics/drift")["data"])

    def trial_evidence(self, trial: str) -> Item:
        """GET /v1/models/trials/{id}/evidence"""
        return self._get(f"{_MODELS}/trials/{_part(trial)}/evidence")

    def replicas(self) -> list[Item]:
        """Who follows the log."""
        listed: list[Item] = self._get("/v1/fleet")["data"]
        return listed

    def served(self, replica: str, at: str) -> Item:
        """What a replica served at a time."""
        return self._get("/v1/fleet/served", {"replica": replica, "at": at})

    def rollouts(self) -> list[Item]:
        """Rollouts, newest first."""
        listed: list[Item] = self._get("/v1/fleet/rollouts")["data"]
        return listed

    def roll_out(self, verb: str, body: Mapping[str, Any]) -> Item:
        """POST /v1/fleet/rollouts, or a verb on the rollout that runs."""
        if not verb:
            return dict(self._post("/v1/fleet/rollouts", body)["data"])
        running = [one for one in self.rollouts() if one["running"]]
        if not running:
            raise NotFound("no rollout runs")
        return dict(self._post(f"/v1/fleet/rollouts/{running[0]['id']}/{verb}", body)["data"])

    def end_trial(self, trial: str, how: str) -> Item:
        """POST /v1/models/trials/{id}/promote or /abort"""
        return self._post(f"{_MODELS}/trials/{_part(trial)}/{how}", {})

    def blame(self, query: Mapping[str, Any]) -> Item:
        """Who touched a parameter."""
        return self._get(f"{_MODELS}/blame", _texts(query))

    def what_if(self, asked: Mapping[str, Any]) -> Item:
        """POST /v1/models/replay"""
        return self._post(f"{_MODELS}/replay", asked)

    def what_if_each(self, asked: Mapping[str, Any]) -> list[Item]:
        """The same of each of `without` left out by itself, or why that is not told."""
        told: list[Item] = []
        for name in asked["without"]:
            try:
                told.append(self.what_if({**asked, "without": [name]}))
            except WhatIfRefused as error:
                told.append({"without": [name], "reason": str(error)})
        return told

    def bisect(self, asked: Mapping[str, Any]) -> Item:
        """POST /v1/models/bisect"""
        return self._post(f"{_MODELS}/bisect", asked)

    def bisect_picture(self, asked: Mapping[str, Any]) -> str:
        """The same as SVG."""
        body = {**asked, "format": "svg"}
        return self._reply("POST", f"{_MODELS}/bisect", json=body).text

    def reproduce(self, asked: Mapping[str, Any]) -> Item:
        """POST /v1/models/reproduce"""
        return self._post(f"{_MODELS}/reproduce", asked)

    def adopt(self, asked: Mapping[str, Any]) -> Item:
        """POST /v1/models/adopt_what_if; what the update says of itself, and whether it stands."""
        return {"success": True, **self._post(f"{_MODELS}/adopt_what_if", asked)["data"]}

    def save(self, asked: Mapping[str, Any], out: Path) -> Item:
        """Write a state's tensors to a file; what the server says of it."""
        body = {**asked, "format": "safetensors"}
        try:
            with (
                self._client() as http,
                http.stream("POST", f"{_MODELS}/replay", json=body) as reply,
                out.open("wb") as file,
            ):
                if reply.status_code != 200:
                    reply.read()
                    raise self._refusal(reply)
                for piece in reply.iter_bytes():
                    file.write(piece)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        except OSError as error:
            raise StorageError(f"cannot write {out}: {error}") from error
        facts = {
            "model": reply.headers["x-weights-model"],
            "seq": int(reply.headers["x-weights-seq"]),
            "version": reply.headers["x-weights-version"],
            "digest": reply.headers["x-weights-digest"],
        }
        words = reply.headers.get("x-weights-what-if")
        return facts if words is None else {**facts, "what_if": words}

    def metrics(self, query: Mapping[str, Any], by: str, number: int) -> list[Item]:
        """Measurements that pass the filters of `GET /v1/models/metrics`, newest first."""
        told: list[Item] = []
        asked: dict[str, Any] = {**query, "by": by}
        while len(told) < number:
            asked["limit"] = str(min(_MEASUREMENTS, number - len(told)))
            page = self._get(f"{_MODELS}/metrics", asked)
            told += page["data"]
            if not page["has_more"]:
                break
            asked["after"] = page["last_id"]
        return told

    def parameters(self) -> list[Item]:
        """Every parameter, with its dtype, shape and digest."""
        found: list[Item] = []
        asked = {"limit": str(_PAGE)}
        while True:
            page = self._get(f"{_MODELS}/parameters", asked)
            found += page["data"]
            if not page["has_more"]:
                return found
            asked["after"] = page["last_id"]

    # Writes

    def replace(self, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, Any]) -> Item:
        """POST /v1/models/batch_update: these parameters, as one event."""
        if not tensors:
            return {"success": True, "changed": 0}
        from safetensors.torch import save

        reply = self._reply(
            "POST",
            f"{_MODELS}/batch_update",
            params={"update_type": "replace", "metadata": json.dumps(metadata)},
            content=save(dict(tensors)),
            headers={"content-type": "application/octet-stream"},
        )
        return {"success": True, **reply.json()["data"], "changed": len(tensors)}

    def update(self, body: Mapping[str, Any]) -> Item:
        """POST /v1/models/incremental_update; what it says of itself, and whether it stands."""
        return {"success": True, **self._post(f"{_MODELS}/incremental_update", body)["data"]}

    def enhanced_update(self, body: Mapping[str, Any]) -> Item:
        """POST /v1/models/enhanced_update"""
        return self._post(f"{_MODELS}/enhanced_update", body)

    def create_version(self, description: str) -> str:
        """POST /v1/models/create_version; the version's id."""
        made = self._post(f"{_MODELS}/create_version", {"description": description})
        return str(made["data"]["version_id"])

    def pin(self, version_id: str, pinned: bool) -> None:
        """POST /v1/models/versions/{id}/pin or /unpin"""
        verb = "pin" if pinned else "unpin"
        self._post(f"{_MODELS}/versions/{_part(version_id)}/{verb}", {})

    def retire(self, version_id: str) -> None:
        """POST /v1/models/versions/{id}/retire"""
        self._post(f"{_MODELS}/versions/{_part(version_id)}/retire", {})

    def hold(self, version_id: str, reason: str) -> Item:
        """POST /v1/models/holds"""
        return self._post(f"{_MODELS}/holds", {"version_id": version_id, "reason": reason})

    def release(self, hold_id: str, reason: str) -> Item:
        """POST /v1/models/holds/{id}/release"""
        path = f"{_MODELS}/holds/{_part(hold_id)}/release"
        return self._post(path, {"reason": reason})

    def redact(self, asked: Mapping[str, Any]) -> Item:
        """POST /v1/models/redact"""
        return self._post(f"{_MODELS}/redact", asked)

    def rollback(self, position: str) -> int:
        """POST /v1/models/rollback; the seq of its event."""
        reply = self._reply("POST", f"{_MODELS}/rollback", json={"version_id": position})
        return int(reply.headers["etag"].strip('"'))

    def push_metrics(self, samples: Sequence[Mapping[str, Any]]) -> Item:
        """POST /v1/models/metrics"""
        return self._post(f"{_MODELS}/metrics", {"samples": list(samples)})

    def verify(self) -> Item:
        """POST /v1/models/verify"""
        return self._post(f"{_MODELS}/verify", {})


def _texts(query: Mapping[str, Any]) -> dict[str, str]:
    """A query's values as they stand in a URL."""
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in query.items()
        if value is not None
    }
