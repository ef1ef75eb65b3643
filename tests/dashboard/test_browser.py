"""The dashboard in a real Chromium: a whole story, nothing foreign, usable by everyone."""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from benchmarks.chromium import scheme, sized
from tests.dashboard.conftest import update, write
from tests.dashboard.proxy import proxied
from tests.dashboard.test_pages import PAGES
from tests.serving import Server, serving
from tests.waiting import until

AXE = files("axe_core_python").joinpath("axe.min.js").read_text()
# What axe tells is left to people's judgement below these.
SERIOUS = {"serious", "critical"}


@pytest.fixture
def page(browser: webdriver.Chrome, server: Server) -> Iterator[webdriver.Chrome]:
    """A browser whose pages wrote no error and asked nobody else."""
    browser.get_log("browser")
    browser.get_log("performance")
    yield browser
    complaints = [
        line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"
    ]
    assert complaints == []
    assert foreign(browser, server) == set()


def foreign(browser: webdriver.Chrome, server: Server) -> set[str]:
    """The hosts that were asked for anything beside the server."""
    asked = set()
    for line in browser.get_log("performance"):
        message = json.loads(line["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "chrome"))}
    return hosts - {urlsplit(server.url).netloc}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that no other test looks at."""
    with serving(tmp_path_factory.mktemp("story") / "data") as running:
        write(running)
        yield running


def text_of(page: webdriver.Chrome) -> str:
    """What is to be read on a page; asked in one step, for pages come and go meanwhile."""
    return str(page.execute_script("return document.body?.innerText ?? ''"))


@pytest.mark.parametrize("path", [path for path in PAGES if "?" not in path or "to=" in path])
def test_a_page_is_usable_by_everyone(page: webdriver.Chrome, server: Server, path: str) -> None:
    page.set_window_size(1280, 900)
    wrong = {}
    # In other colours a page is another to the one rule that looks at colours and is on.
    of_colours = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
    for colours, rules in (("light", {}), ("dark", of_colours)):
        scheme(page, colours)
        page.get(server.url + path)
        page.execute_script(AXE)
        told = page.execute_async_script(
            "axe.run({resultTypes: ['violations'], ...arguments[0]}).then(arguments[1])", rules
        )
        wrong |= {
            (colours, rule["id"]): [node["target"] for node in rule["nodes"]]
            for rule in told["violations"]
            if rule["impact"] in SERIOUS
        }
    assert wrong == {}
    assert page.title != "owned"


def test_what_is_too_wide_scrolls_in_its_own_frame(page: webdriver.Chrome, server: Server) -> None:
    wide = {}
    for path in ("/", "/ui/timeline", "/ui/events/v1", "/ui/versions", "/ui/rollback?to=v1"):
        page.get(server.url + path)
        for width in (360, 2560):
            sized(page, width, 900)
            wide[path, width] = page.execute_script(
                "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
            )
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert set(wide.values()) == {0}, wide


def test_paper_shows_what_was_found_and_no_buttons(page: webdriver.Chrome, server: Server) -> None:
    page.get(server.url + "/ui/versions")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not page.find_element(By.CSS_SELECTOR, "nav").is_displayed()
    assert not page.find_element(By.CSS_SELECTOR, ".acts").is_displayed()
    assert "v1" in page.find_element(By.TAG_NAME, "table").text
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_keys_walk_the_timeline(page: webdriver.Chrome, server: Server) -> None:
    page.get(server.url + "/ui/timeline")
    body = page.find_element(By.TAG_NAME, "body")
    body.send_keys("j", "j")
    here = page.find_element(By.CSS_SELECTOR, "tr.here").get_attribute("data-href")
    body.send_keys(Keys.ENTER)
    until(lambda: page.current_url == server.url + str(here), "enter opens the event")
    page.back()
    page.find_element(By.TAG_NAME, "body").send_keys("/")
    assert page.switch_to.active_element.get_attribute("name") == "text"


def test_a_run_unfolds(page: webdriver.Chrome, server: Server) -> None:
    page.get(server.url + "/ui/timeline")
    fold = page.find_element(By.CSS_SELECTOR, ".unfold")
    assert fold.get_attribute("aria-expanded") == "false"
    fold.click()
    until(lambda: page.find_elements(By.CSS_SELECTOR, ".inside"), "its events show")
    first, last, count = (
        int(page.find_element(By.CSS_SELECTOR, ".fold").get_attribute(f"data-{name}") or "")
        for name in ("first", "last", "count")
    )
    inside = page.find_elements(By.CSS_SELECTOR, ".inside tr")
    seqs = [int(row.get_attribute("data-seq") or "") for row in inside]
    assert seqs == list(range(last, first - 1, -1))
    assert len(seqs) == count
    assert fold.get_attribute("aria-expanded") == "true"
    fold.click()
    until(lambda: not page.find_elements(By.CSS_SELECTOR, ".inside"), "they are gone")


def test_a_time_is_chosen_on_the_strip(page: webdriver.Chrome, server: Server) -> None:
    page.set_window_size(1280, 900)
    page.get(server.url + "/ui/timeline")
    bars = page.find_elements(By.CSS_SELECTOR, "#strip a[data-since]")
    last = bars[-1].get_attribute("data-since")
    strip = page.find_element(By.CSS_SELECTOR, "#strip .hit")
    end = page.find_elements(By.CSS_SELECTOR, "#strip .hit")[-1]
    ActionChains(page).move_to_element(end).click_and_hold().release().perform()
    until(lambda: "since=" in page.current_url, "the time is in the address")
    asked = parse_qs(urlsplit(page.current_url).query)
    assert asked["since"] == [last]
    assert asked["until"][0] > asked["since"][0]
    assert "all of the time" in text_of(page)
    assert strip is not None


def test_a_filter_is_in_the_address(page: webdriver.Chrome, server: Server) -> None:
    page.get(server.url + "/ui/timeline")
    page.find_element(By.NAME, "actor").send_keys("anna")
    page.find_element(By.CSS_SELECTOR, ".filters button").click()
    until(lambda: page.current_url.endswith("/ui/timeline?actor=anna"), "the view has its address")
    who = {cell.text for cell in page.find_elements(By.CSS_SELECTOR, "td.who")}
    assert who == {"anna"}


def test_the_story_of_a_bad_update(browser: webdriver.Chrome, own: Server) -> None:
    page, server = browser, own
    page.set_window_size(1280, 900)
    timeline = page.current_window_handle
    page.get(server.url + "/ui/timeline")
    until(lambda: "● live" in text_of(page), "the page listens")
    with server.client(**{"x-actor": "mallory", "x-reason": "a bad idea"}) as http:
        sent = {"parameter_name": "0.bias", "update_data": 0.5, "learning_rate": 0.02}
        bad = http.post("/v1/models/incremental_update", json=sent).json()["data"]["update_id"]
        seq = http.get(f"/v1/models/updates/{bad}").json()["seq"]

    # It is seen without loading the page again, and opened.
    until(lambda: "a bad idea" in text_of(page), "the update shows by itself")
    page.switch_to.new_window("tab")
    page.get(f"{server.url}/ui/events/{bad}")
    assert "mallory" in text_of(page)
    assert "0.bias" in text_of(page)

    # The dialog wants a reason, and says what it does.
    page.find_element(By.PARTIAL_LINK_TEXT, "Roll back to before it").click()
    until(lambda: "What is left behind" in text_of(page), "the dialog is there")
    assert "1 event that is live now" in text_of(page)
    button = page.find_element(By.CSS_SELECTOR, "button.danger")
    button.click()
    assert "/ui/rollback" in page.current_url
    page.find_element(By.NAME, "x-reason").send_keys("undo “a bad idea”")
    button.click()
    until(lambda: page.current_url == server.url + "/", "it is done")
    with server.client() as http:
        last = http.get("/v1/models/updates?limit=1").json()["data"][0]
    assert last["kind"] == "rolled_back"
    assert last["reason"] == "undo “a bad idea”"
    assert last["state_after"] == state_before(server, seq)

    # Whoever looks at the timeline sees it too.
    page.close()
    page.switch_to.window(timeline)
    until(lambda: "undo “a bad idea”" in text_of(page), "the rollback shows by itself")


def state_before(server: Server, seq: int) -> str:
    with server.client() as http:
        digest: str = http.get(f"/v1/models/updates/event_{seq}").json()["state_before"]
    return digest


def test_the_second_of_two_people_is_told(browser: webdriver.Chrome, own: Server) -> None:
    server = own
    browser.get(server.url + "/ui/rollback?to=v1")
    with server.client(**{"x-reason": "by the other one"}) as http:
        sent = {"parameter_name": "2.bias", "update_data": 0.01}
        http.post("/v1/models/incremental_update", json=sent).raise_for_status()
        head = http.get("/readyz").json()["seq"]
    browser.find_element(By.NAME, "x-reason").send_keys("mine")
    browser.find_element(By.CSS_SELECTOR, "button.danger").click()
    until(lambda: "Somebody else changed the model" in text_of(browser), "it is told")
    # What the other one did stands there too.
    until(lambda: "by the other one" in text_of(browser), "it is told what happened")
    with server.client() as http:
        assert http.get("/readyz").json()["seq"] == head


def test_updates_that_come_one_after_the_other_are_one_line_that_grows(
    browser: webdriver.Chrome, own: Server
) -> None:
    browser.get(own.url + "/ui/timeline")
    until(lambda: "● live" in text_of(browser), "the page listens")
    with own.client(**{"x-actor": "looper", "x-reason": "a long run"}) as http:
        for number in range(30):
            update(http, 0.001 * number)
        last = http.get("/readyz").json()["seq"]

    def shown() -> set[int]:
        """The seqs that the rows of the run stand for."""
        script = """return [...document.querySelectorAll("#events tbody")]
            .filter((body) => body.textContent.includes("looper"))
            .map((body) => [body.dataset.first ?? body.rows[0].dataset.seq,
                            body.dataset.last ?? body.rows[0].dataset.seq])"""
        stretches = browser.execute_script(script)
        return {seq for first, end in stretches for seq in range(int(first), int(end) + 1)}

    until(lambda: shown() == set(range(last - 29, last + 1)), "every one is told")
    assert f"seq {last}" in browser.find_element(By.ID, "live").text.replace("\n", " ")


def test_a_server_that_goes_and_comes_back_is_followed_again(
    browser: webdriver.Chrome, own: Server
) -> None:
    browser.get(own.url + "/ui/timeline")
    until(lambda: "● live" in text_of(browser), "the page listens")
    own.kill()
    until(lambda: "The server has not answered since" in text_of(browser), "the page says so")
    own.start()
    with own.client(**{"x-reason": "while nobody looked"}) as http:
        update(http, 0.004)
    until(lambda: "while nobody looked" in text_of(browser), "nothing was missed")
    until(lambda: "● live" in text_of(browser), "it is live again")
    assert "has not answered" not in text_of(browser)
    browser.get_log("browser")  # it says that the server was gone


def enter(browser: webdriver.Chrome) -> None:
    """Show the key on the login page, and wait for the page that was asked for."""
    browser.find_element(By.NAME, "key").send_keys("secret")
    browser.find_element(By.TAG_NAME, "button").click()
    until(lambda: "● live" in text_of(browser), "the page listens")


def test_a_session_that_has_ended_is_told_and_taken_up_again(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    with serving(tmp_path / "data", "--api-key", "secret") as keyed:
        browser.get(keyed.url + "/ui/timeline?actor=nobody")
        enter(browser)
        assert browser.current_url == keyed.url + "/ui/timeline?actor=nobody"
        # A session ends with its server.
        keyed.kill()
        keyed.start()
        until(lambda: "Your session has ended" in text_of(browser), "the page says so")
        browser.find_element(By.LINK_TEXT, "Log in again").click()
        enter(browser)
        assert browser.current_url == keyed.url + "/ui/timeline?actor=nobody"
        browser.get("about:blank")  # the page would look for its server, and complain
    browser.get_log("browser")


def test_a_server_below_a_path_of_a_proxy(browser: webdriver.Chrome, tmp_path: Path) -> None:
    options = ("--api-key", "secret", "--root-path", "/ledger")
    with serving(tmp_path / "data", *options) as keyed, proxied(keyed.url, "/ledger") as url:
        browser.get(url + "/ledger/ui/versions")
        browser.find_element(By.NAME, "key").send_keys("secret")
        browser.find_element(By.TAG_NAME, "button").click()
        until(lambda: "● live" in text_of(browser), "the stream comes through")
        assert browser.current_url == url + "/ledger/ui/versions"
        links = browser.execute_script("return [...document.links].map((link) => link.pathname)")
        assert [link for link in links if not link.startswith("/ledger/")] == []
        (kept,) = [one for one in browser.get_cookies() if one["path"] != "/"]
        assert kept["path"] == "/ledger"
        browser.find_element(By.NAME, "description").send_keys("through the proxy")
        browser.find_element(By.CSS_SELECTOR, ".act button").click()
        until(lambda: "through the proxy" in text_of(browser), "writes come through")
    assert [line for line in browser.get_log("browser") if "/ledger" not in line["message"]] == []


def test_a_trial_is_seen_over_time_and_promoted(browser: webdriver.Chrome, tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--policy", "safe") as trying:
        browser.get(trying.url + "/ui/trials")
        assert "No update is on trial" in text_of(browser)
        with trying.client() as http:
            update(http, 0.02)
            for _ in range(40):
                http.post("/invocations", json={"inputs": [[0.5] * 64]}).raise_for_status()
        browser.get(trying.url + "/ui/trials")
        until(lambda: browser.find_elements(By.CSS_SELECTOR, ".evidence canvas"), "it is drawn")
        assert "harm is more than" in text_of(browser)
        assert "needed to show it" in text_of(browser)
        browser.find_element(By.XPATH, "//button[.='Promote']").click()
        until(lambda: "No update is on trial" in text_of(browser), "it has ended")
        assert "● promoted" in text_of(browser)
        with trying.client() as http:
            page = http.get("/ui/events/update_1").text
        assert "Known since" in page
        assert "promoted, by policy safe" in page


def test_a_key_is_made_and_revoked(browser: webdriver.Chrome, tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--api-key", "secret") as keyed:
        browser.get(keyed.url + "/ui/keys")
        browser.find_element(By.NAME, "key").send_keys("secret")
        browser.find_element(By.TAG_NAME, "button").click()
        until(lambda: "A new key" in text_of(browser), "the page is there")
        browser.find_element(By.NAME, "name").send_keys("looker")
        Select(browser.find_element(By.NAME, "scope")).select_by_visible_text("read")
        browser.find_element(By.XPATH, "//button[.='Create']").click()
        until(lambda: "shown this once" in text_of(browser), "its secret is shown")
        secret = text_of(browser).partition("shown this once: ")[2].split()[0]
        with keyed.client(authorization=f"Bearer {secret}") as http:
            assert http.get("/v1/models").status_code == 200
            text = http.get("/ui/keys").text
            assert "Keys are shown to keys with scope admin" in text
            assert "looker" not in text.partition("<main")[2]
            browser.refresh()
            browser.find_element(By.XPATH, "//button[.='Revoke']").click()
            browser.switch_to.alert.accept()
            until(lambda: "✖ revoked" in text_of(browser), "it is revoked")
            assert http.get("/v1/models").status_code == 401


def test_what_passes_filters_is_a_file(browser: webdriver.Chrome, server: Server) -> None:
    browser.get(server.url + "/ui/audit")
    browser.find_element(By.CSS_SELECTOR, "#export [name=actor]").send_keys("anna")
    browser.find_element(By.XPATH, "//button[.='CSV']").click()
    with server.client() as http:
        count = len(http.get("/v1/models/updates?actor=anna&limit=100").json()["data"])
    until(lambda: f"{count} events" in text_of(browser), "it says how many there are")


def test_feedback_is_drawn_over_time(browser: webdriver.Chrome, own: Server) -> None:
    lesson = {"parameter_name": "2.weight", "update_data": 0.001}
    with own.client() as http:
        for change in (0.5, -0.25):
            sent = {**lesson, "performance_context": {"accuracy_change": change}}
            http.post("/v1/models/enhanced_update", json=sent).raise_for_status()
    browser.get(own.url + "/ui/learning")
    until(lambda: browser.find_elements(By.CSS_SELECTOR, ".charts canvas"), "it is drawn")
    assert "feedback\n-0.25" in text_of(browser)


def test_ages_are_written_where_they_are_seen(page: webdriver.Chrome, server: Server) -> None:
    page.set_window_size(1280, 900)
    page.get(server.url + "/ui/timeline?flat=true")
    page.execute_script(_AGED)
    places = page.execute_script(_AGES)[2]
    until(lambda: page.execute_script(_AGES)[0] != "99 h ago", f"the first is new: {places}")
    first, last, places = page.execute_script(_AGES)
    assert first.endswith(" ago")
    assert last == "99 h ago", places


_AGED = """
const table = document.querySelector("#events table");
const row = table.tBodies[0];
for (let n = 0; n < 100; n++) table.append(row.cloneNode(true));
for (const time of table.querySelectorAll(".when time")) time.textContent = "99 h ago";
table.scrollIntoView();
"""
_AGES = """
dispatchEvent(new Event("scrollend"));
const times = [...document.querySelector("#events table").querySelectorAll(".when time")];
const told = (time) => [time.textContent, time.dateTime, time.getBoundingClientRect().toJSON()];
const ends = [times[0], times[times.length - 1]];
return [...ends.map((time) => time.textContent), [innerHeight, new Date(), ...ends.map(told)]];
"""


def test_rows_lie_in_groups_that_are_laid_out_where_they_are_seen(
    page: webdriver.Chrome, server: Server
) -> None:
    page.set_window_size(1280, 900)
    page.get(server.url + "/ui/timeline?flat=true")
    sizes, skipped, places, heads = page.execute_async_script(_GROUPED)
    assert sum(sizes) > 1000
    assert max(sizes) <= 50
    assert skipped > 0
    assert len(places) == 1, "the columns of all groups stand below each other"
    assert heads[0] > 10
    assert set(heads[1:]) == {0}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert page.execute_script(_SKIPPED) == 0, "paper has every row"
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    page.find_element(By.TAG_NAME, "body").send_keys("j" * 60)
    assert page.execute_script(_AT) == 59


_AT = """
return [...document.querySelectorAll("#events tr[data-href]")]
    .findIndex((row) => row.matches(".here"));
"""
_SKIPPED = """
return [...document.querySelectorAll("#events tbody")]
    .filter((body) => !body.checkVisibility({ contentVisibilityAuto: true })).length;
"""
_GROUPED = """
const done = arguments[0];
const copies = [];
const body = document.querySelector("#events tbody");
for (let n = 0; n < 1000; n++) copies.push(body.cloneNode(true));
const name = "of a long and winding name";
for (const copy of copies.slice(0, 200)) copy.querySelector(".who").textContent = name;
Dashboard.append(copies);
requestAnimationFrame(() => requestAnimationFrame(() => {
  const groups = [...document.querySelectorAll("#events > .group")];
  const skipped = groups.filter((group) =>
      !group.querySelector("tbody").checkVisibility({ contentVisibilityAuto: true })).length;
  const places = groups.map((group) => [...group.querySelector("tbody tr").cells]
      .map((cell) => Math.round(cell.getBoundingClientRect().left)).join());
  done([groups.map((group) => group.querySelectorAll("tr[data-href]").length), skipped,
        [...new Set(places)],
        groups.map((group) => group.querySelector("thead").getBoundingClientRect().height)]);
}));
"""


def test_live_rows_go_into_the_first_group_which_is_split_where_no_run_is(
    browser: webdriver.Chrome, own: Server
) -> None:
    browser.get(own.url + "/ui/timeline")
    until(lambda: "● live" in text_of(browser), "the page listens")
    browser.execute_script(_LONG_GROUP)
    with own.client(**{"x-actor": "splitter"}) as http:
        update(http, 0.003)
    until(lambda: "splitter" in text_of(browser), "the row is there")
    numbers, heads = browser.execute_script(_SPLIT)
    assert [number for group in numbers for number in group] == list(range(120))
    assert len(numbers) == len(heads) == 2
    assert numbers[1] == list(range(60, 120)), "the run stays with what it was unfolded to"
    assert heads[0] == heads[1]


_LONG_GROUP = """
const table = document.querySelector("#events table");
const body = document.querySelector("#events tbody");
for (let n = 0; n < 120; n++) {
  const copy = body.cloneNode(true);
  copy.dataset.number = n;
  copy.classList.toggle("inside", n > 60 && n < 90);
  table.append(copy);
}
for (const other of [...table.tBodies]) if (!other.dataset.number) other.remove();
"""
_SPLIT = """
const groups = [...document.querySelectorAll("#events > .group")];
const numbers = (group) =>
    [...group.querySelectorAll("[data-number]")].map((body) => Number(body.dataset.number));
return [groups.map(numbers),
        groups.map((group) => group.querySelector("colgroup + thead").textContent)];
"""
