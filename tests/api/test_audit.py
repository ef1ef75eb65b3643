"""The lists: cursors that miss and double nothing, filters, and one event whole."""

import pytest

UPDATE = "/v1/models/incremental_update"


@pytest.fixture
def some_history(http) -> None:
    for n in range(6):
        name = ["2.bias", "0.bias"][n % 2]
        sent = {"parameter_name": name, "update_data": 0.001, "metadata": {"n": n}}
        assert http.post(UPDATE, json=sent).status_code == 200
    http.post("/v1/models/create_version", json={"description": "listed"})
    http.post(
        UPDATE, json={"parameter_name": "2.weight", "update_data": 0, "update_type": "replace"}
    )


def every(http, **query) -> list[dict]:
    items: list[dict] = []
    while True:
        page = http.get("/v1/models/updates", params=query).json()
        assert page["object"] == "list"
        items += page["data"]
        if not page["has_more"]:
            return items
        assert page["last_id"] == page["data"][-1]["id"]
        query["after"] = page["last_id"]


def parameters_of(item: dict) -> set[str]:
    """Those that an applied update counts for; the server's other tests leave updates of all kinds,
    so of several parameters, or of those alone that a rule changed, too."""
    facts = item["facts"]
    named = {one["parameter"] for one in facts.get("updates", [facts]) if "parameter" in one}
    return named or {one["name"].removeprefix("weights/") for one in facts["tensors"]}


@pytest.mark.usefixtures("some_history")
def test_pages_cover_the_log_newest_first(http) -> None:
    newest = http.get("/v1/models/updates", params={"limit": 1}).json()["data"][0]["seq"]
    assert [item["seq"] for item in every(http, limit=3)] == list(range(newest, -1, -1))
    assert len(http.get("/v1/models/updates").json()["data"]) == min(20, newest + 1)


@pytest.mark.usefixtures("some_history")
def test_before_goes_back_up_the_list(http) -> None:
    items = http.get("/v1/models/updates", params={"limit": 6}).json()["data"]
    page = http.get("/v1/models/updates", params={"limit": 2, "before": items[4]["id"]}).json()
    assert page["data"] == items[2:4]
    assert page["has_more"] is True


@pytest.mark.usefixtures("some_history")
def test_filters(http) -> None:
    log = every(http, limit=100)
    by_parameter = every(http, parameter="*.bias", limit=2)
    assert by_parameter == [
        item
        for item in log
        if item["kind"] == "updated" and any(name.endswith(".bias") for name in parameters_of(item))
    ]
    assert {item["kind"] for item in every(http, outcome="rejected")} == {"update_rejected"}
    assert {item["kind"] for item in every(http, outcome="applied")} == {"updated"}
    kinds = every(http, kind=["version_created", "registered"])
    assert kinds == [i for i in log if i["kind"] in ("version_created", "registered")]
    middle = log[len(log) // 2]
    since = every(http, since=middle["recorded_at"])
    assert since == [item for item in log if item["recorded_at"] >= middle["recorded_at"]]
    until = every(http, until=middle["recorded_at"], limit=4)
    assert until == [item for item in log if item["recorded_at"] <= middle["recorded_at"]]
    assert [i["seq"] for i in every(http, min_seq=2, max_seq=4)] == [4, 3, 2]


@pytest.mark.usefixtures("some_history")
def test_one_event_is_shown_by_each_of_its_names(http) -> None:
    for item in http.get("/v1/models/updates", params={"limit": 8}).json()["data"]:
        assert http.get(f"/v1/models/updates/{item['id']}").json() == item
        assert http.get(f"/v1/models/updates/event_{item['seq']}").json() == item
    updated = http.get("/v1/models/updates", params={"outcome": "applied"}).json()["data"][0]
    assert updated["metadata"]["n"] in range(6)
    assert updated["facts"]["tensors"][0]["changed"] > 0
    refused = http.get("/v1/models/updates", params={"outcome": "rejected"}).json()["data"][0]
    assert refused["facts"]["evidence"]["metric"] == "accuracy"
    assert refused["state_before"] == refused["state_after"]


@pytest.mark.usefixtures("some_history")
def test_parameters(http) -> None:
    page = http.get("/v1/models/parameters").json()
    shapes = {item["name"]: (item["dtype"], item["shape"]) for item in page["data"]}
    assert shapes == {
        "0.weight": ("float32", [64, 64]),
        "0.bias": ("float32", [64]),
        "2.weight": ("float32", [10, 64]),
        "2.bias": ("float32", [10]),
    }
    counts = {item["name"]: item["update_count"] for item in page["data"]}
    applied = every(http, outcome="applied", limit=100)
    for name, count in counts.items():
        assert count == sum(name in parameters_of(item) for item in applied)
    first = http.get("/v1/models/parameters", params={"limit": 3}).json()
    assert first["has_more"] is True
    rest = http.get("/v1/models/parameters", params={"after": first["last_id"]}).json()
    assert first["data"] + rest["data"] == page["data"]


def test_filters_that_exclude_each_other_list_nothing(http) -> None:
    reply = http.get("/v1/models/updates", params={"kind": "registered", "outcome": "applied"})
    assert (reply.status_code, reply.json()["data"]) == (200, [])
