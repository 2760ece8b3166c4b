"""Debian's Chromium, headless, driven over its DevTools protocol with nothing but a WebSocket.

async with chromium() as browser:
    page = await browser.open("http://127.0.0.1:8642/", width=1600)
    await page.until("document.title === 'Shoal'")
    await page.screenshot(Path("page.png"))
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, connect_websocket_url

BINARY = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless=new", "--disable-gpu", "--no-first-run", "--disable-quic", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-default-apps", "--hide-scrollbars", "--mute-audio"),
    *("--disable-dev-shm-usage", "--force-color-profile=srgb", "--remote-debugging-port=0"),
)
WAIT_S = 10.0


class Page:
    """One tab. console: the page's errors, refused loads among them. requests: every URL that it asked for."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.console: list[str] = []
        self.requests: list[str] = []

    async def send(self, method: str, **params: Any) -> Any:
        return await self._browser.send(method, params, self._session)

    def heard(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.console.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.console.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.console.append(json.dumps(params["args"])[:500])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    async def size(
        self, width: int, height: int, *, dark: bool = False, calm: bool = False, forced: bool = False
    ) -> None:
        """calm: as for somebody who wants no motion. forced: with a palette of the system's, as for high contrast."""
        mobile = width < 600
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        features.append({"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"})
        features.append({"name": "forced-colors", "value": "active" if forced else "none"})
        await self.send("Emulation.setEmulatedMedia", features=features)

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        found = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise AssertionError(json.dumps(found["exceptionDetails"])[:1000])
        return found["result"].get("value")

    async def until(self, script: str, within: float = WAIT_S) -> Any:
        """The first true value of an expression."""
        with trio.move_on_after(within):
            while not (value := await self.run(script)):
                await trio.sleep(0.05)
            return value
        raise AssertionError(f"never true: {script}; console: {self.console}")

    async def key(self, key: str, *, text: str = "", code: int = 0, shift: bool = False) -> None:
        common: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        await self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    async def tab(self, *, back: bool = False) -> str:
        """Press Tab; what has the focus then, in words."""
        await self.key("Tab", code=9, shift=back)
        return str(await self.run("((e) => e.id || e.className || e.tagName)(document.activeElement)"))

    async def enter(self) -> None:
        await self.key("Enter", text="\r", code=13)

    async def type(self, text: str) -> None:
        await self.send("Input.insertText", text=text)

    async def screenshot(self, path: Path, *, whole: bool = True) -> None:
        clip = {}
        if whole:
            box = (await self.send("Page.getLayoutMetrics"))["cssContentSize"]
            clip = {"clip": {"x": 0, "y": 0, "width": box["width"], "height": box["height"], "scale": 1}}
        found = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(found["data"]))


class Browser:
    """The connection to a running Chromium."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}

    async def listen(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = json.loads(await self._socket.get_message())
                if "id" in message:
                    self._answers.pop(message["id"]).send_nowait(message)
                elif (page := self._pages.get(message.get("sessionId", ""))) is not None:
                    page.heard(message["method"], message["params"])

    async def send(self, method: str, params: dict[str, Any], session: str | None = None) -> Any:
        number = next(self._ids)
        sender, receiver = trio.open_memory_channel[dict[str, Any]](1)
        self._answers[number] = sender
        message = {"id": number, "method": method, "params": params}
        await self._socket.send_message(json.dumps(message | ({"sessionId": session} if session else {})))
        with trio.fail_after(WAIT_S * 2):
            answer = await receiver.receive()
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    async def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        target = (await self.send("Target.createTarget", {"url": "about:blank"}))["targetId"]
        session = (await self.send("Target.attachToTarget", {"targetId": target, "flatten": True}))["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.send(f"{domain}.enable")
        await page.size(width, height, dark=dark)
        await page.send("Page.navigate", url=url)
        await page.until("document.readyState === 'complete'")
        return page


@contextlib.asynccontextmanager
async def chromium() -> AsyncGenerator[Browser]:
    """A browser of its own, with an empty profile. Killed as a group at the end."""
    if BINARY is None:
        raise RuntimeError("no Chromium here; `make browser` installs Debian's (apt-get install chromium)")
    with tempfile.TemporaryDirectory(prefix="shoal-chromium-", ignore_cleanup_errors=True) as profile:
        flags = [*FLAGS, f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen([BINARY, *flags, "about:blank"], stdout=quiet, stderr=quiet, start_new_session=True)
        try:
            port_file = Path(profile) / "DevToolsActivePort"
            with trio.fail_after(WAIT_S * 3):
                while not (port_file.exists() and port_file.read_text().count("\n")):
                    await trio.sleep(0.05)
            port, path = port_file.read_text().splitlines()[:2]
            async with trio.open_nursery() as nursery:
                url = f"ws://127.0.0.1:{port}{path}"
                socket = await connect_websocket_url(nursery, url, max_message_size=1 << 28)
                browser = Browser(socket)
                nursery.start_soon(browser.listen)
                yield browser
                nursery.cancel_scope.cancel()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
