"""A headless Chromium, driven through chromedriver's own HTTP interface.

Source: W3C WebDriver, https://www.w3.org/TR/webdriver2/; Chrome DevTools Protocol.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")
IS_THERE = bool(CHROMIUM and CHROMEDRIVER)

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
)


class Browser:
    """One open window."""

    def __init__(self, server: str, profile: Path) -> None:
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        self._base = server
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        }
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base = f"{server}/session/{session['sessionId']}"

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._base + path, data, {"Content-Type": "application/json"}, method=method
        )
        with self._open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def protocol(self, command: str, **parameters: Any) -> Any:
        """One command of the DevTools protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def show(
        self, page: Path, width: int, height: int = 800, *, dark: bool = False, scripts: bool = True
    ) -> None:
        """Load a page, as a screen of so many CSS pixels would."""
        self.protocol(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.protocol("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.protocol("Emulation.setEmulatedMedia", features=[scheme])
        self.protocol("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._call("POST", "/url", {"url": page.as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script's `return` gives."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector: str) -> list[str]:
        """The ids of the elements that match."""
        found = self._call("POST", "/elements", {"using": "css selector", "value": selector})
        return [next(iter(one.values())) for one in found]

    def texts(self, selector: str) -> list[str]:
        """The text that a reader sees in each element that matches; empty where none of it is visible."""
        return [self._call("GET", f"/element/{one}/text") for one in self.find(selector)]

    def click(self, selector: str, number: int = 0) -> None:
        """A click of the mouse, or a tap, in the middle of an element."""
        self._call("POST", f"/element/{self.find(selector)[number]}/click", {})

    def hover(self, selector: str, number: int = 0) -> None:
        """Move the mouse over an element."""
        origin = {"element-6066-11e4-a52e-4f735466cecf": self.find(selector)[number]}
        move = {"type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": origin}
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": [move]}
        self._call("POST", "/actions", {"actions": [mouse]})

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What the browser noted since the last call: `performance` or `browser`."""
        return list(self._call("POST", "/se/log", {"type": kind}))

    def requests(self, page: Path) -> list[str]:
        """The address of everything that a page asked for since the last call, its own among them."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [one["request"]["url"] for one in sent if one["documentURL"] == page.as_uri()]

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG file."""
        shot = self.protocol("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self._call("DELETE", "")


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A browser of its own, gone at the end."""
    assert CHROMEDRIVER
    with subprocess.Popen(
        [CHROMEDRIVER, "--port=0"],
        env=os.environ | {"TMPDIR": str(profile)},  # it leaves folders behind
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as driver:
        try:
            assert driver.stdout
            port = next(
                m[1] for line in driver.stdout if (m := re.search(r"successfully on port (\d+)", line))
            )
            browser = Browser(f"http://127.0.0.1:{port}", profile)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
