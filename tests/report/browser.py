"""A headless Chromium driven over its debugging pipe: pages opened, keys pressed, what happened kept."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-extensions --disable-background-networking "
    "--disable-component-update --disable-sync --mute-audio --hide-scrollbars --disable-dev-shm-usage "
    "--disable-features=IsolateSandboxedIframes "  # so that one session sees into frames
    "--remote-debugging-pipe"
)
# chromium reads its commands from file descriptor 3 and answers on 4; first away from there, they may be in use
_WITH_PIPES = (
    "import fcntl, os, sys; pipes = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3]]; "
    "os.dup2(pipes[0], 3); os.dup2(pipes[1], 4); os.execv(sys.argv[3], sys.argv[3:])"
)
_KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "Enter": 13}
_KEYS |= {"Escape": 27, "Tab": 9}
_SECONDS = 60.0


class Browser:
    """One Chromium process with one page at a time.

    Attributes:
        requests: the first 80 characters of every URL the page asked for since it was opened.
        complaints: console messages of level warning or error, violations of its policy and uncaught exceptions.
        dialogs: texts of the alerts it opened.
    """

    def __init__(self) -> None:
        assert CHROMIUM
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        flags = [*_FLAGS.split(), f"--user-data-dir={self._profile.name}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WITH_PIPES, str(to_browser), str(from_browser), CHROMIUM, *flags],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._last_id, self._session, self._page = b"", 0, None, ""
        self._events: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.dialogs: list[str] = []

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a page in a new tab and wait until it has loaded."""
        self.requests, self.complaints, self.dialogs = [], [], []
        self._session, self._events = None, []
        self._page = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=self._page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")
        self.resize(width, height)
        self.prefer(dark=dark)
        self._call("Page.navigate", url=url)
        self._wait(lambda: any(event["method"] == "Page.loadEventFired" for event in self._events))

    def resize(self, width: int, height: int) -> None:
        """Give the window another size, in CSS pixels."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer(self, *, dark: bool) -> None:
        """What the page is told of the reader's colour scheme."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def evaluate(self, expression: str, *, in_frame: bool = False) -> Any:
        """The value of a JavaScript expression, awaited, in the page or in the frame it made last."""
        made = [event["params"]["context"] for event in self._events if event["method"].endswith("ContextCreated")]
        inner = [context["id"] for context in made if context["auxData"].get("frameId") != self._page]
        where = {"contextId": inner[-1]} if in_frame else {}
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, **where)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, *, in_frame: bool = False) -> None:
        """Wait until an expression is truthy."""
        self._wait(lambda: bool(self.evaluate(expression, in_frame=in_frame)), expression)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key, as a user does."""
        code = _KEYS.get(key) or ord(key.upper())
        text = key if len(key) == 1 else "\r" if key == "Enter" else ""
        event = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 * shift}
        self._call("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
        self._call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Put text where the focus is."""
        self._call("Input.insertText", text=text)

    def click(self, element: str) -> None:
        """Click the middle of the element that an expression names, scrolled into view."""
        place = self.evaluate(
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}}); "
            "const r = e.getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2]; })()"
        )
        at = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
        self._call("Input.dispatchMouseEvent", type="mousePressed", **at)
        self._call("Input.dispatchMouseEvent", type="mouseReleased", **at)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write what the window shows, or the whole page, as PNG."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        """End the process."""
        os.close(self._write)
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        self._profile.cleanup()

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        wanted, deadline = self._last_id, time.monotonic() + _SECONDS
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == wanted:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            received = os.read(self._read, 1 << 20) if ready else b""
            assert received, "chromium does not answer"
            self._buffer += received
        text, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        if message.get("sessionId") == self._session and "method" in message:
            self._note(message)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        method, about = event["method"], event["params"]
        self._events.append(event)
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"][:80])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(about["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(about["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(about["message"])

    def _wait(self, condition: Any, what: str = "the page to load") -> None:
        deadline = time.monotonic() + _SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            self._call("Runtime.evaluate", expression="0")
            time.sleep(0.02)
