"""The dashboard in the hands of people: on the keyboard, going back, and when nobody answers."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from benchmarks.chromium import sized
from tests.dashboard.conftest import update, write
from tests.dashboard.proxy import proxied
from tests.dashboard.test_browser import text_of
from tests.serving import Server, serving
from tests.waiting import until


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that no other test looks at."""
    with serving(tmp_path_factory.mktemp("hands") / "data") as running:
        write(running)
        yield running


def listening(browser: webdriver.Chrome, url: str) -> None:
    """Open a page, and wait until it is told what happens."""
    browser.get(url)
    until(lambda: "● live" in text_of(browser), "the page listens")


def seq_of(browser: webdriver.Chrome) -> int:
    """Of what is live, as the page says; in one step, for it is written anew meanwhile."""
    return int(browser.execute_script("return document.querySelector('#live a.num').textContent"))


def updated(browser: webdriver.Chrome, own: Server) -> None:
    """Have the model updated, and wait until the page shows it."""
    before = seq_of(browser)
    with own.client() as http:
        update(http, 0.001)
    until(lambda: seq_of(browser) > before, "the line on top says so")


def focused(browser: webdriver.Chrome) -> str:
    return str(browser.execute_script("return document.activeElement.outerHTML.slice(0, 40)"))


@pytest.mark.parametrize("place", ["#live .copy", "#live a.num", "#tree a"])
def test_what_is_written_anew_keeps_the_focus(
    browser: webdriver.Chrome, own: Server, place: str
) -> None:
    listening(browser, own.url + "/")
    browser.execute_script("document.querySelector(arguments[0]).focus()", place)
    updated(browser, own)
    assert browser.switch_to.active_element.tag_name != "body"
    inside = "return document.activeElement.closest(arguments[0].split(' ')[0]) !== null"
    assert browser.execute_script(inside, place)


def test_a_run_that_grows_keeps_the_focus_and_the_mark(
    browser: webdriver.Chrome, own: Server
) -> None:
    stream = {"urls": ["*/ui/part/live*"]}
    burst(own, 5)
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setBlockedURLs", stream)
    browser.get(own.url + "/ui/timeline")
    fold = browser.find_element(By.CSS_SELECTOR, "#events tbody .unfold")
    assert fold.text == "5 updates"
    browser.find_element(By.TAG_NAME, "body").send_keys("j")
    browser.execute_script("arguments[0].focus()", fold)
    burst(own, 6)
    browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
    until(lambda: "11 updates" in text_of(browser), "the run grew")
    assert browser.switch_to.active_element.text == "11 updates"
    (marked,) = browser.find_elements(By.CSS_SELECTOR, "tr.here")
    assert "11 updates" in marked.text
    browser.get_log("browser")  # it says that the stream did not come


def burst(own: Server, count: int) -> None:
    """Updates that are one run."""
    with own.client(**{"x-actor": "runner"}) as http:
        for _ in range(count):
            update(http, 0.001)


def test_filters_work_after_going_back(browser: webdriver.Chrome, own: Server) -> None:
    listening(browser, own.url + "/ui/timeline")
    browser.execute_script("window.kept = true")
    browser.find_element(By.NAME, "actor").send_keys("anna", Keys.ENTER)
    until(lambda: browser.current_url.endswith("?actor=anna"), "it is filtered")
    browser.back()
    until(lambda: browser.current_url.endswith("/ui/timeline"), "it is the page before")
    assert browser.execute_script("return window.kept"), "the browser kept the page as it was"
    assert browser.find_elements(By.CSS_SELECTOR, ".filters input:disabled") == []
    browser.find_element(By.NAME, "parameter").send_keys("2.bias", Keys.ENTER)
    until(lambda: "parameter=2.bias" in browser.current_url, "it is filtered again")


def test_what_is_clicked_twice_is_done_once(browser: webdriver.Chrome, own: Server) -> None:
    browser.get(own.url + "/ui/versions")
    browser.find_element(By.NAME, "description").send_keys("once")
    # Every moment until the next page is there; a finger is slower, and so are servers.
    browser.execute_script(
        "const button = document.querySelector('form.act button');"
        "button.click(); setInterval(() => button.click(), 1)"
    )
    until(lambda: "once" in text_of(browser), "it has its version")
    with own.client() as http:
        listed = http.get("/v1/models/versions").json()["versions"]
    assert [one["description"] for one in listed].count("once") == 1


def test_what_has_the_focus_is_never_below_the_line_on_top(
    browser: webdriver.Chrome, own: Server
) -> None:
    hidden = {}
    for path in ("/", "/ui/timeline", "/ui/versions", "/ui/audit", "/ui/compare?from=v1&to=head"):
        sized(browser, 320, 600)
        listening(browser, own.url + path)
        hidden[path] = browser.execute_script(_BACKWARDS)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert not any(hidden.values()), hidden


