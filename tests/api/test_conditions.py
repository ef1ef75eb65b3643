"""ETag and If-Match, Idempotency-Key, request ids: safe to retry, safe to race."""

import concurrent.futures
import uuid

import pytest

UPDATE = "/v1/models/incremental_update"


def update(value: float = 0.001) -> dict:
    return {"parameter_name": "2.bias", "update_data": value}


def test_a_reply_names_the_state_it_left(http) -> None:
    reply = http.post(UPDATE, json=update())
    seq = int(reply.headers["etag"].strip('"'))
    assert http.get("/readyz").json()["seq"] == seq
    assert http.get("/v1/models/status").headers["etag"] == f'"{seq}"'
    served = http.post("/invocations", json={"inputs": [[0.0] * 64]})
    assert served.headers["x-weights-seq"] == str(seq)
    assert served.headers["x-weights-digest"] == http.get("/readyz").json()["digest"]


def test_if_match_lets_exactly_one_of_many_win(http, server) -> None:
    tag = http.get("/v1/models/status").headers["etag"]

    def race(_: int) -> int:
        with server.client() as client:
            return client.post(UPDATE, json=update(), headers={"If-Match": tag}).status_code

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(race, range(16)))
    assert statuses == [200] + [412] * 15
    now = http.get("/v1/models/status").headers["etag"]
    lost = http.post(UPDATE, json=update(), headers={"If-Match": tag})
    assert lost.headers["etag"] == now
    assert http.post(UPDATE, json=update(), headers={"If-Match": now}).status_code == 200
    assert http.post(UPDATE, json=update(), headers={"If-Match": "*"}).status_code == 200


def test_if_match_as_clients_and_proxies_write_it(http) -> None:
    seq = int(http.get("/v1/models/status").headers["etag"].strip('"'))
    tags = [
        '"{}"',
        "{}",
        'W/"{}"',  # what a proxy that compresses replies makes of our tag
        '"1", "{}"',
        '"{}" , "99999"',
        '"foreign",W/"{}"',
        ', "{}" ,',
    ]
    for tag in tags:
        reply = http.post(UPDATE, json=update(), headers={"If-Match": tag.format(seq)})
        assert reply.status_code == 200, (tag, reply.text)
        stale = http.post(UPDATE, json=update(), headers={"If-Match": tag.format(seq)})
        assert stale.status_code == 412, (tag, stale.text)
        seq = int(reply.headers["etag"].strip('"'))
        assert stale.headers["etag"] == f'"{seq}"'
    twice = [("If-Match", '"0"'), ("If-Match", f'"{seq}"')]
    assert http.post(UPDATE, json=update(), headers=twice).status_code == 200


def test_a_tag_of_somebody_else_never_matches(http) -> None:
    reply = http.post(UPDATE, json=update(), headers={"If-Match": '"33a64df5"'})
    assert reply.status_code == 412
    assert reply.json()["error"]["code"] == "precondition_failed"


def test_naming_a_version_does_not_move_the_etag(http) -> None:
    tag = http.get("/v1/models/status").headers["etag"]
    http.post("/v1/models/create_version", json={"description": "x"}, headers={"If-Match": tag})
    assert http.get("/v1/models/status").headers["etag"] == tag


def test_a_retry_gets_the_first_reply_and_happens_once(http) -> None:
    calls = [
        (UPDATE, update(0.002)),
        ("/v1/models/create_version", {"description": "retried"}),
        ("/v1/models/rollback", {"version_id": "head~1"}),
        (UPDATE, {"parameter_name": "2.weight", "update_data": 0, "update_type": "replace"}),
    ]
    for path, body in calls:
        key = {"Idempotency-Key": str(uuid.uuid4())}
        first = http.post(path, json=body, headers=key)
        assert first.status_code == 200
        newest = http.get("/v1/models/updates", params={"limit": 1}).json()["data"][0]
        quoted = {"Idempotency-Key": f'"{key["Idempotency-Key"]}"'}
        assert http.post(path, json=body, headers=key).json() == first.json()
        assert http.post(path, json=body, headers=quoted).json() == first.json()
        assert http.get("/v1/models/updates", params={"limit": 1}).json()["data"][0] == newest


def test_a_rollback_describes_the_state_it_went_to(http) -> None:
    first = http.post(UPDATE, json=update()).json()["data"]["update_id"]
    http.post(UPDATE, json=update())
    data = http.post("/v1/models/rollback", json={"version_id": "head~1"}).json()["data"]
    assert data["description"] == f"State after {first}"


def test_a_key_used_for_another_request_is_refused(http) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    assert http.post(UPDATE, json=update(0.003), headers=key).status_code == 200
    for path, body in (
        (UPDATE, update(0.004)),
        (UPDATE, {**update(0.003), "metadata": {}}),
        ("/v1/models/create_version", {"description": "x"}),
        ("/v1/models/rollback", {"version_id": "seq:0"}),
    ):
        reply = http.post(path, json=body, headers=key)
        assert reply.status_code == 422
        assert reply.json()["error"]["code"] == "idempotency_key_reused"


def test_an_invalid_request_uses_up_no_key(http) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    assert http.post(UPDATE, json=update([1.0]), headers=key).status_code == 400
    assert http.post(UPDATE, json=update(0.005), headers=key).status_code == 200


def test_request_ids_go_in_and_out_and_into_the_log(http) -> None:
    reply = http.post(UPDATE, json=update(), headers={"x-request-id": "req-123"})
    assert reply.headers["x-request-id"] == "req-123"
    item = http.get(f"/v1/models/updates/{reply.json()['data']['update_id']}").json()
    assert item["request_id"] == "req-123"
    assert http.get("/livez").headers["x-request-id"] != http.get("/livez").headers["x-request-id"]
    odd = http.get("/livez", headers={"x-request-id": "a b"})
    assert odd.headers["x-request-id"] != "a b"


@pytest.mark.parametrize("name", ["Idempotency-Key", "X-Actor", "X-Reason"])
def test_two_values_of_one_header_are_refused(http, name: str) -> None:
    """The first was taken without a word, so that a retry with the other was another request."""
    before = http.get("/v1/models/status").headers["etag"]
    twice = [(name, "one"), (name, "two")]
    refused = http.post(UPDATE, json=update(), headers=twice)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == name
    assert http.get("/v1/models/status").headers["etag"] == before
    same = [(name, "the same"), (name, "the same")]
    assert http.post(UPDATE, json=update(), headers=same).status_code == 200
