"""A page in a headless Chromium, driven over its debugging pipe: no network, no driver package."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60.0
"""Seconds to wait for an answer."""

BINARY = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)

needs_chromium = pytest.mark.skipif(
    BINARY is None, reason="no Chromium here: apt install chromium to test pages in a browser"
)


class Page:
    """One page; `messages` are what it complained about, and what it asked a network for."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._number, self._buffer, self._session = 0, b"", ""
        self.messages: list[str] = []

    def attach(self, width: int, height: int) -> None:
        """Open an empty page of this size."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def open(self, path: Path) -> None:
        """Show a file and wait until it is loaded."""
        self._call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + PATIENCE
        while self.run("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() < deadline, "the page did not load"
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, code: str = "", text: str = "") -> None:
        """Press and release a key, as a person does."""
        fields = {"key": key, "code": code or key, "windowsVirtualKeyCode": _KEYS.get(key, 0)}
        self._call("Input.dispatchKeyEvent", type="keyDown", text=text, **fields)
        self._call("Input.dispatchKeyEvent", type="keyUp", **fields)

    def prefer(self, **features: str) -> None:
        """Say what the reader prefers, such as `prefers_reduced_motion="reduce"`."""
        media = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self._call("Emulation.setEmulatedMedia", features=media)

    def picture(self, path: Path) -> None:
        """Take a picture of what is seen, as PNG."""
        data = self._call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._receive], [], [], PATIENCE)[0], "Chromium does not answer"
            chunk = os.read(self._receive, 2**16)
            assert chunk, "Chromium has gone"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown" | "Log.entryAdded" | "Runtime.consoleAPICalled":
                self.messages.append(json.dumps(parameters))
            case "Network.requestWillBeSent":
                url = parameters["request"]["url"]
                if not url.startswith(("file:", "data:", "about:")):
                    self.messages.append(f"asked for {url}")


_KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, " ": 32, "Tab": 9}


@contextmanager
def chromium(profile: Path, width: int = 900, height: int = 700) -> Iterator[Page]:
    """A page in a Chromium of its own, which ends with the block."""
    assert BINARY
    child_reads, we_write = os.pipe()
    we_read, child_writes = os.pipe()
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
    quiet = ("--disable-background-networking", "--no-first-run", "--mute-audio")
    command = [BINARY, *flags, *quiet, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    # The pipe must have the numbers 3 and 4 in the child.
    shell = f'exec "$@" 3<&{child_reads} 4>&{child_writes}'
    process = subprocess.Popen(
        ["/bin/bash", "-c", shell, "chromium", *command],
        pass_fds=(child_reads, child_writes),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(child_reads)
    os.close(child_writes)
    try:
        page = Page(we_write, we_read)
        page.attach(width, height)
        yield page
    finally:
        process.terminate()
        process.wait(PATIENCE)
        os.close(we_write)
        os.close(we_read)
