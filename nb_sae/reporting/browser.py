"""A headless Chromium for what only a browser can do: print a page to PDF, draw a plotly figure.

The page is handed over in memory and every other request is refused, so nothing is read from disk or network. The
browser is spoken to by its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from tornado.httpclient import HTTPClientError
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, websocket_connect

from nb_sae.errors import MissingDependencyError, ReportError

T = TypeVar("T")
ADDRESS = "https://report.invalid/"
"""Where the page seems to lie; `.invalid` is a name that no network has (RFC 6761)."""
NAMED_BY = "NB_SAE_CHROMIUM"
LIGHT = [{"name": "prefers-color-scheme", "value": "light"}]
_NAMES = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge", "msedge",
)  # fmt: skip
_PLACES = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    "{PROGRAMFILES}/Google/Chrome/Application/chrome.exe",
    "{PROGRAMFILES(X86)}/Google/Chrome/Application/chrome.exe",
    "{LOCALAPPDATA}/Google/Chrome/Application/chrome.exe",
    "{PROGRAMFILES(X86)}/Microsoft/Edge/Application/msedge.exe",
)
_FLAGS = (
    "--headless", "--remote-debugging-port=0", "--no-first-run", "--no-default-browser-check", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-gpu", "--mute-audio",
    "--hide-scrollbars", "--force-color-profile=srgb", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
_STARTS_WITHIN_S = 60.0
_ANSWERS_WITHIN_S = 180.0
_LISTENING = re.compile(rb"DevTools listening on (ws://\S+)")


def find_browser() -> str | None:
    """Path of a Chromium, Chrome or Edge, or None; `NB_SAE_CHROMIUM` names one that is not found by itself.

    Raises:
        MissingDependencyError: `NB_SAE_CHROMIUM` names something that cannot be run.
    """
    named = os.environ.get(NAMED_BY)
    if named:
        found = shutil.which(named)
        if found is None:
            raise MissingDependencyError(f"{NAMED_BY}={named!r} cannot be run. Name an executable, or unset it.")
        return found
    for name in _NAMES:
        if (found := shutil.which(name)) is not None:
            return found
    for place in _PLACES:
        path = re.sub(r"\{(.+?)\}", lambda found: os.environ.get(found.group(1), "?"), place)
        if Path(path).is_file():
            return path
    return None


def require_browser(needed_for: str) -> str:
    """Path of a browser. Raises `MissingDependencyError`, which says what to install, where there is none."""
    found = find_browser()
    if found is None:
        raise MissingDependencyError(
            f"{needed_for} needs Chromium, Chrome or Edge, and none was found. Install one (Debian: sudo apt-get "
            f"install chromium; macOS: brew install --cask chromium), name it with {NAMED_BY}=/path/to/chrome, or open "
            "the HTML report in a browser and print it."
        )
    return found


class Tab:
    """One page of a running browser."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket, self._session, self._number = socket, "", 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._page = b""
        self.refused: list[str] = []
        """Addresses that the page asked for and did not get."""

    async def open(self, page: str, width: int) -> None:
        """Show an HTML page in a light theme, `width` pixels wide, and wait until it is loaded."""
        self._page = page.encode()
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        await self.call("Page.enable")
        await self.call("Fetch.enable", patterns=[{"urlPattern": "*"}])
        await self.call("Emulation.setEmulatedMedia", features=LIGHT)
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=2, mobile=False
        )
        await self.call("Page.navigate", url=ADDRESS)
        await asyncio.wait_for(self._loaded, _ANSWERS_WITHIN_S)

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        reply = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in reply:
            details = reply["exceptionDetails"]
            raise ReportError(
                f"The page failed: {details.get('exception', {}).get('description', details.get('text'))}"
            )
        return reply["result"].get("value")

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser for something and wait for its answer. Raises `ReportError` if it refuses."""
        reply = await asyncio.wait_for(self._ask(method, parameters), _ANSWERS_WITHIN_S)
        if "error" in reply:
            raise ReportError(f"The browser refused {method}: {reply['error'].get('message')}")
        return reply.get("result", {})

    def _ask(self, method: str, parameters: dict[str, Any]) -> asyncio.Future[dict[str, Any]]:
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = answer
        self._socket.write_message(json.dumps({"id": self._number, "method": method, "params": parameters, **session}))
        return answer

    async def listen(self) -> None:
        """Read what the browser says until it is closed."""
        while (text := await self._socket.read_message()) is not None:
            message = json.loads(text)
            if "id" in message:
                answer = self._waiting.pop(message["id"], None)
                if answer is not None and not answer.done():
                    answer.set_result(message)
            elif message.get("method") == "Page.loadEventFired" and not self._loaded.done():
                self._loaded.set_result(None)
            elif message.get("method") == "Fetch.requestPaused":
                self._serve(message["params"])
        for answer in (*self._waiting.values(), self._loaded):
            if not answer.done():
                answer.set_exception(ReportError("The browser ended before it was done. Is there enough memory?"))
                answer.exception()  # it may be that nobody waits for this one

    def _serve(self, paused: dict[str, Any]) -> None:
        """Give the page itself, and nothing from outside of it."""
        number, url = paused["requestId"], paused["request"]["url"]
        if url == ADDRESS:
            headers = [{"name": "Content-Type", "value": "text/html; charset=utf-8"}]
            body = base64.b64encode(self._page).decode()
            answer = {"requestId": number, "responseCode": 200, "responseHeaders": headers, "body": body}
            self._ask("Fetch.fulfillRequest", answer)
        elif url.startswith(("blob:", "data:")):
            self._ask("Fetch.continueRequest", {"requestId": number})
        else:
            self.refused.append(url)
            self._ask("Fetch.failRequest", {"requestId": number, "errorReason": "BlockedByClient"})


def with_page(page: str, use: Callable[[Tab], Awaitable[T]], *, needed_for: str, width: int = 1200) -> T:
    """Open a page in a browser that is started for it, and give what `use` makes of it.

    Raises:
        MissingDependencyError: There is no browser.
        ReportError: It did not start, did not answer, or the page failed.
    """
    browser = require_browser(needed_for)

    async def work() -> T:
        async with _started(browser) as tab:
            await tab.open(page, width)
            return await use(tab)

    try:
        return _in_own_thread(work())
    except (TimeoutError, OSError, WebSocketClosedError, HTTPClientError) as error:
        raise ReportError(f"{needed_for} failed: {Path(browser).name} did not answer ({error!r}).") from error


def _in_own_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end; works inside a running event loop, as in a notebook, too."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(asyncio.run(work))
        except BaseException as error:  # handed to the thread that waits
            failed.append(error)

    thread = threading.Thread(target=run, name="nb-sae-browser", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if failed:
        raise failed[0]
    return done[0]


@asynccontextmanager
async def _started(browser: str) -> AsyncIterator[Tab]:
    """A browser with a profile of its own, which is removed at the end."""
    # Chromium refuses to sandbox itself for root, as in a container.
    root = sys.platform != "win32" and os.geteuid() == 0
    with tempfile.TemporaryDirectory(prefix="nb-sae-browser-", ignore_cleanup_errors=True) as profile:
        command = [browser, *_FLAGS, *(["--no-sandbox"] if root else []), f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            address = await _address(process, browser)
            socket = await websocket_connect(address, max_message_size=1 << 30)
            tab = Tab(socket)
            listening = asyncio.ensure_future(tab.listen())
            try:
                yield tab
            finally:
                with suppress(ReportError, TimeoutError, WebSocketClosedError):
                    tab._session = ""
                    await asyncio.wait_for(tab._ask("Browser.close", {}), 5)
                listening.cancel()
                socket.close()
        finally:
            _end(process)


async def _address(process: subprocess.Popen[bytes], browser: str) -> str:
    """Where the browser listens, which it says on its error stream; the stream is read on for as long as it runs."""
    found: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    loop, said = asyncio.get_running_loop(), bytearray()

    def settle(address: str | None) -> None:
        if not found.done() and address is not None:
            found.set_result(address)
        elif not found.done():
            last = bytes(said[-600:]).decode("utf-8", "replace").strip()
            found.set_exception(ReportError(f"{Path(browser).name} did not start. It said: {last or 'nothing'}"))

    def read() -> None:
        with suppress(RuntimeError, ValueError):  # the loop may be closed by the time that the stream ends
            for line in process.stderr or ():
                said.extend(line)
                if listening := _LISTENING.search(line):
                    loop.call_soon_threadsafe(settle, listening.group(1).decode())
            loop.call_soon_threadsafe(settle, None)

    threading.Thread(target=read, name="nb-sae-browser-log", daemon=True).start()
    return await asyncio.wait_for(found, _STARTS_WITHIN_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)
