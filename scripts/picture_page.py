"""Races on the page of a running server and takes its picture, in light and in dark.

    moejax serve demo
    python scripts/picture_page.py http://127.0.0.1:8000 docs/pictures

Needs selenium, which the extra `test` brings, and Chromium with its driver. The first race is not the one that is
shown: it starts the baseline's process.
"""

import base64
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
NAMES = {"light": "page.png", "dark": "page_dark.png"}
WIDTH = 960  # pixels
WAIT_SECONDS = 300


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("give the address of a running server and a folder, as in http://127.0.0.1:8000 docs/pictures")
    url, folder = sys.argv[1], Path(sys.argv[2])
    driver_path = shutil.which("chromedriver")
    if driver_path is None:
        sys.exit("chromedriver is not on PATH; on Debian: apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory() as profile:
        options = ChromeOptions()
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = Chrome(options, Service(driver_path))
        try:
            driver.get(url)
            wait_for(lambda: driver.find_element(By.ID, "race").is_enabled())
            for _ in range(2):
                race(driver)
            for scheme, name in NAMES.items():
                (folder / name).write_bytes(picture(driver, scheme))
            print(driver.find_element(By.ID, "verdict").text)
        finally:
            driver.quit()


def race(driver: Chrome) -> None:
    """Presses the button, and waits for the end."""
    driver.find_element(By.ID, "race").click()
    wait_for(lambda: driver.find_element(By.ID, "race").is_enabled())
    if complaint := driver.find_element(By.ID, "alert").text:
        sys.exit(complaint)
    driver.execute_script("document.activeElement.blur()")


def picture(driver: Chrome, scheme: str) -> bytes:
    """The whole page as a PNG, in a colour scheme."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": WIDTH, "height": 100, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    height = driver.execute_script("return document.querySelector('main').getBoundingClientRect().bottom + 28")
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    return base64.b64decode(taken["data"])


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > until:
            sys.exit(f"the page did not get there in {WAIT_SECONDS} s")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
