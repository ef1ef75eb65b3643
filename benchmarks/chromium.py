"""Debian's Chromium without a window, for what people see in a browser."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

# What Chromium does by itself (updates, experiments, its start page) needs a network.
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
PATIENCE_S = 300


def is_there() -> bool:
    """Whether Chromium and its driver are installed."""
    return all(shutil.which(program) for program in ("chromium", "chromedriver"))


@contextmanager
def chromium(profile: Path, *flags: str) -> Iterator[webdriver.Chrome]:
    """A browser with an empty profile in a folder, which keeps what its console and network say."""
    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*_FLAGS, *flags, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    running.set_page_load_timeout(PATIENCE_S)
    running.set_script_timeout(PATIENCE_S)
    try:
        yield running
    finally:
        running.quit()


def sized(browser: webdriver.Chrome, width: int, height: int) -> None:
    """Give pages this size, also where a window could not be so narrow."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )


def scheme(browser: webdriver.Chrome, name: str) -> None:
    """Have pages light or dark."""
    features = [{"name": "prefers-color-scheme", "value": name}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
