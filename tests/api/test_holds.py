"""Legal holds and redaction at a server: by REST and by command."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.test_command import inside
from tests.in_process import Here, here

UPDATE = {"parameter_name": "bias", "update_data": 1.0, "learning_rate": 1.0}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    with here(tmp_path_factory.mktemp("holds") / "data", auto_rollback_threshold=0.0) as server:
        yield server


def by_command(*words: str) -> Any:
    status, out, err = inside(*words, "--json")
    assert status == 0, err
    return json.loads(out)


def test_a_hold_by_rest_and_by_command(running: Here) -> None:
    with running.client() as http:
        version = http.post("/v1/models/create_version", json={"description": "x"}).json()
        version_id = version["data"]["version_id"]
        asked = {"version_id": version_id, "reason": "case 12"}
        key = {"Idempotency-Key": "one hold"}
        placed = http.post("/v1/models/holds", json=asked, headers={**key, "X-Actor": "counsel"})
        assert http.post("/v1/models/holds", json=asked, headers=key).json() == placed.json()
        hold = placed.json()
        assert (hold["id"], hold["placed_by"], hold["reason"]) == ("hold_0", "counsel", "case 12")
        event = http.get("/v1/models/updates", params={"kind": "hold_placed"}).json()["data"][0]
        assert event["facts"]["version_id"] == version_id and event["reason"] == "case 12"
        for body, status in (
            ({"version_id": "v99", "reason": "x"}, 404),
            ({"version_id": version_id}, 400),
            ({"version_id": version_id, "reason": ""}, 400),
            ({"version_id": version_id, "reason": " "}, 400),
        ):
            assert http.post("/v1/models/holds", json=body).status_code == status
        other = {"X-Reason": "something else"}
        assert http.post("/v1/models/holds", json=asked, headers=other).status_code == 400
    at = ("--data-dir", str(running.folder))
    second = by_command(
        "hold", "place", version_id, "-m", "case 13", "--actor", "ana", "--offline", *at
    )
    standing = [one["id"] for one in by_command("hold", "list", "--standing", *at)]
    assert standing == ["hold_1", "hold_0"]
    where = ("--url", running.url)
    released = by_command("hold", "release", second["id"], "-m", "closed", *where)
    assert released["release_reason"] == "closed"
    assert [one["id"] for one in by_command("hold", "list", "--standing", *where)] == ["hold_0"]
    status, _, err = inside("hold", "release", "hold_1", "-m", "again", *where)
    assert status == 1 and "released already" in err


def test_redaction_over_rest(running: Here) -> None:
    with running.client() as http:
        headers = {"X-Actor": "Ana", "X-Reason": "a night run"}
        done = http.post("/v1/models/incremental_update", json=UPDATE, headers=headers).json()
        update_id = done["data"]["update_id"]
        proof = http.get(f"/v1/models/updates/{update_id}/proof").text
        dry = {"of": "Ana", "reason": "request 118", "dry_run": True}
        told = http.post("/v1/models/redact", json=dry).json()
        assert (told["events"], told["recorded_as"], told["dry_run"]) == ([update_id], [], True)
        assert http.get(f"/v1/models/updates/{update_id}").json()["actor"] == "Ana"
        asked = {"events": [update_id], "reason": "request 118"}
        key = {"Idempotency-Key": "one redaction"}
        first = http.post("/v1/models/redact", json=asked, headers={**key, "X-Actor": "dpo"})
        assert http.post("/v1/models/redact", json=asked, headers=key).json() == first.json()
        event = http.get(f"/v1/models/updates/{update_id}").json()
        assert (event["actor"], event["reason"], event["redacted"]) == (
            None,
            None,
            ["actor", "reason"],
        )
        said = http.get(f"/v1/models/updates/{first.json()['recorded_as'][0]}").json()
        assert (said["kind"], said["actor"], said["reason"]) == ("redacted", "dpo", "request 118")
        # The event's own part of the proof is what it was: only the checkpoint has moved on.
        assert (
            http.get(f"/v1/models/updates/{update_id}/proof").text.splitlines()[1:3]
            == (proof.splitlines()[1:3])
        )
        for body, status in (
            ({"reason": "x"}, 400),
            ({"events": [update_id], "reason": "x"}, 400),  # nothing is left
            ({"events": ["update_99"], "reason": "x"}, 404),
            ({"of": "nobody", "reason": "x"}, 400),
            ({"events": [update_id], "fields": ["description"], "reason": "x"}, 400),
            ({"events": [update_id]}, 400),
        ):
            assert http.post("/v1/models/redact", json=body).status_code == status, body
