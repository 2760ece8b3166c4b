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

AXE = Path(__file__).parents[2] / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
HEBREW = "\u05e9\u05dc\u05d5\u05dd"
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
        order = [await page.tab() for _ in range(14)]
        assert order[:6] == ["skip", "theme", "prompt", "model", "send", "invite"]
        assert order[6:12] == ["row"] * 6
        assert order[12:] == ["quiet text", "unset-title"]  # the copy of the address, where nothing was asked yet
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


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not here; `make browser` installs it with npm")
@pytest.mark.parametrize("how", [{}, {"dark": True}, {"forced": True}], ids=["light", "dark", "forced colours"])
async def test_axe_finds_nothing(browser: Browser, how: dict[str, bool]) -> None:
    rules = "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']"
    async with scene() as node, trio.open_nursery() as nursery:
        await live(node, nursery)
        page = await opened(browser, node)
        await page.run(AXE.read_text() + "; 0")
        for width in (400, 800, 1600):
            await page.size(width, 900, **how)
            await page.until("document.querySelectorAll('.request').length >= 6")
            await page.run("document.querySelectorAll('.row')[1].click()")
            found = await page.run(f"axe.run(document, {{runOnly: {rules}}}).then((r) => r.violations)")
            assert found == [], [(one["id"], [where["target"] for where in one["nodes"]]) for one in found]
        nursery.cancel_scope.cancel()


async def test_a_palette_of_the_systems_hides_nothing(browser: Browser) -> None:
    async with scene() as node, trio.open_nursery() as nursery:
        await live(node, nursery)
        page = await opened(browser, node)
        await page.until("document.querySelectorAll('.request').length >= 6")
        await page.size(1600, 1000, forced=True)
        ground = await page.run("getComputedStyle(document.body).backgroundColor")
        for drawn in (".peers .dot.on", ".track span", ".seg.memory"):
            assert await page.run(f"getComputedStyle(document.querySelector('{drawn}')).backgroundColor") != ground
        assert await page.run("getComputedStyle(document.querySelector('.node.me .body')).fill") != ground
        assert await page.run("getComputedStyle(document.querySelector('#send')).borderStyle") == "solid"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("number", [0, 1, 2, 10, 14, 30, 120])
@pytest.mark.parametrize("width", [400, 1600])
async def test_no_two_names_of_the_graph_lie_on_each_other_and_none_is_cut(
    browser: Browser, number: int, width: int
) -> None:
    found = [peers()[n % 4] | {"peer": f"12D3KooW{n:06}{chr(97 + n % 26) * 3}{n:03}"} for n in range(number)]
    async with door(Scripted("first", says("x"))) as node:
        node.node.peers = lambda: found  # type: ignore[method-assign]
        page = await opened(browser, node, width=width, height=900)
        await page.until(f"document.querySelectorAll('.row').length === {number + 1}")
        assert await page.run("!document.querySelector('#alone').hidden") == (number == 0)
        crowded = await page.run(
            """(() => {
              const all = [...document.querySelectorAll('#graph .label')].map((e) => e.getBoundingClientRect());
              const box = document.querySelector('#graph').getBoundingClientRect();
              const on = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
              const across = (r) => r.left >= box.left && r.right <= box.right;
              const inside = (r) => across(r) && r.top >= box.top && r.bottom <= box.bottom;
              const cut = all.filter((r) => !inside(r));
              return cut.length + all.filter((a, i) => all.some((b, j) => j > i && on(a, b))).length;
            })()"""
        )
        assert crowded == 0
        assert ("40 more in the list" in await page.run("document.querySelector('#graph').textContent")) == (
            number == 120
        )


