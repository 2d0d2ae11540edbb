"""A headless browser for tests, driven through a pipe.

with Browser() as browser:
  browser.open(path, width=390, dark=True)
  browser.run("document.title")
"""

import base64
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
import time
from typing import Any

_FOUND = ("chromium", "chromium-browser", "google-chrome")
_SECONDS = 60


def find() -> str | None:
  """The program, or None where there is no browser."""
  return next(filter(None, map(shutil.which, _FOUND)), None)


class Browser:
  """One page of one browser. What it requests and reports is kept."""

  def __init__(self):
    self.requests: list[str] = []
    self.errors: list[str] = []
    self._ids = itertools.count(1)
    self._rest = b""

  def __enter__(self) -> "Browser":
    self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    read, self._write = os.pipe()
    self._read, write = os.pipe()
    # The browser reads commands from 3 and writes answers to 4.
    self._process = subprocess.Popen(
      ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash", find() or ""]
      + ["--headless", "--no-sandbox", "--remote-debugging-pipe"]
      + [
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={self._home.name}",
      ],
      pass_fds=(read, write),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(read)
    os.close(write)
    self._session = None
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self._session = self.call(
      "Target.attachToTarget", targetId=target, flatten=True
    )["sessionId"]
    for domain in ("Page", "Runtime", "Network", "Log"):
      self.call(f"{domain}.enable")
    return self

  def __exit__(self, *_):
    self._session = None
    self.call("Browser.close")
    self._process.wait(_SECONDS)
    os.close(self._read)
    os.close(self._write)
    self._home.cleanup()

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    """Sends a command of the DevTools protocol and returns its result."""
    number = next(self._ids)
    message = {"id": number, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._write, json.dumps(message).encode() + b"\0")
    while (answer := self._receive()).get("id") != number:
      self._keep(answer)
    if "error" in answer:
      raise RuntimeError(f"{method}: {answer['error']}")
    return answer["result"]

  def open(self, path: pathlib.Path, width: int = 1280, dark: bool = False):
    """Loads a file, at a width in pixels and in a color scheme."""
    self.look(width, dark)
    self.requests.clear()
    self.errors.clear()
    self.call("Page.navigate", url=path.resolve().as_uri())
    while self.run("document.readyState") != "complete":
      time.sleep(0.02)

  def look(self, width: int, dark: bool = False, media: str = ""):
    """Changes width, color scheme and medium of the open page."""
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width, height=800, deviceScaleFactor=1, mobile=width < 600,
    )  # fmt: skip
    scheme = {
      "name": "prefers-color-scheme",
      "value": "dark" if dark else "light",
    }
    self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

  def run(self, script: str) -> Any:
    """The value of a JavaScript expression, awaited if it is a promise."""
    found = self.call(
      "Runtime.evaluate",
      expression=script, returnByValue=True, awaitPromise=True,
    )  # fmt: skip
    if "exceptionDetails" in found:
      raise RuntimeError(str(found["exceptionDetails"]))
    return found["result"].get("value")

  def press(self, key: str, code: int):
    """Presses a key on what has the focus."""
    given = {"key": key, "code": key, "windowsVirtualKeyCode": code}
    text = {"text": "\r"} if key == "Enter" else {}
    self.call("Input.dispatchKeyEvent", type="keyDown", **given, **text)
    self.call("Input.dispatchKeyEvent", type="keyUp", **given)

  def screenshot(self, path: pathlib.Path):
    """Saves the whole page as PNG."""
    found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(found["data"]))

  def _receive(self) -> dict[str, Any]:
    while b"\0" not in self._rest:
      ready, _, _ = select.select([self._read], [], [], _SECONDS)
      found = os.read(self._read, 1 << 20) if ready else b""
      if not found:
        raise RuntimeError("the browser does not answer")
      self._rest += found
    message, self._rest = self._rest.split(b"\0", 1)
    return json.loads(message)

  def _keep(self, event: dict[str, Any]):
    params = event.get("params", {})
    if event.get("method") == "Network.requestWillBeSent":
      self.requests.append(params["request"]["url"])
    if event.get("method") == "Runtime.exceptionThrown":
      self.errors.append(str(params["exceptionDetails"]))
    if event.get("method") == "Log.entryAdded":
      if params["entry"]["level"] == "error":
        self.errors.append(params["entry"]["text"])