# From the end of the page to its beginning, as shift and tab go.
_BACKWARDS = """
const all = [...document.querySelectorAll("main a, main button, main input, main [tabindex='0']")]
    .filter((one) => one.checkVisibility() && one.tabIndex >= 0 && one.offsetHeight < 300);
scrollTo(0, document.body.scrollHeight);
const below = () => document.querySelector("header").getBoundingClientRect().bottom;
const hidden = [];
for (const one of all.reverse()) {
  one.focus();
  if (one.getBoundingClientRect().top < below() - 1) hidden.push(one.outerHTML.slice(0, 80));
}
return hidden;
"""


def test_a_page_that_stays_open_says_the_day_of_what_is_old(
    browser: webdriver.Chrome, own: Server
) -> None:
    browser.get(own.url + "/ui/timeline")
    told = browser.execute_script(
        "const time = document.querySelector('header time');"
        "time.dateTime = new Date(Date.now() - 3 * 86400e3).toISOString();"
        "time.textContent = '23 h ago'; dispatchEvent(new Event('scrollend'));"
        "return [time.dateTime, time.textContent]"
    )
    at = datetime.fromisoformat(told[0]).astimezone(UTC)
    assert told[1] == f"{at:%Y-%m-%d %H:%M} UTC"


def test_paper_has_times_and_no_ages(browser: webdriver.Chrome, own: Server) -> None:
    browser.get(own.url + "/ui/timeline")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = browser.execute_script(
        "return [...document.querySelectorAll('time')].filter((one) => one.checkVisibility())"
        ".map((one) => [getComputedStyle(one).fontSize,"
        " getComputedStyle(one, '::after').content, one.title])"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert len(shown) > 5
    for size, after, title in shown:
        assert (size, after) == ("0px", f'"{title}"')
        assert title.endswith(" UTC")


def test_slash_searches_from_every_page(browser: webdriver.Chrome, own: Server) -> None:
    browser.get(own.url + "/ui/versions")
    browser.find_element(By.TAG_NAME, "body").send_keys("/")
    until(lambda: "/ui/timeline" in browser.current_url, "it goes where words are searched")
    until(lambda: 'id="words"' in focused(browser), "and one may write them")


def test_a_digest_is_copied_where_the_browser_lends_no_clipboard(
    browser: webdriver.Chrome, own: Server
) -> None:
    browser.get(own.url + "/")
    browser.execute_script(
        "Object.defineProperty(navigator, 'clipboard', { value: undefined });"
        "document.addEventListener('copy', () => { window.took = getSelection().toString() ||"
        " document.activeElement.value; })"
    )
    copy = browser.find_element(By.CSS_SELECTOR, "#live .copy")
    copy.click()
    assert browser.execute_script("return window.took") == copy.get_attribute("data-copy")
    assert "copy" in focused(browser)
    until(lambda: copy.get_attribute("data-done") == "yes", "and it says so")


def test_texts_of_other_scripts_move_nothing_beside_them(
    browser: webdriver.Chrome, own: Server
) -> None:
    reason = "%D7%A9%D7%9C%D7%95%D7%9D%2012 abc".replace(" ", "%20")
    with own.client(**{"x-actor": "%D7%97%D7%A0%D7%94", "x-reason": reason}) as http:
        update(http, 0.001)
    browser.get(own.url + "/ui/timeline")
    places = browser.execute_script(_PLACES)
    assert places == sorted(places, reverse=True), "what is written first stands on the right"


_PLACES = """
const said = document.querySelector("#events tbody q").firstChild;
return ["\\u05e9", "12", "abc"].map((part) => {
  const range = document.createRange();
  const at = said.data.indexOf(part);
  range.setStart(said, at);
  range.setEnd(said, at + part.length);
  return range.getBoundingClientRect().left;
});
"""


def test_a_proxy_that_answers_in_the_servers_place_is_no_success(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    with serving(tmp_path / "data", "--api-key", "secret") as keyed, proxied(keyed.url, "") as url:
        with keyed.client(authorization="Bearer secret") as http:
            for _ in range(4):
                update(http, 0.001)
        browser.get(url + "/ui/login?next=/ui/timeline")
        browser.find_element(By.NAME, "key").send_keys("secret", Keys.ENTER)
        until(lambda: "● live" in text_of(browser), "the page listens")
        timeline = browser.current_window_handle
        browser.switch_to.new_window("tab")
        browser.get(url + "/ui/versions")
        keyed.kill()
        browser.find_element(By.NAME, "description").send_keys("never", Keys.ENTER)
        said = "The server answered 502, in words that are not the ledger's"
        until(lambda: said in text_of(browser), "it was not done")

        # Who wants to leave is told that he is still in.
        browser.execute_script("window.stays = true")
        browser.find_element(By.ID, "logout").click()
        until(lambda: "you are still logged in" in text_of(browser) or _gone(browser), "it is told")
        assert browser.execute_script("return window.stays")
        browser.close()

        browser.switch_to.window(timeline)
        unfold = browser.find_element(By.CSS_SELECTOR, "#events .unfold")
        unfold.click()
        until(lambda: unfold.get_attribute("aria-expanded") == "false", "nothing was unfolded")
        until(lambda: _gone(browser), "the page says that nobody answers")
        browser.get(url + "/ui/login")
        browser.get("about:blank")
    browser.get_log("browser")


def _gone(browser: webdriver.Chrome) -> bool:
    return "The server has not answered since" in text_of(browser)
