"""The dashboard in a real Chromium: a whole story, nothing foreign, usable by everyone."""

import json
from collections.abc import Iterator
from importlib.resources import files
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.dashboard.conftest import write
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
    return page.find_element(By.TAG_NAME, "body").text


@pytest.mark.parametrize("path", [path for path in PAGES if "?" not in path or "to=" in path])
def test_a_page_is_usable_by_everyone(page: webdriver.Chrome, server: Server, path: str) -> None:
    page.set_window_size(1280, 900)
    page.get(server.url + path)
    page.execute_script(AXE)
    told = page.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    wrong = {
        rule["id"]: [node["target"] for node in rule["nodes"]]
        for rule in told["violations"]
        if rule["impact"] in SERIOUS
    }
    assert wrong == {}
    assert page.title != "owned"


@pytest.mark.parametrize("width", [500, 2560])
def test_what_is_too_wide_scrolls_in_its_own_frame(
    page: webdriver.Chrome, server: Server, width: int
) -> None:
    page.set_window_size(width, 900)
    wide = {}
    for path in ("/", "/ui/timeline", "/ui/events/v1", "/ui/versions", "/ui/rollback?to=v1"):
        page.get(server.url + path)
        wide[path] = page.execute_script(
            "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
        )
    assert set(wide.values()) == {0}, wide


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
    folded = page.find_element(By.CSS_SELECTOR, "tbody.folded")
    assert not folded.is_displayed()
    fold.click()
    assert folded.is_displayed()
    assert fold.get_attribute("aria-expanded") == "true"


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
    assert "1 events that are live now" in text_of(page)
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
    with server.client() as http:
        sent = {"parameter_name": "2.bias", "update_data": 0.01}
        http.post("/v1/models/incremental_update", json=sent).raise_for_status()
        head = http.get("/readyz").json()["seq"]
    browser.find_element(By.NAME, "x-reason").send_keys("mine")
    browser.find_element(By.CSS_SELECTOR, "button.danger").click()
    until(lambda: "Somebody else changed the model" in text_of(browser), "it is told")
    with server.client() as http:
        assert http.get("/readyz").json()["seq"] == head
