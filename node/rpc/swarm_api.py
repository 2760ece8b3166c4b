"""`/shoal/v1/swarm`, `/shoal/v1/swarm/roster`, `/shoal/v1/sharing`, `/shoal/v1/pause`, `/shoal/v1/resume`: the owner's
side of the swarm.

Nothing secret goes out here and nothing that needs a secret comes in: a roster is signed by the command that has the
owner's key at hand, and the node takes it as it would from a peer.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from ...protocols.http.exchange import Exchange
from .chat_request import decode_object
from .errors import JSON, ApiError, bad_request

MAX_PAUSE_S = 365 * 24 * 3600.0


class SwarmNode(Protocol):
    """What the daemon tells and does about its swarm."""

    def swarm_view(self) -> dict[str, Any]:
        """{"name", "private", "owner", "members", ..., "roster": wire or None}."""
        ...

    async def take_roster(self, wire: list[bytes]) -> bool:
        """Whether it was new. ValueError when the owner has not signed it, or this swarm has no owner."""
        ...

    def sharing_view(self) -> dict[str, Any]: ...
    def pause(self, seconds: float | None) -> dict[str, Any]: ...
    def resume(self) -> dict[str, Any]: ...


class SwarmApi:
    """The handlers."""

    def __init__(self, node: SwarmNode) -> None:
        self._node = node

    async def swarm(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        await _respond(exchange, self._node.swarm_view())

    async def roster(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        told = decode_object(exchange.body).get("roster")
        try:
            if not isinstance(told, list) or len(told) != 2:
                raise bad_request("roster wants two texts in base64: statement and signature.", "roster")
            wire = [base64.b64decode(part, validate=True) for part in told]
        except (TypeError, binascii.Error, ValueError):
            raise bad_request("roster wants two texts in base64: statement and signature.", "roster") from None
        try:
            new = await self._node.take_roster(wire)
        except ValueError as error:
            raise bad_request(str(error), "roster") from None
        if not new:
            raise ApiError(409, "The roster has changed meanwhile; try again.", code="stale_roster")
        await _respond(exchange, self._node.swarm_view())

    async def sharing(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        await _respond(exchange, self._node.sharing_view())

    async def pause(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        seconds = decode_object(exchange.body).get("seconds")
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
            raise bad_request("seconds wants a number, or nothing for: until resumed.", "seconds")
        if seconds is not None and not 0 < seconds <= MAX_PAUSE_S:
            raise bad_request("seconds wants a number above 0, of at most a year.", "seconds")
        await _respond(exchange, self._node.pause(seconds))

    async def resume(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        await _respond(exchange, self._node.resume())


async def _respond(exchange: Exchange, found: object) -> None:
    await exchange.respond(200, msgspec.json.encode(found), [JSON])
