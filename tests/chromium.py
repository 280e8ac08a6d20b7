"""A headless Chromium for tests, driven through its DevTools protocol over a pipe."""

import base64
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from typing import Any

COMMAND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--disable-dev-shm-usage")
_OPTIONS += ("--no-first-run", "--disable-extensions", "--disable-background-networking", "--hide-scrollbars")


class Browser:
    """One page, used as a context manager; `errors` collects exceptions, console errors and foreign requests."""

    def __init__(self, width: int = 1280, height: int = 900):
        self._folder = tempfile.mkdtemp(prefix="chromium-")
        # The browser reads commands from its file 3 and writes answers to its file 4.
        read_commands, self._write = os.pipe()
        self._read, write_answers = os.pipe()
        words = [*_OPTIONS, f"--window-size={width},{height}", f"--user-data-dir={self._folder}", "about:blank"]
        # bash, unlike other shells, accepts file descriptors above 9.
        shell = ["bash", "-c", f'exec "$@" 3<&{read_commands} 4>&{write_answers}', "bash", COMMAND, *words]
        self._process = subprocess.Popen(
            shell, pass_fds=(read_commands, write_answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(read_commands)
        os.close(write_answers)
        self._buffer, self._number, self._session = b"", 0, None
        self.errors: list[str] = []
        self._events: list[dict[str, Any]] = []
        pages = self.send("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._folder, ignore_errors=True)

    def send(self, method: str, **parameters) -> dict[str, Any]:
        """The answer to one command; raises RuntimeError for an error."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            block = os.read(self._read, 1 << 16)
            if not block:
                raise RuntimeError("the browser has ended")
            self._buffer += block
        line, _, self._buffer = self._buffer.partition(b"\0")
        answer = json.loads(line)
        self._note(answer.get("method", ""), answer.get("params", {}))
        return answer

    def _note(self, event: str, content: dict[str, Any]) -> None:
        self._events.append({"method": event})
        if event == "Runtime.exceptionThrown":
            self.errors.append(content["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif event == "Log.entryAdded" and content["entry"]["level"] == "error":
            self.errors.append(content["entry"]["text"])
        elif event == "Network.requestWillBeSent" and not content["request"]["url"].startswith(("file:", "data:")):
            self.errors.append(f"request of {content['request']['url']}")

    def open(self, path: pathlib.Path, *, script: bool = True, width: int = 1280, height: int = 900) -> None:
        """Load a file and wait until it is loaded."""
        self.send("Emulation.setScriptExecutionDisabled", value=not script)
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self._events.clear()
        self.send("Page.navigate", url=path.absolute().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive()

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of the promise that it returns."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def center(self, selector: str) -> tuple[float, float]:
        """Center of an element in the window, after scrolling it into view."""
        box = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{box}.scrollIntoView({{block: 'center'}})")
        return tuple(self.run(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({box}.getBoundingClientRect())"))

    def move(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        """Click the center of an element."""
        x, y = self.center(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int = 0) -> None:
        """Press a key such as ArrowRight on the focused element."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def enter(self) -> None:
        """Press Enter on the focused button."""
        self.send("Input.dispatchKeyEvent", type="keyDown", key="Enter", windowsVirtualKeyCode=13, text="\r")
        self.send("Input.dispatchKeyEvent", type="keyUp", key="Enter", windowsVirtualKeyCode=13)

    def screenshot(self, path: pathlib.Path, selector: str | None = None) -> None:
        """A PNG of the window, or of an element including what is scrolled out of view."""
        options = {}
        if selector:
            of = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
            x, y, width, height = self.run(f"(r => [r.x + scrollX, r.y + scrollY, r.width, r.height])({of})")
            options = {"clip": dict(x=x, y=y, width=width, height=height, scale=1), "captureBeyondViewport": True}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **options)["data"]))
