"""The dashboard of a real node among real peers; what the docs show are its pictures."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trio

from tests.browser.chromium import chromium
from tests.browser.reef import PICTURES, pictures, reef
from tests.e2e.fixtures import NO_MODEL, in_thread, start

pytestmark = pytest.mark.browser

TAKEN = Path(__file__).parents[2] / "build" / "browser"


async def test_the_page_shows_the_peers_that_there_are_what_they_do_and_what_they_had(tmp_path: Path) -> None:
    async with reef(tmp_path) as found, chromium() as browser, trio.open_nursery() as nursery:
        await found.live(nursery)
        page = await browser.open(f"{found.node.rpc}/", width=1600, height=1000)
        await page.until("document.querySelectorAll('#graph .edge.busy').length === 3")
        names = (await page.run("document.querySelector('#peers').innerText")).split("\n")
        assert {node.peer_id[-6:] for node in found.nodes} <= set(names)
        assert await page.run("document.querySelectorAll('#graph .edge.away').length") == 1
        asker = found.nodes[3].peer_id[-6:]
        lent = await page.run("document.querySelector('#sharing').innerText")
        assert asker in lent
        assert "2 requests, 132 tokens" in lent
        await page.run("document.querySelector('#pause').focus()")
        await page.enter()
        await page.until("document.querySelector('#pause').textContent === 'Resume'")
        sharing = await in_thread(httpx.get, f"{found.node.rpc}/shoal/v1/sharing")
        assert sharing.json()["paused"]
        await page.enter()
        await page.until("document.querySelector('#pause').textContent === 'Pause'")
        assert await pictures(browser, found, TAKEN) == []
        assert all((TAKEN / f"{name}.png").stat().st_size > 20_000 for name, *_ in PICTURES)
        assert page.console == []
        nursery.cancel_scope.cancel()


async def test_the_page_goes_on_after_the_node_was_started_again(tmp_path: Path) -> None:
    async with chromium() as browser:
        node = await start(tmp_path, config=NO_MODEL)
        page = await browser.open(f"{node.rpc}/")
        await page.until("document.querySelector('#link').dataset.state === 'live'")
        await in_thread(node.stop)
        await page.until("document.querySelector('#link').dataset.state === 'lost'")
        with await start(tmp_path, "--rpc", f"127.0.0.1:{node.port}", config=NO_MODEL):
            await page.until("document.querySelector('#link').dataset.state === 'live'", 15)
            await page.until("document.querySelector('#foot').textContent.includes('up')")
