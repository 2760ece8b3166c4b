"""The dashboard in a real, headless Chromium."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio
from shoal.node.tokens import TokenBook, Tokens
from shoal.providers.base import ModelInfo, Status

from tests.browser.chromium import Browser, Page, chromium
from tests.browser.scene import live, peers, scene
from tests.node.fakes_router import Pause, Scripted, Wait, says
from tests.node.fakes_rpc import Door, door

pytestmark = pytest.mark.browser

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture
async def browser() -> AsyncGenerator[Browser]:
    async with chromium() as found:
        yield found


async def opened(browser: Browser, node: Door, **how: Any) -> Page:
    page = await browser.open(f"http://127.0.0.1:{node.port}/", **how)
    await page.until("document.querySelector('#link').dataset.state === 'live'")
    return page


async def test_the_page_shows_the_swarm_the_requests_the_providers_and_the_cache(browser: Browser) -> None:
    async with scene() as node, trio.open_nursery() as nursery:
        await live(node, nursery)
        page = await opened(browser, node, width=1600, height=1000)
        await page.until("document.querySelectorAll('.request.live').length === 3")
        assert await page.run("document.querySelectorAll('#graph .node').length") == 6
        assert await page.run("document.querySelectorAll('#graph .edge.busy').length") == 2
        assert await page.run("document.querySelector('#f-peers').textContent") == "4"
        requests = await page.run("document.querySelector('#requests').innerText")
        assert "rate limited" in requests
        assert "workstation" in requests
        assert "from memory" in requests
        assert "fish" not in requests  # what was asked
        providers = await page.run("document.querySelector('#providers').innerText")
        assert "not signed in" in providers
        assert await page.run("document.querySelector('#cache').innerText.includes('Memory')")
        rate = await page.until("Number(document.querySelector('#f-rate').textContent)")
        assert 20 < rate < 2000
        assert page.console == []
        nursery.cancel_scope.cancel()


async def test_a_name_that_holds_markup_stays_text(browser: Browser) -> None:
    evil = Status(ready=True, models=(ModelInfo(EVIL),), default_model=EVIL, reason=EVIL)
    async with door(Scripted("first", says(EVIL), status=evil)) as node:
        found = peers()[:1]
        found[0] |= {"models": [{"name": EVIL, "provider": EVIL}], "version": EVIL, "providers": [EVIL]}
        found[0]["hardware"] = {"cpu": EVIL, "os": EVIL, "gpus": [{"name": EVIL}]}
        found.append({**found[0], "peer": EVIL, "connected": False, "problem": EVIL})
        node.node.peers = lambda: found  # type: ignore[method-assign]
        node.shelf.refused[EVIL] = EVIL
        page = await opened(browser, node)
        await page.until("document.querySelectorAll('.peers .row').length === 3")
        await page.run("document.querySelectorAll('.peers .row').forEach((row) => row.click())")
        await page.run("document.querySelector('#prompt').focus()")
        await page.type(EVIL)
        await page.enter()
        await page.until("document.querySelector('#answer-about').textContent.includes('first')")
        await page.until("document.querySelectorAll('.request').length === 1")
        assert await page.run("document.querySelector('#answer-text').textContent") == EVIL
        assert await page.run("document.querySelectorAll('img, body script').length") == 0
        assert await page.run("document.title") != "owned"
        assert EVIL in await page.run("document.querySelector('#graph').textContent + document.body.textContent")
        assert page.console == []


async def test_nothing_is_asked_of_anybody_but_this_node(browser: Browser) -> None:
    async with scene() as node:
        page = await opened(browser, node)
        await page.until("document.querySelectorAll('.peers .row').length === 6")
    assert len(page.requests) >= 8
    assert {url.split("/")[2] for url in page.requests if "://" in url} == {f"127.0.0.1:{node.port}"}


async def test_the_policy_stops_a_script_that_got_in_all_the_same(browser: Browser) -> None:
    async with door(Scripted("first", says("x"))) as node:
        page = await opened(browser, node)
        stopped = await page.run("try { document.body.innerHTML = '<b>x</b>'; 'written' } catch (e) { e.name }")
        assert stopped == "TypeError"
        fetched = await page.run("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')")
        assert fetched == "refused"
        assert any("Content Security Policy" in line for line in page.console)


async def test_the_prompt_streams_an_answer_and_says_who_gave_it(browser: Browser) -> None:
    later = trio.Event()
    script = ["Cold", Wait(later), " water.", *says("")[1:]]
    async with door(Scripted("first", script)) as node:
        page = await opened(browser, node)
        await page.run("document.querySelector('#prompt').focus()")
        await page.type("What is the opposite of hot?")
        await page.enter()
        await page.until("document.querySelector('#answer-text').textContent === 'Cold'")
        assert await page.run("document.querySelector('#send').textContent") == "Stop"
        assert await page.run("document.querySelector('#answer-text').getAttribute('aria-busy')") == "true"
        later.set()
        await page.until("document.querySelector('#answer-text').textContent === 'Cold water.'")
        await page.until("document.querySelector('#answer-about').innerText.includes('first token')")
        about = await page.run("document.querySelector('#answer-about').innerText")
        assert about.startswith("first ·")
        assert "baf" in about
        await page.enter()  # the same again
        await page.until("document.querySelector('#answer-about').innerText.includes('from the cache (memory)')")


async def test_stop_cancels_the_work(browser: Browser) -> None:
    provider = Scripted("first", ["Cold", Pause(3600)])
    async with door(provider) as node:
        page = await opened(browser, node)
        await page.run("document.querySelector('#prompt').value = 'hot?'; document.querySelector('#send').click()")
        await page.until("document.querySelector('#answer-text').textContent === 'Cold'")
        await page.run("document.querySelector('#send').click()")
        with trio.fail_after(5):
            while provider.open:
                await trio.sleep(0.02)
        await page.until("document.querySelector('#answer-about').textContent.startsWith('Stopped')")
    assert provider.cancelled == 1


async def test_an_error_is_shown_in_words(browser: Browser) -> None:
    async with door() as node:
        page = await opened(browser, node)
        await page.run("document.querySelector('#prompt').value = 'hot?'; document.querySelector('#send').click()")
        await page.until("document.querySelector('#answer').classList.contains('failed')")
        assert "No provider is ready" in await page.run("document.querySelector('#answer-about').textContent")


@pytest.mark.parametrize("width", [320, 400, 768, 1280, 1600])
async def test_nothing_overflows_at_any_width(browser: Browser, width: int) -> None:
    async with scene() as node, trio.open_nursery() as nursery:
        await live(node, nursery)
        page = await opened(browser, node, width=width, height=900)
        await page.until("document.querySelectorAll('.request').length >= 6")
        await page.run("document.querySelectorAll('.row')[1].click()")
        wide = await page.run("document.documentElement.scrollWidth")
        assert wide <= width
        nursery.cancel_scope.cancel()


async def test_the_keyboard_reaches_everything_in_reading_order(browser: Browser) -> None:
    async with scene() as node:
        page = await opened(browser, node)
        await page.until("document.querySelectorAll('.row').length === 6 && !document.querySelector('#unset').hidden")
        order = [await page.tab() for _ in range(13)]
        assert order[:6] == ["skip", "theme", "prompt", "model", "send", "invite"]
        assert order[6:12] == ["row"] * 6
        assert order[12] == "unset-title"
        visible = await page.run("getComputedStyle(document.activeElement).outlineStyle")
        assert visible != "none"
        await page.run("document.querySelectorAll('.row')[1].focus()")
        await page.enter()
        assert await page.run("document.activeElement.getAttribute('aria-expanded')") == "true"
        await page.run("window.before = document.activeElement")
        await trio.sleep(1.3)  # the feed has moved on meanwhile, and the focus is where it was
        assert await page.run("document.activeElement === window.before")


async def test_text_is_legible_in_both_schemes(browser: Browser) -> None:
    async with scene() as node, trio.open_nursery() as nursery:
        await live(node, nursery)
        for dark in (False, True):
            page = await opened(browser, node, dark=dark)
            await page.until("document.querySelectorAll('.request').length >= 6")
            faint = await page.run((Path(__file__).parent / "contrast.js").read_text())
            assert not faint, faint
        nursery.cancel_scope.cancel()


async def test_the_colours_can_be_chosen_and_are_remembered(browser: Browser) -> None:
    async with scene() as node:
        page = await opened(browser, node)
        light = await page.run("getComputedStyle(document.body).backgroundColor")
        await page.run("document.querySelector('#theme').click(); document.querySelector('#theme').click()")
        dark = await page.run("getComputedStyle(document.body).backgroundColor")
        assert light != dark
        again = await opened(browser, node)
        assert await again.run("getComputedStyle(document.body).backgroundColor") == dark


async def test_the_page_finds_back_when_the_node_was_away(browser: Browser, tmp_path: Path) -> None:
    async with door(Scripted("first", says("x"))) as node:
        page = await opened(browser, node)
    await page.until("document.querySelector('#link').dataset.state === 'lost'")
    assert await page.run("document.querySelector('#link-text').textContent") == "Reconnecting"


async def test_from_another_machine_the_page_asks_for_a_token_and_uses_it(browser: Browser, tmp_path: Path) -> None:
    book = TokenBook(tmp_path)
    _, secret = book.new("phone")
    tokens = Tokens(book)
    async with door(Scripted("first", says("Cold.")), outside=True, tokens=tokens) as node:
        page = await browser.open(f"http://127.0.0.1:{node.port}/")
        await page.until("document.querySelector('#token').open")
        assert await page.run("document.querySelector('#link-text').textContent") == "Locked"
        await page.run("document.querySelector('#token-value').focus()")
        await page.type(secret)
        await page.enter()
        await page.until("document.querySelector('#link').dataset.state === 'live'")
        await page.run("document.querySelector('#prompt').value = 'hot?'; document.querySelector('#send').click()")
        await page.until("document.querySelector('#answer-text').textContent === 'Cold.'")
