"""The dashboard's pages as the server writes them: whole, escaped, foreign to nothing."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from tests.api.test_command import inside
from tests.dashboard.conftest import HOSTILE
from tests.serving import Server, serving
from weightledger.api.dashboard.facts import marked
from weightledger.api.dashboard.grouping import Run, runs
from weightledger.api.dashboard.sessions import LASTS_S, BrowserPlace, Sessions
from weightledger.api.dashboard.showing import Url, ago, figure, fill
from weightledger.api.dashboard.states import TreeLinks, tree_picture
from weightledger.ledger.events import UPDATED
from weightledger.ledger.store import StateChange

PAGES = [
    "/",
    "/ui/timeline",
    "/ui/timeline?actor=anna&kind=updated&min_norm=0.000001",
    "/ui/timeline?text=night&limit=2",
    "/ui/timeline?metadata.loss=0.02",
    "/ui/timeline?since=2020-01-01&until=2021-01-01",
    "/ui/timeline?min_seq=2&max_seq=5&flat=true",
    "/ui/events/seq:3",
    "/ui/events/v1",
    "/ui/events/update_9",
    "/ui/compare",
    "/ui/compare?from=v1&to=seq:9",
    "/ui/compare?from=v0&to=head&each=true",
    "/ui/parameters",
    "/ui/parameters?text=bias",
    "/ui/parameters/2.bias",
    "/ui/versions",
    "/ui/rollback?to=v1",
    "/ui/rollback?to=head",
    "/ui/metrics",
    "/ui/trials",
    "/ui/fleet",
    "/ui/audit",
    "/ui/keys",
    "/ui/learning",
    "/ui/login",
]
WRONG = {
    "/ui/events/update_99": 404,
    "/ui/events/nothing": 404,
    "/ui/compare?from=v99": 404,
    "/ui/parameters/none": 404,
    "/ui/rollback?to=seq:999": 404,
    "/ui/rollback": 400,
    "/ui/timeline?limit=0": 400,
    "/ui/timeline?limt=3": 400,
    "/ui/timeline?since=tomorrow": 400,
}


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx2.Client]:
    with server.client() as client:
        yield client


class Links(HTMLParser):
    """Everything that a page loads or links to, and what a strict policy does not allow."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.inline: list[str] = []
        self.runs: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src", "action"):
                self.links.append(value or "")
            if name.startswith("on") or name == "style":
                self.inline.append(f"{tag} {name}")
            if name == "data-run":
                self.runs.append(value or "")
        if tag == "script" and not dict(attrs).get("src"):
            self.inline.append("script")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_whole_loads_nothing_foreign_and_runs_nothing_of_others(
    http: httpx2.Client, path: str
) -> None:
    reply = http.get(path)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in reply.headers["content-security-policy"]
    assert "unsafe" not in reply.headers["content-security-policy"]
    page = Links(reply.text)
    assert page.inline == []
    assert all(re.match(r"/(?!/)|#main$", link) for link in page.links)
    assert "<script>document" not in reply.text
    assert "\x1b" not in reply.text
    assert "\u202e" not in reply.text


def test_every_link_leads_somewhere(http: httpx2.Client) -> None:
    links = {link for path in PAGES for link in Links(http.get(path).text).links} - {"#main"}
    assert len(links) > 60
    told = {link: http.get(link, headers={"range": "bytes=0-0"}).status_code for link in links}
    assert {link: status for link, status in told.items() if status >= 400} == {}


@pytest.mark.parametrize(("path", "status"), WRONG.items())
def test_what_is_not_there_is_a_page_that_says_so(
    http: httpx2.Client, path: str, status: int
) -> None:
    reply = http.get(path)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "That did not work" in reply.text


def test_the_first_screen_says_what_is_live_and_what_happened(http: httpx2.Client) -> None:
    text = http.get("/").text
    status = http.get("/v1/models/status").json()
    live = http.get("/readyz").json()
    assert f">{live['seq']}</a>" in text
    assert live["digest"] in text
    assert f"v1 +{status['updates_since_version']}" in text
    assert text.count('class="rolled-back"') == 1
    assert "refused: replace 2.weight" in text


