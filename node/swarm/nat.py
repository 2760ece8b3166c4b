"""How this node stands towards NATs: what others see of it, which peers it reaches through a relay, and why.

What belongs here: the two protocols of protocols/p2p (autonat.py, punching.py) as the swarm uses them, and what people
get to see of them. Places behind relays are relaying.py's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec

from ...protocols.p2p.autonat import AutoNat
from ...protocols.p2p.host import Host
from ...protocols.p2p.nat_limits import NatLimits
from ...protocols.p2p.punching import Punching
from ...protocols.peer_id import PeerId


class Swarm(Protocol):
    """What is wanted of swarm.py."""

    def went_direct(self, peer_id: PeerId, /) -> None: ...
    def changed(self) -> None: ...
    def is_barred(self, peer_id: PeerId, /) -> bool: ...


class Nat:
    """on_change: called when this node's reachability is another than before, and with it its addresses."""

    def __init__(
        self, host: Host, swarm: Swarm, limits: NatLimits, *, on_change: Callable[[], None] | None = None
    ) -> None:
        self._host, self._swarm, self._on_change = host, swarm, on_change
        self._told: list[str] = []
        self.autonat = AutoNat(host, limits, on_change=self._changed, may_ask=self._is_welcome)
        self.punching = Punching(host, self.autonat, limits, on_direct=swarm.went_direct, allowed=self._is_welcome)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Nat]:
        """Until the block is left. The host must be running around it."""
        async with self.autonat.running(), self.punching.running():
            yield self

    def _is_welcome(self, peer: PeerId) -> bool:
        # Not only members: a node asks as soon as it is connected, before it has shown that it is one.
        return not self._swarm.is_barred(peer)

    def _changed(self) -> None:
        self.punching.changed()
        if (told := self._host.addresses()) != self._told:
            self._told = told
            self._swarm.changed()
        if self._on_change is not None:
            self._on_change()

    def reach(self) -> str:
        """Whether the internet can dial this node, as others found: "public", "private" or "unknown"."""
        facts = self.autonat.facts
        return facts.reach if facts.scope == "internet" else "unknown"

    def note(self, peer: PeerId) -> str:
        """Why a peer stays on a relay; "" when that is not settled, or it does not."""
        return self.punching.notes.get(peer, "")

    def view(self) -> dict[str, Any]:
        """For the status: JSON-compatible."""
        facts = msgspec.to_builtins(self.autonat.facts)
        return {
            **facts,
            "dialled_back": self.autonat.dialled_back,
            "refused": self.autonat.refused,
            "lies": self.autonat.lies,
            "punched": self.punching.made,
            "punched_in_vain": self.punching.failed,
        }
