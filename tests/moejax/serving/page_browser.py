"""A headless Chromium on the page, and a server in a process of its own that may be killed."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.ports import free_port

PROGRAMS = ("chromium", "chromedriver")
WAIT_SECONDS = 300  # for anything: nothing is compiled yet in a clean clone, and machines may be busy
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1180,1000",
)


@contextmanager
def browser(profile: Path) -> Iterator[Chrome]:
    """A fresh Chromium, whose profile is in the folder `profile`.

    Raises:
        RuntimeError: when it is not installed.
    """
    chromium, chromedriver = map(shutil.which, PROGRAMS)
    if chromium is None or chromedriver is None:
        raise RuntimeError(
            f"the page is tested in a browser, and {' or '.join(PROGRAMS)} is not on PATH; on Debian run: "
            "apt-get install -y --no-install-recommends chromium chromium-driver"
        )
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(chromedriver))
    try:
        yield driver
    finally:
        driver.quit()


@dataclass(kw_only=True)
class Server:
    """`moejax serve` in its own process."""

    process: subprocess.Popen[bytes]
    url: str
    key: str

    def post(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The chunks that the server streams to a client that is no browser."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        data = json.dumps({"stream": True, **body}).encode()
        with urllib.request.urlopen(
            urllib.request.Request(self.url + path, data, headers), timeout=WAIT_SECONDS
        ) as answer:
            lines = [line.removeprefix(b"data: ") for line in answer.read().splitlines() if line]
        assert lines.pop() == b"[DONE]"
        return [json.loads(line) for line in lines]

    def baseline_pids(self) -> list[int]:
        """Its processes that run the baseline."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"baseline_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@contextmanager
def serving(folder: Path, log: Path, *flags: str) -> Iterator[Server]:
    """A server of a checkpoint, which may still be loading it. What it says is in `log`."""
    port = free_port()
    key = "a key of the test"
    command = [sys.executable, "-m", "moejax", "serve", str(folder), "--port", str(port), "--api-key", key, *flags]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"})
    server = Server(process=process, url=f"http://127.0.0.1:{port}", key=key)
    try:
        wait_for(lambda: _listens(port) or process.poll() is not None)
        assert process.returncode is None, log.read_text()
        yield server
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


def wait_for(condition: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    """What `condition` returns when it is true at last."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "what is waited for does not happen"
        time.sleep(0.02)
    return value


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@dataclass(kw_only=True)
class Page:
    """What a person sees of the page, and does to it."""

    driver: Chrome

    def __getitem__(self, name: str) -> WebElement:
        """The element with this id."""
        return self.driver.find_element(By.ID, name)

    def field(self, name: str) -> WebElement:
        """The form's field of this name; the button that stops is another thing than the field "Stop at"."""
        return self.driver.find_element(By.CSS_SELECTOR, f"#composer [name={name}]")

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def fill(self, **fields: Any) -> None:
        """Types into fields of the form."""
        if "prompt" not in fields or len(fields) > 1:
            self.js("document.getElementById('settings').open = true")
        for name, value in fields.items():
            self.field(name).clear()
            self.field(name).send_keys(str(value))

    @property
    def idle(self) -> bool:
        return not self["stop-button"].is_enabled() and self["generate"].is_enabled()

    @property
    def focused(self) -> str:
        """The id of the element that has the focus."""
        return self.driver.switch_to.active_element.get_attribute("id") or ""

    @property
    def spoken(self) -> str:
        """What a screen reader was told last."""
        return self["announcer"].get_attribute("textContent") or ""

    @contextmanager
    def emulating(self, *, width: int = 1180, height: int = 800, **media: str) -> Iterator[None]:
        """A screen of another size, and media features such as prefers_color_scheme="dark"."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    def wait_until_idle(self) -> None:
        wait_for(lambda: self.idle)

    def run(self, button: str) -> None:
        """Presses a button and waits for what it starts to end."""
        self[button].click()
        self.wait_until_idle()

    def texts(self) -> list[str]:
        """The answers in the panes, without the prompt."""
        script = (
            "return [...document.querySelectorAll('.lane')].map("
            "lane => [...lane.querySelectorAll('.token')].map(token => token.textContent).join(''))"
        )
        return self.js(script)

    def stats(self, lane: int = 0) -> dict[str, str]:
        """The numbers above an answer."""
        script = (
            "return Object.fromEntries([...document.querySelectorAll('.lane')[arguments[0]]"
            ".querySelectorAll('[data-stat]')].map(one => [one.dataset.stat, one.textContent]))"
        )
        return self.js(script, lane)

    def cell(self, layer: int, expert: int) -> str:
        """The line about a cell of the table, which is given the focus."""
        script = "document.querySelectorAll('.heat tbody tr')[arguments[1]].cells[arguments[0] + 1].focus()"
        self.js(script, layer, expert)
        return self["cell"].text

    def chosen(self) -> set[tuple[int, int]]:
        """(layer, expert) of the cells that are marked."""
        script = (
            "return [...document.querySelectorAll('.heat td.chosen')].map("
            "cell => [cell.cellIndex - 1, cell.parentElement.sectionRowIndex])"
        )
        return {(layer, expert) for layer, expert in self.js(script)}
