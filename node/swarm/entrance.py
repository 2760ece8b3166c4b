"""The way into a swarm: an invite that was given to this node is followed, and one is made for others.

What belongs here: joining, and the port that it opens. What happens once peers are found is the swarm's business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from ...protocols.p2p.errors import ListenFailed
from ...protocols.peer_id import PeerId
from ...protocols.session import SessionLost
from .. import addresses
from .admission import Admission
from .invite import Invite, InviteError
from .links import Host
from .peer import Peer

log = logging.getLogger("shoal.swarm")

DEFAULT_LISTEN = ("/ip4/0.0.0.0/tcp/4642", "/ip4/0.0.0.0/tcp/0")  # the second when the first is taken
JOIN_S = 15.0
MAX_INVITE_ADDRESSES = 4  # so that it fits on a screen as a QR code
SETTLED_S = 5.0  # for a peer to say whether it lets this node in


class JoinFailed(ValueError):
    """A swarm could not be joined. The message says why and what to do."""


class Swarm(Protocol):
    """What the entrance needs of the swarm."""

    me: PeerId
    admission: Admission

    @property
    def name(self) -> str: ...
    @property
    def open(self) -> bool: ...
    async def move(self, name: str) -> None: ...
    def seek(self, peer_id: PeerId, addrs: Sequence[str]) -> Peer: ...


class Entrance:
    """key: of a private swarm, 64 hex digits. opened: the configuration says where to listen. announced: where others
    can dial this node."""

    def __init__(
        self, host: Host, swarm: Swarm, *, key: str | None, opened: bool, announced: Callable[[], Sequence[str]]
    ) -> None:
        self._host, self._swarm, self._key = host, swarm, key
        self._opened, self._announced = opened, announced

    async def seek_configured(self, text: str) -> None:
        try:
            invite = Invite.parse(text)
            if invite.swarm is not None and invite.swarm != self._swarm.name:
                raise InviteError(f"it leads to the swarm {invite.swarm!r}; set swarm.name to that")
        except InviteError as error:
            log.warning("a peer of the configuration cannot be used: %s", error)
        else:
            await self._seek_all(invite)

    async def join(self, invite: Invite | str) -> PeerId:
        """Join a swarm: the peer that is connected first. JoinFailed (a ValueError) when none is within 15 s.

        The peers of the invite are looked for even after a failure, as long as the node runs. An invite to another
        swarm makes this node leave the one it is in.
        """
        if isinstance(invite, str):
            invite = Invite.parse(invite)
        if not self._swarm.open:
            raise JoinFailed("the node is stopping")
        if invite.key is not None and invite.key.hex() != (self._key or "").lower():
            raise JoinFailed(
                "the swarm is private and its key takes effect at a start: stop this node, run `shoal join INVITE`, "
                "then `shoal run`"
            )
        if self._swarm.me in invite.peers and len(invite.peers) == 1:
            raise JoinFailed("this invite is this node's own; use it on another machine")
        if invite.swarm is not None and invite.swarm != self._swarm.name:
            await self._swarm.move(invite.swarm)
        if invite.ticket is not None and invite.owner == self._swarm.admission.owner:
            self._swarm.admission.ticket = list(invite.ticket)
        sought = await self._seek_all(invite)
        arrived: list[PeerId] = []
        with trio.move_on_after(JOIN_S):
            async with trio.open_nursery() as nursery:

                async def wait_for(peer: Peer) -> None:
                    while not await self._is_in(peer):
                        await peer.changed.wait()
                    arrived.append(peer.id)
                    nursery.cancel_scope.cancel()

                for peer in sought:
                    nursery.start_soon(wait_for, peer)
        if not arrived:
            problems = "; ".join(f"{peer.provider.name}: {peer.problem or 'no answer'}" for peer in sought)
            raise JoinFailed(f"no node of the invite could be reached ({problems}); is it running, and the port open?")
        return arrived[0]

    async def _is_in(self, peer: Peer) -> bool:
        """Whether there is a session with the peer that both sides have accepted: a refusal may still be on its way."""
        session = peer.session
        if session is None or not session.usable:
            return False
        try:
            peer.rtt_s = await session.ping(SETTLED_S)
            while peer.id in self._swarm.admission.pending and session.usable:
                await session.ping(SETTLED_S)
        except (SessionLost, trio.TooSlowError):
            return False
        return session.usable and self._swarm.admission.admits(peer.id)

    def invite(self) -> str:
        """The line that another machine needs to join. InviteError when this node listens nowhere.

        Addresses of this machine only are left out when there are others. With a private swarm's key it is a secret.
        """
        told = list(self._announced())
        told = [address for address in told if not addresses.is_local_multiaddr(address)] or told
        if not told:
            raise InviteError("this node does not listen for peers; set swarm.listen in the configuration")
        key = bytes.fromhex(self._key) if self._key else None
        ticket = self._swarm.admission.ticket_to_pass_on()
        return Invite(
            swarm=self._swarm.name,
            addrs=tuple(told[:MAX_INVITE_ADDRESSES]),
            key=key,
            owner=self._swarm.admission.owner,
            ticket=(ticket[0], ticket[1]) if ticket is not None else None,
        ).text

    async def _seek_all(self, invite: Invite) -> list[Peer]:
        """Dial the peers of an invite, and never give up."""
        await self._open_up(invite.addrs)
        found = []
        for peer_id, addrs in invite.peers.items():
            if peer_id != self._swarm.me:
                peer = self._swarm.seek(peer_id, addrs)
                peer.configured = True
                found.append(peer)
        return found

    async def _open_up(self, addrs: Sequence[str]) -> None:
        """A node whose owner joins a swarm beyond the machine listens beyond it, unless the configuration says where.

        Only what the owner says counts for this: a peer's advert does not open a port here.
        """
        if self._opened or all(addresses.is_local_multiaddr(address) for address in addrs):
            return
        self._opened = True
        for address in DEFAULT_LISTEN:
            try:
                await self._host.listen(address)
            except ListenFailed as error:
                log.info("%s", error)
            else:
                log.info("listening for peers beyond this machine", extra={"listen": address})
                return
