"""A session's way into the swarm: what the peer at its other end says and asks, handed to who takes it."""

from __future__ import annotations

from typing import Any, Protocol

from ...protocols.peer_id import PeerId
from ...protocols.session import CallError, Hello, IncomingCall, Session
from .admission import Admission
from .lookup import FindBlocks, answer_lookup


class Swarm(Protocol):
    """What takes it."""

    admission: Admission

    async def answer_call(self, call: IncomingCall, method: str, params: Any, peer: PeerId) -> Any: ...
    def take_advert(self, session: Session, wire: Any) -> None: ...
    def take_note(self, session: Session, name: str, data: Any) -> None: ...


class PeerService:
    """find_blocks: answers a look-up."""

    def __init__(self, swarm: Swarm, peer: PeerId, find_blocks: FindBlocks) -> None:
        self._swarm, self._peer, self._find_blocks = swarm, peer, find_blocks

    async def on_call(self, call: IncomingCall, method: str, params: Any) -> Any:
        return await self._swarm.answer_call(call, method, params, self._peer)

    def on_hello(self, session: Session, hello: Hello) -> None:
        self._swarm.admission.check(self._peer, hello.papers)

    def on_advert(self, session: Session, body: Any) -> None:
        self._swarm.take_advert(session, body)

    def on_note(self, session: Session, name: str, data: Any) -> None:
        self._swarm.take_note(session, name, data)

    async def on_lookup(self, session: Session, body: Any) -> Any:
        if not self._swarm.admission.may(self._peer, "cache"):
            raise CallError("not_allowed", "the swarm's owner has not given this node the right to read answers")
        return await answer_lookup(body, self._find_blocks)
