"""`GET /shoal/v1/events`: what the node is doing, as server-sent events, for the dashboard, `shoal top` and others.

Each event carries one section whole, whenever it has changed: node, peers, providers, models, cache, requests. A
section is looked at once for all that listen, so that twenty open dashboards cost what one costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import trio

from ...protocols.http.exchange import Exchange
from ...protocols.http.message import Header
from ...protocols.http.sse import encode_event
from .errors import ApiError
from .grant import Grant

PACE_S = 0.25
"""Seconds between two looks; what changes faster is seen at this pace."""
SLOW_PACE_S = 1.0
"""The same for what changes slowly, or costs more to look at."""
KEEP_ALIVE_S = 15.0
MAX_LISTENERS = 64
GRANT_PACE_S = 1.0
"""Seconds between two looks whether a listener's token is good still."""

_HEADERS: tuple[Header, ...] = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-store"),
    ("x-accel-buffering", "no"),
)


class Section:
    """One kind of event. look: what there is now, JSON-compatible. pace: seconds between two looks."""

    def __init__(self, name: str, look: Callable[[], Any], pace: float = SLOW_PACE_S) -> None:
        self.name, self._look, self._pace = name, look, pace
        self._next_look = float("-inf")
        self._body = b""
        self.version = 0
        self.event = b""

    def refresh(self, now: float) -> None:
        """Looks again when it is time."""
        if now < self._next_look:
            return
        self._next_look = now + self._pace * 0.9
        body = msgspec.json.encode(self._look())
        if body != self._body:
            self._body = body
            self.version += 1
            self.event = encode_event(body, self.name)


class Feed:
    """The handler. sections: in the order in which a new listener gets them."""

    def __init__(self, sections: list[Section]) -> None:
        self._sections = sections
        self.listeners = 0

    async def __call__(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        if self.listeners >= MAX_LISTENERS:
            raise ApiError(503, "Too many listen to this node already; close a dashboard.", code="too_many_listeners")
        if exchange.method == "HEAD":
            await exchange.respond(200, b"", _HEADERS)
            return
        self.listeners += 1
        try:
            await self._tell(exchange)
        finally:
            self.listeners -= 1

    async def _tell(self, exchange: Exchange) -> None:
        told: dict[str, int] = {}
        keeps = exchange.keeps_connection
        grant: Grant | None = exchange.note
        silent_since = granted_at = trio.current_time()
        async with exchange.stream(200, _HEADERS) as send:
            while exchange.keeps_connection == keeps:  # until the node stops
                now = trio.current_time()
                if grant is not None and now - granted_at >= GRANT_PACE_S:
                    if not grant.good():
                        return  # who asks again is told why
                    granted_at = now
                news = b""
                for section in self._sections:
                    section.refresh(now)
                    if told.get(section.name) != section.version:
                        told[section.name] = section.version
                        news += section.event
                if not news and now - silent_since >= KEEP_ALIVE_S:
                    news = b": keep-alive\n\n"
                if news:
                    silent_since = now
                    await send(news)
                await trio.sleep(PACE_S)