def test_the_rollback_dialog_says_what_it_would_do(http: httpx2.Client) -> None:
    text = http.get("/ui/rollback?to=seq:3").text
    head = http.get("/readyz").json()["seq"]
    assert f'data-if-match="{head}"' in text
    left = re.search(r"(\d+) events that are live now", text)
    assert left is not None
    # Events 4 to 7 and the one after the rollback to v1, which stands at 7.
    assert left[1] == "5"
    assert "weightledger rollback --to seq:3" in text


def test_the_state_of_a_reply_has_its_receipt(http: httpx2.Client) -> None:
    live = http.get("/readyz").json()
    links = Links(http.get(f"/ui/events/seq:{live['seq']}").text).links
    receipt = next(link for link in links if f"digest={live['digest']}" in link)
    written = http.get(receipt)
    assert written.status_code == 200, written.text
    assert written.text == http.get(receipt.partition("?")[0]).text
    assert http.get(receipt.replace(live["digest"], "0" * 64)).status_code == 404


def test_a_version_that_may_be_retired_has_a_button(http: httpx2.Client) -> None:
    text = http.get("/ui/versions").text
    listed = http.get("/v1/models/versions").json()["versions"]
    for one in listed:
        button = f"/v1/models/versions/{one['version_id']}/retire" in text
        assert button is not one["is_active"]


def test_no_page_can_be_framed_or_cached(http: httpx2.Client) -> None:
    headers = http.get("/").headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"


def test_the_learning_page_tells_of_a_rules_update(http: httpx2.Client) -> None:
    assert "No update came from a learning rule" in http.get("/ui/learning").text
    sent = {
        "parameter_name": "2.weight",
        "update_data": 0.1,
        "performance_context": {"accuracy_change": 0.5},
    }
    reply = http.post("/v1/models/enhanced_update", json=sent)
    assert reply.status_code == 200, reply.text
    seq = http.get("/v1/models/updates?limit=1").json()["data"][0]["seq"]
    event = http.get(f"/v1/models/updates/event_{seq}").json()
    text = http.get("/ui/learning").text
    assert f'{{"feedback": {event["facts"]["feedback"]}, "kind": "{event["kind"]}"' in text
    rows = text.partition("<tbody>")[2].split("<tr")
    row = next(row for row in rows if f">{seq}</a>" in row)
    rule = event["facts"]["rule"]["id"]
    assert f"<td>{rule}</td>" in row
    assert "<td>2.weight</td>" in row
    for name in event["facts"]["learnt"]["metrics"]:
        assert name in row


# Doors


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("keyed") / "data", "--api-key", "secret") as running:
        yield running


def entered(keyed: Server) -> tuple[httpx2.Client, str]:
    http = keyed.client()
    reply = http.post("/ui/login", json={"key": "secret"})
    assert reply.status_code == 200
    kept = reply.headers["set-cookie"]
    assert "HttpOnly" in kept
    assert "SameSite=Strict" in kept
    assert "secret" not in kept
    token = re.search(r'data-token="([^"]+)"', http.get("/").text)
    assert token is not None
    return http, token[1]


def test_a_stranger_is_sent_to_the_login_page(keyed: Server) -> None:
    with keyed.client() as http:
        for path in ("/", "/ui/timeline", "/ui/rollback?to=v0"):
            reply = http.get(path)
            assert reply.status_code == 303
            where = urlsplit(reply.headers["location"])
            assert where.path == "/ui/login"
            assert parse_qs(where.query) == {"next": [path]}
            assert f'data-done="{path}"' in http.get(reply.headers["location"]).text
        assert http.get("/ui/part/live").status_code == 401
        for elsewhere in ("//evil.example", "/\\evil.example", "https://evil.example", "/a\nb"):
            text = http.get("/ui/login", params={"next": elsewhere}).text
            assert 'data-done="/"' in text
        assert http.get("/ui/static/dashboard.css").status_code == 200
        assert http.post("/ui/login", json={"key": "wrong"}).status_code == 401
        assert http.post("/ui/login", json={"kee": 1}).status_code == 400
        assert http.get("/v1/models/updates").status_code == 401