async def test_a_page_that_is_left_open_keeps_no_more_than_it_shows(browser: Browser) -> None:
    async with door(Scripted("first", *[says("Cold.") for _ in range(260)])) as node:
        page = await opened(browser, node)

        async def there(answers: int) -> dict[str, float]:
            await page.until(f"document.querySelector('#f-cache-aside').textContent === 'of {answers} answers'")
            await page.send("HeapProfiler.collectGarbage")
            metrics = await page.send("Performance.getMetrics")
            return {one["name"]: one["value"] for one in metrics["metrics"]}

        async def ask(first: int, last: int) -> None:
            for number in range(first, last):
                await node.chat(messages=[{"role": "user", "content": f"what is {number}?"}])

        await page.send("Performance.enable")
        await page.send("HeapProfiler.enable")
        await ask(0, 60)
        before = await there(60)
        await ask(60, 260)
        after = await there(260)
        assert await page.run("document.querySelectorAll('.request').length") == 30
        assert after["Nodes"] <= before["Nodes"] * 1.1
        assert after["JSEventListeners"] <= before["JSEventListeners"] * 1.1
        assert after["JSHeapUsedSize"] <= before["JSHeapUsedSize"] + 1_000_000


async def test_the_end_of_a_long_answer_stays_in_view_and_arrow_keys_scroll_it(browser: Browser) -> None:
    script = [f"line {number}\n" for number in range(200)]
    async with door(Scripted("first", [*script, *says("")[1:]])) as node:
        page = await opened(browser, node)
        await page.run("document.querySelector('#prompt').value = 'count'; document.querySelector('#send').click()")
        await page.until("document.querySelector('#answer-about').textContent.includes('first token')")
        box = "document.querySelector('#answer-text')"
        assert await page.run(f"{box}.scrollTop + {box}.clientHeight >= {box}.scrollHeight - 2")
        assert await page.run(f"{box}.tabIndex") == 0
        assert await page.run(f"{box}.childNodes.length") == 1


async def test_why_nobody_answered_is_said_with_the_request(browser: Browser) -> None:
    async with door() as node:
        await node.chat(model="nobody-has-it")
        page = await opened(browser, node)
        await page.until("!!document.querySelector('.request .reason')")
        assert "Nobody here" in await page.run("document.querySelector('.request .reason').textContent")


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
    said = await page.run("document.querySelector('#link-text').textContent")
    assert said.startswith("Reconnecting, last heard ")


async def test_a_line_that_was_cut_is_given_up(browser: Browser) -> None:
    """A machine that slept, a network that went: nothing comes, and nothing says that it ended."""
    async with door(Scripted("first", says("x"))) as node:
        page = await browser.open("about:blank")
        await page.send(
            "Page.addScriptToEvaluateOnNewDocument",
            source="const later = setTimeout; setTimeout = (f, ms) => later(f, ms === 40000 ? 200 : ms);",
        )
        await page.send("Page.navigate", url=f"http://127.0.0.1:{node.port}/")
        await page.until("document.querySelector('#link')?.dataset.state === 'live'")
        node.rpc.telemetry.feed._sections = []  # from now on the node is silent
        await page.until("document.querySelector('#link').dataset.state === 'lost'")


async def test_from_another_machine_the_page_asks_for_a_token_and_uses_it(browser: Browser, tmp_path: Path) -> None:
    book = TokenBook(tmp_path)
    _, secret = book.new("phone")
    tokens = Tokens(book)
    async with door(Scripted("first", says("Cold.")), outside=True, tokens=tokens) as node:
        page = await browser.open(f"http://127.0.0.1:{node.port}/")
        await page.until("document.querySelector('#token').open")
        assert await page.run("document.querySelector('#link-text').textContent") == "Locked"
        await page.key("Escape", code=27)  # the page can be left locked
        await page.until("!document.querySelector('#token').open")
        await page.run("document.querySelector('#unlock').focus()")
        await page.enter()
        await page.until("document.querySelector('#token').open")
        await page.run("document.querySelector('#token-value').focus()")
        await page.type("shoal_wrong")
        await page.enter()
        await page.until("document.querySelector('#token-wrong').textContent.includes('does not know this token')")
        assert await page.run("document.activeElement.id") == "token-value"
        await page.type(secret)
        await page.enter()
        await page.until("document.querySelector('#link').dataset.state === 'live'")
        await page.run("document.querySelector('#prompt').value = 'hot?'; document.querySelector('#send').click()")
        await page.until("document.querySelector('#answer-text').textContent === 'Cold.'")


