"""The dashboard's files as HTTP has them, and the feed behind it. How the page behaves is tests/browser's."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

import trio
from shoal.node.rpc import events_feed
from shoal.providers.base import ErrorKind

from .fakes_router import Pause, Scripted, Wait, fails, says
from .fakes_rpc import Door, door


async def test_the_page_and_its_files_are_served_with_a_strict_policy() -> None:
    async with door() as node:
        page = await node.ask("GET", "/")
        paths = re.findall(r'(?:src|href)="(/[^"]+)"', page.body.decode())
        files = [await node.ask("GET", path) for path in paths]
        missing = await node.ask("GET", "/assets/..%2f..%2fapp.py")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in page.headers["content-security-policy"]
    assert len(files) == 3
    for file in (page, *files):
        assert file.status == 200
        assert file.headers["x-content-type-options"] == "nosniff"
    assert missing.status == 404


async def test_a_file_that_the_browser_has_is_not_sent_again() -> None:
    async with door() as node:
        first = await node.ask("GET", "/assets/dashboard.js")
        again = await node.ask("GET", "/assets/dashboard.js", headers={"if-none-match": first.headers["etag"]})
        head = await node.ask("HEAD", "/")
    assert (again.status, again.body) == (304, b"")
    assert (head.status, head.body) == (200, b"")


def test_the_page_has_no_inline_script_or_style_and_names_no_other_host() -> None:
    for file in resources.files("shoal.node.rpc").joinpath("static").iterdir():
        text = file.read_text()
        urls = set(re.findall(r"https?://[^\"'`\s)]*", text)) - {"http://www.w3.org/2000/svg"}
        assert not urls, file.name
        if file.name.endswith(".html"):
            assert not re.search(r"<style|\sstyle=|\son\w+=", text)
            assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))
        if file.name.endswith(".js"):
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)


async def test_another_sites_page_gets_neither_page_nor_feed() -> None:
    async with door() as node:
        for path in ("/", "/shoal/v1/events", "/metrics"):
            for headers in ({"host": "evil.example"}, {"sec-fetch-site": "cross-site"}):
                assert (await node.ask("GET", path, headers=headers)).status == 403


class Listener:
    """Reads the feed section by section."""

    def __init__(self, node: Door, stream: trio.SocketStream) -> None:
        self._node, self._stream, self._data = node, stream, b""

    async def next(self, wanted: str) -> Any:
        with trio.fail_after(5):
            while True:
                found = re.search(rb"event: (\w+)\ndata: (.*)\n\n", self._data)
                if found is None:
                    self._data += await self._stream.receive_some(65536)
                    continue
                self._data = self._data[found.end() :]
                if found[1].decode() == wanted:
                    return json.loads(found[2])


async def listening(node: Door) -> Listener:
    stream = await node.open()
    await stream.send_all(node.head("GET", "/shoal/v1/events", {"connection": "keep-alive"}, b""))
    return Listener(node, stream)


async def test_the_feed_tells_of_a_request_from_its_start_to_its_end() -> None:
    more = trio.Event()
    script = ["Cold", " and", Wait(more), " wet", *says("")[1:]]
    async with door(Scripted("bad", fails(ErrorKind.AUTH)), Scripted("first", script)) as node:
        feed = await listening(node)
        assert (await feed.next("requests"))["requests"] == []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.chat)
            while not (rows := (await feed.next("requests"))["requests"]) or not rows[0]["tokens"]:
                pass
            assert (rows[0]["state"], rows[0]["provider"], rows[0]["caller"]) == ("live", "first", "local")
            assert [(a["provider"], a["outcome"]) for a in rows[0]["route"]] == [("bad", "auth"), ("first", "live")]
            more.set()
        number = rows[0]["id"]
        while (rows := (await feed.next("requests"))["requests"])[0]["state"] == "live":
            pass
    assert (rows[0]["id"], rows[0]["state"], rows[0]["cache"]) == (number, "ok", "miss")
    assert rows[0]["cid"].startswith("baf")
    assert rows[0]["first_token_ms"] is not None


async def test_hits_in_a_row_are_one_row() -> None:
    async with door(Scripted("first", says("Cold."))) as node:
        for _ in range(4):
            await node.chat()
        rows = node.rpc.telemetry.activity.rows()
    assert [(row["cache"], row.get("times")) for row in rows] == [("memory", 3), ("miss", None)]


async def test_a_section_is_sent_again_only_when_it_has_changed() -> None:
    async with door(Scripted("first", says("x"))) as node:
        feed = await listening(node)
        before = await feed.next("peers")
        found = [*node.node.peers(), {"peer": "new", "connected": True}]
        await feed.next("cache")
        node.node.peers = lambda: found  # type: ignore[method-assign]
        after = await feed.next("peers")
    assert len(after["peers"]) == len(before["peers"]) + 1


async def test_a_feed_ends_when_the_node_stops_so_that_it_holds_nothing_up() -> None:
    async with door(Scripted("first", says("x"))) as node:
        feed = await listening(node)
        await feed.next("requests")
        node.server.stop(grace_s=3600)
        with trio.fail_after(5):
            while node.server.connections:
                await trio.sleep(0.02)


async def test_more_listeners_than_the_limit_are_turned_away(monkeypatch: Any) -> None:
    monkeypatch.setattr(events_feed, "MAX_LISTENERS", 1)
    async with door(Scripted("first", [Pause(1)])) as node:
        feed = await listening(node)
        await feed.next("requests")
        reply = await node.ask("GET", "/shoal/v1/events")
        assert (reply.status, reply.error["code"]) == (503, "too_many_listeners")
        await feed._stream.aclose()
        with trio.fail_after(5):
            while node.rpc.telemetry.feed.listeners:
                await trio.sleep(0.02)


async def test_from_another_machine_the_page_loads_and_its_data_wants_a_token() -> None:
    async with door(Scripted("first", says("x")), outside=True) as node:
        host = {"host": "shoal.example"}
        assert (await node.ask("GET", "/", headers=host)).status == 200
        assert (await node.ask("GET", "/assets/feed.js", headers=host)).status == 200
        for path in ("/shoal/v1/events", "/metrics", "/shoal/v1/status", "/v1/models"):
            assert (await node.ask("GET", path, headers=host)).status == 401