def test_a_session_reads_and_writes_with_the_token_of_its_own_pages_only(keyed: Server) -> None:
    http, token = entered(keyed)
    with contextlib.closing(http):
        assert http.get("/v1/models/updates").status_code == 200
        body = {"description": "by hand"}
        own = {"origin": keyed.url, "x-csrf-token": token}
        for lacking in (
            {},
            {"origin": keyed.url},
            {"x-csrf-token": token},
            {**own, "x-csrf-token": "x"},
            {**own, "origin": "http://evil.example"},
            {**own, "origin": "null"},
        ):
            reply = http.post("/v1/models/create_version", json=body, headers=lacking)
            assert reply.status_code == 403, lacking
        assert http.post("/v1/models/create_version", json=body, headers=own).status_code == 200
        event = http.get("/v1/models/updates?limit=1").json()["data"][0]
        assert event["actor"] == http.get("/v1/models/updates?limit=1").json()["data"][0]["actor"]
        assert http.post("/ui/logout", headers=own).status_code == 200
        assert http.get("/").status_code == 303


def test_a_read_only_key_sees_no_buttons(keyed: Server) -> None:
    words = ("keys", "create", "looker", "--scope", "read", "--json")
    status, out, err = inside(*words, "--data-dir", str(keyed.folder))
    assert status == 0, err
    with keyed.client(authorization=f"Bearer {json.loads(out)['key']}") as http:
        versions, dialog = http.get("/ui/versions").text, http.get("/ui/rollback?to=v0").text
    with keyed.client(authorization="Bearer secret") as http:
        assert "Roll back…" in http.get("/ui/versions").text
    assert "Roll back…" not in versions
    assert "Create version" not in versions
    assert 'class="act' not in dialog
    assert "may read only" in dialog


# Parts


def item(seq: int, actor: str | None = "a", kind: str = UPDATED, reason: str | None = None):
    return {"seq": seq, "kind": kind, "actor": actor, "reason": reason}


def test_runs_of_updates_by_one_actor_fold() -> None:
    events = [item(9), *[item(seq, "b") for seq in (8, 7, 6, 5)], item(4, "b", "rolled_back")]
    told = [(run.newest["seq"], run.oldest["seq"], run.folded) for run in runs(events)]
    assert told == [(9, 9, False), (8, 5, True), (4, 4, False)]


def test_whose_run_it_is_stands_in_one_attribute_whatever_the_name() -> None:
    actor = 'a" onfocus="alert(1)" x="'
    listed = [marked({**item(seq, actor), "recorded_at": "2020-01-01T00:00:00Z"}) for seq in (2, 1)]
    text = fill("rows.html", Url(""), runs=[Run(listed, True)], names={}, gap=None, older=None)
    page = Links(text)
    assert page.inline == []
    assert page.runs == [json.dumps([actor, None])]


def test_a_state_with_a_name_stands_by_itself() -> None:
    events = [item(seq) for seq in range(12, 0, -1)]
    told = [(run.newest["seq"], run.oldest["seq"]) for run in runs(events, {6})]
    assert told == [(12, 7), (6, 6), (5, 1)]