async def test_a_name_does_not_turn_what_stands_around_it(browser: Browser) -> None:
    turned = "model\u202egnp.exe"
    says_so = Status(ready=True, models=(ModelInfo(turned),), default_model=turned)
    async with door(Scripted("first", says("Cold."), status=says_so)) as node:
        page = await opened(browser, node)
        await page.until("document.querySelector('#providers').innerText.includes('modelgnp.exe')")
        assert not await page.run(r"/[\u202a-\u202e\u2066-\u2069]/.test(document.body.textContent)")
        assert turned in await page.run("[...document.querySelectorAll('#model option')].map((one) => one.value)")


async def test_more_live_requests_than_are_shown_are_counted(browser: Browser) -> None:
    async with door(Scripted("first", ["Cold", Pause(3600)])) as node, trio.open_nursery() as nursery:
        for number in range(33):
            question = [{"role": "user", "content": f"question {number}"}]
            nursery.start_soon(lambda asked=question: node.chat(messages=asked))
        page = await opened(browser, node)
        await page.until("document.querySelector('#requests-note').textContent === '33 live, 30 of them here'")
        assert await page.run("document.querySelectorAll('.request.live').length") == 30
        nursery.cancel_scope.cancel()


async def test_the_last_minute_of_tokens_is_a_line_and_an_idle_one_is_none(browser: Browser) -> None:
    async with scene() as node, trio.open_nursery() as nursery:
        page = await opened(browser, node)
        assert await page.run("document.querySelector('#f-rate-line').childElementCount") == 0
        await live(node, nursery)
        drawn = await page.until("document.querySelector('#f-rate-line .line')?.getAttribute('d')")
        assert drawn.startswith("M")
        assert await page.run("document.querySelector('.spark').getAttribute('aria-hidden')") == "true"
        await page.run("document.querySelector('#f-rate').textContent = '12 345'")
        for width in (320, 400, 700, 1000, 1250, 1600):
            await page.size(width, 900)
            assert await page.run(
                """(() => {
                  const box = (node) => {
                    const range = document.createRange();
                    range.selectNodeContents(node);
                    return range.getBoundingClientRect();
                  };
                  const line = document.querySelector('.spark').getBoundingClientRect();
                  return ['#f-rate', '#f-rate-aside', '#f-cache'].every((name) => {
                    const text = box(document.querySelector(name));
                    const beside = line.right <= text.left || text.right <= line.left;
                    return !line.width || beside || text.bottom <= line.top || line.bottom <= text.top;
                  });
                })()"""
            ), width
        assert page.console == []
        nursery.cancel_scope.cancel()


async def test_an_answer_in_a_script_from_the_right_begins_at_the_right(browser: Browser) -> None:
    async with door(Scripted("first", says(HEBREW))) as node:
        page = await opened(browser, node)
        await page.run("document.querySelector('#prompt').value = 'hot?'; document.querySelector('#send').click()")
        await page.until("document.querySelector('#answer-text').textContent.length === 4")
        assert await page.run("document.querySelector('#answer-text').matches(':dir(rtl)')")
        assert await page.run("document.querySelector('#prompt').matches(':dir(ltr)')")


async def test_what_nobody_answered_is_not_among_the_answers(browser: Browser) -> None:
    async with door(Scripted("first", says("Cold."))) as node:
        for number in range(3):
            assert (await node.chat(model=f"nobody-has-{number}")).status == 404
        await node.chat()
        await node.chat()
        page = await opened(browser, node)
        await page.until("document.querySelector('#f-cache-aside').textContent === 'of 2 answers'")
        assert (await page.run("document.querySelector('#f-cache').textContent")).startswith("50")
