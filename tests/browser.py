"""A real Chromium without a window, spoken to over a pipe in the DevTools protocol: no driver, no port, nothing to install but the browser.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chromium-headless-shell")
SECONDS = 30.0  # to wait for an answer


def executable():
    """The browser on this machine, or None. TRUESPARSE_CHROMIUM names another."""
    return os.environ.get("TRUESPARSE_CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One browser with one page. `events` are all it has told of the page."""

    def __init__(self, profile):
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        # It reads commands from descriptor 3 and answers on 4. Below 10, descriptors could be those two.
        ends = [_above(commands), _above(answers)]
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}"]
        redirect = f"import os, sys; os.dup2({ends[0]}, 3); os.dup2({ends[1]}, 4); os.execv(sys.argv[1], sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", redirect, executable(), *flags], pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for end in ends:
            os.close(end)
        self._number, self._unread = 0, b""
        self.events = []
        self._session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self):
        self.send("Browser.close")
        self._process.wait(SECONDS)
        os.close(self._commands)
        os.close(self._answers)

    def send(self, method, **parameters):
        """The browser's answer to a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._commands, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0")
        end = time.monotonic() + SECONDS
        while True:
            answer = self._read(end)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, path, width=1280, height=900, **media):
        """Opens a file and waits until it says it is ready; `media` are features such as prefers-color-scheme."""
        self.events.clear()
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.send("Emulation.setEmulatedMedia", media="", features=features)
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.documentElement?.dataset.ready === 'yes'")

    def value(self, expression):
        """What an expression of JavaScript gives, as JSON."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition):
        end = time.monotonic() + SECONDS
        while not self.value(condition):
            assert time.monotonic() < end, f"{condition} is not so after {SECONDS} seconds"
            time.sleep(0.02)

    def press(self, key, code=None, text=None):
        """A key, as a person would press it."""
        named = {
            "key": key,
            "code": code or key,
            "windowsVirtualKeyCode": {"ArrowLeft": 37, "ArrowRight": 39, " ": 32, "Tab": 9, "Enter": 13}[key],
        }
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **named, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **named)

    def click(self, selector):
        """The middle of an element, scrolled to."""
        box = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def screenshot(self, path):
        """The whole page, however long, as a PNG."""
        height = self.value("document.documentElement.scrollHeight")
        width = self.value("document.documentElement.clientWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]))

    def printed(self, path):
        """The page as a PDF."""
        path.write_bytes(base64.b64decode(self.send("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"]))

    def complaints(self):
        """Errors and warnings of the console so far."""
        self.value("1")  # whatever came before has been read then
        return [
            event["params"]
            for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
            or (event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "warning", "assert"))
            or (event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] in ("error", "warning"))
        ]

    def requests(self):
        """Addresses that the page has asked for."""
        self.value("1")
        return [event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"]

    def _read(self, end):
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            received = os.read(self._answers, 1 << 20) if ready else b""
            if not received:
                raise RuntimeError(f"the browser has not answered for {SECONDS} seconds" if not ready else "the browser has ended")
            self._unread += received
        message, self._unread = self._unread.split(b"\0", 1)
        return json.loads(message)


def _above(descriptor):
    """A copy of the descriptor, of a number of its own, in its place."""
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10)
    os.close(descriptor)
    return copy