def test_every_event_is_told_once() -> None:
    events = [item(seq, "ab"[seq // 5 % 2]) for seq in range(40, 0, -1)]
    told = [event["seq"] for run in runs(events, {20, 11}) for event in run.events]
    assert told == list(range(40, 0, -1))


def test_a_branch_that_was_left_is_grey_and_names_are_escaped() -> None:
    changes = [
        StateChange(0, "registered", 0, None, 1),
        StateChange(1, "updated", 1, 0, 1),
        StateChange(2, "updated", 2, 1, 1),
        StateChange(3, "rolled_back", 1, 1, 1),
        StateChange(4, "updated", 4, 1, 1),
    ]
    picture = tree_picture(changes, {1: ["<v>"]}, 4, TreeLinks("/x:", "/y:{first}-{last}"), 10)
    assert picture.count("<circle") == 4  # a rollback is no state of its own
    assert picture.count('<circle class="left"') == 1
    assert picture.count('<circle class="live"') == 1
    assert "&lt;v&gt;" in picture
    assert "<v>" not in picture


def test_states_that_only_follow_one_another_are_one_line() -> None:
    changes = [StateChange(seq, "updated", seq, seq - 1 if seq else None, 1) for seq in range(1000)]
    picture = tree_picture(changes, {500: ["v1"]}, 999, TreeLinks("/x:", "/y:{first}-{last}"), 10)
    assert picture.count("<circle") == 3
    assert '"/y:501-998"' in picture
    assert "498 states" in picture
    assert "499 states" in picture


def test_commands_on_pages_can_be_copied(http: httpx2.Client) -> None:
    for name in ("2.bias", "2.weight"):
        page = http.get(f"/ui/parameters/{name}").text
        (words,) = re.findall(r"<code>weightledger (blame [^<]*)</code>", page)
        status, _, err = inside(*words.split(), "--url", str(http.base_url))
        assert status == 0, err
    page = http.get("/ui/rollback", params={"to": "2100-01-01 00:00"}).text
    assert "<code>weightledger rollback --to &#39;2100-01-01 00:00&#39; -m" in page


@pytest.mark.parametrize("path", [path for path in PAGES if path != "/ui/login"])
def test_what_can_be_scrolled_has_a_name(http: httpx2.Client, path: str) -> None:
    """Whoever comes to it with the keyboard hears what it is; axe does not ask for it."""
    frames = re.findall(r"<[^>]* tabindex=\"0\"[^>]*>", http.get(path).text)
    assert [one for one in frames if 'role="region" aria-label="' not in one] == []


def test_without_javascript_a_page_says_what_it_lacks(http: httpx2.Client) -> None:
    for path in ("/", "/ui/versions", "/ui/rollback?to=v1"):
        assert "<noscript>" in http.get(path).text


def test_figures_and_times_read_like_people_write_them() -> None:
    assert [figure(None), figure(4096), figure(0.0123456), figure(float("nan"))] == [
        "–",
        "4,096",
        "0.0123",
        "nan",
    ]
    assert ago("2020-01-01T00:00:00Z") == "2020-01-01 00:00 UTC"


def test_a_session_ends_after_its_time() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    place = BrowserPlace("localhost:2242", "")
    kept = replace(place, cookies=f"{place.cookie}={sessions.open('k')}; a=b")
    assert sessions.find(kept) is not None
    # A server of another port, or below another path, has a cookie of its own.
    assert sessions.find(replace(kept, host="localhost:2243")) is None
    assert sessions.find(replace(kept, base="/ledger")) is None
    now[0] = LASTS_S + 1.0
    assert sessions.find(kept) is None
    assert sessions.find(replace(place, cookies=f"{place.cookie}=; a=b")) is None
    assert sessions.find(replace(place, cookies="\x00garbage")) is None


def test_the_hostile_text_is_there_to_be_shown(http: httpx2.Client) -> None:
    versions = http.get("/v1/models/versions").json()["versions"]
    assert HOSTILE in [version["description"] for version in versions]


def test_what_waits_for_a_second_person_is_told_and_can_be_decided(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("waiting") / "data"
    with (
        serving(folder, "--api-key", "secret", "--two-person-rule") as running,
        running.client(authorization="Bearer secret") as http,
    ):
        assert "Waiting" not in http.get("/").text
        reply = http.post("/v1/models/create_version", json={"description": "by one alone"})
        assert reply.status_code == 202
        for path in ("/", "/ui/audit"):
            text = http.get(path).text
            assert "by one alone" in text
            assert re.search(r'data-path="/v1/models/approvals/[^"]+/approve"', text)
