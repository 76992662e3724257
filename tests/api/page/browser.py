"""Headless Chromium by the W3C WebDriver protocol, as chromedriver speaks it: no library, and a profile of its own."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from link.listening import free_port
from tests.deployments.harness import wait_until

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --force-color-profile=srgb --hide-scrollbars"
)
ENTER, TAB, SHIFT, END, RIGHT = "\ue007", "\ue004", "\ue008", "\ue010", "\ue014"
DESKTOP, PHONE = (1200, 780, False), (390, 844, True)


@dataclass
class Browser:
    """One session. Scripts run as a person's own tools would, so the page's policy does not bind them."""

    session: httpx.Client

    def open(self, url: str) -> None:
        self._ask("url", url=url)

    def run(self, script: str, *args: Any) -> Any:
        """What a script returns; `return` it."""
        return self._ask("execute/sync", script=script, args=list(args))

    def run_async(self, script: str, *args: Any) -> Any:
        """What a script hands to its last argument."""
        return self._ask("execute/async", script=script, args=list(args))

    def wait(self, condition: str, timeout: float = 180.0) -> None:
        """Until an expression is true."""
        wait_until(lambda: self.run(f"return Boolean({condition})"), timeout)

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).innerText", selector))

    def focused(self) -> str:
        """The id of the element that has the focus, or a point and its class."""
        return str(self.run("const one = document.activeElement; return one.id || `.${one.className}`"))

    def press(self, keys: str, held: str = "") -> None:
        """Keys of a keyboard, one after another, while one is held."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        around = [[{"type": kind, "value": key} for key in held] for kind in ("keyDown", "keyUp")]
        self._ask("actions", actions=[{"type": "key", "id": "keys", "actions": [*around[0], *strokes, *around[1]]}])

    def point(self, selector: str) -> None:
        """Moves the mouse over an element."""
        box = self.run(
            "const box = document.querySelector(arguments[0]).getClientRects()[0];"
            "return [box.x + box.width / 2, box.y + box.height / 2]",
            selector,
        )
        move = {"type": "pointerMove", "x": round(box[0]), "y": round(box[1]), "duration": 0}
        self._ask("actions", actions=[{"type": "pointer", "id": "mouse", "actions": [move]}])

    def tab_to(self, name: str, most: int = 40) -> None:
        """By the Tab key alone. name: as `focused` tells it."""
        for _ in range(most):
            if self.focused() == name:
                return
            self.press(TAB)
        pytest.fail(f"{most} tabs did not lead to {name}")

    def size(self, width: int, height: int, is_phone: bool) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}
        self.tool("Emulation.setDeviceMetricsOverride", **metrics)

    def prefer(self, scheme: str) -> None:
        """light or dark."""
        self.tool("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def tool(self, command: str, **params: Any) -> Any:
        """A command of Chromium's developer tools."""
        return self._ask("goog/cdp/execute", cmd=command, params=params)

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.session.get("screenshot").json()["value"]))

    def complaints(self) -> list[str]:
        """What the page has written to its console since the last call, violations of its policy included."""
        return [entry["message"] for entry in self._ask("se/log", type="browser")]

    def _ask(self, command: str, **body: Any) -> Any:
        answer = self.session.post(command, json=body)
        assert answer.status_code == 200, answer.text[:1000]
        return answer.json()["value"]


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """folder: for the profile. Skips where there is no Chromium or no driver."""
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    url, flags = f"http://127.0.0.1:{(port := free_port())}", [*FLAGS.split(), f"--user-data-dir={folder / 'profile'}"]
    options = {"binary": chromium, "args": flags}
    wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    environment = os.environ | {"HOME": str(folder)}
    with subprocess.Popen([driver, f"--port={port}", "--log-level=OFF"], env=environment) as process:
        try:
            wait_until(lambda: answers(f"{url}/status"))
            made = httpx.post(f"{url}/session", json={"capabilities": {"alwaysMatch": wanted}}, timeout=60)
            assert made.status_code == 200, made.text[:1000]
            session = f"{url}/session/{made.json()['value']['sessionId']}"
            try:
                with httpx.Client(base_url=session, timeout=60) as client:
                    yield Browser(client)
            finally:  # ends Chromium; a driver that is ended first leaves it running
                assert httpx.delete(session, timeout=60).status_code == 200
        finally:
            process.terminate()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False
