"""What this node says of itself to its peers: its advert when a session begins, again when something has changed, and
a last one when it leaves.

What belongs here: when an advert goes to whom. What stands in it is the owner's affair (node/life.py), what is made of
others' is swarm.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import msgspec
import trio

from ...protocols.peer_id import Identity, PeerId
from ...protocols.session import Session
from ..version import version
from .advert import TTL_S, AdvertContent, AdvertWriter, beyond_machine
from .peer import Peer

log = logging.getLogger("shoal.swarm")

ADVERT_GAP_S = 0.5


class Telling:
    """describe: what this node offers a peer now. peers: everyone known. is_here: whether a peer is on this machine;
    others are not told of loopback."""

    def __init__(
        self,
        identity: Identity,
        swarm: str,
        *,
        describe: Callable[[], AdvertContent],
        peers: Callable[[], Iterable[Peer]],
        is_here: Callable[[PeerId], bool],
    ) -> None:
        self._identity, self._describe, self._peers, self._is_here = identity, describe, peers, is_here
        self._writer = AdvertWriter(identity, swarm)
        self._issue = 0
        self._news = trio.Event()
        self._left = False

    def move(self, swarm: str) -> None:
        """From now on it speaks to another swarm."""
        self._writer = AdvertWriter(self._identity, swarm)

    def changed(self) -> None:
        """What this node offers has changed: tell the peers, within half a second."""
        self._news.set()

    async def run(self, each_time: Callable[[], None]) -> None:
        """Until cancelled. each_time: called before each round, at least every 100 s."""
        while True:
            with trio.move_on_after(TTL_S / 3):
                await self._news.wait()
            self._news = trio.Event()
            self._issue += 1
            each_time()
            for peer in self._peers():
                if peer.session is not None:
                    self.tell(peer, peer.session)
            await trio.sleep(ADVERT_GAP_S)

    def tell(self, peer: Peer, session: Session) -> None:
        """Send the advert, unless the peer has this issue of it already. Each has a number of its own."""
        if self._left or (peer.told == self._issue and peer.told_on is not None and peer.told_on.lost is None):
            return
        if self._send(session, lambda: self._content(peer)):
            peer.told, peer.told_on = self._issue, session

    def _content(self, peer: Peer) -> AdvertContent:
        content = self._describe()
        if self._is_here(peer.id):
            return content
        return msgspec.structs.replace(content, addresses=beyond_machine(content.addresses))

    def leave(self) -> None:
        """The last word: nothing is offered here any more. Those who only heard of this node hear that, too."""
        if self._left:
            return
        self._left = True
        for peer in self._peers():
            if peer.session is not None:
                self._send(peer.session, lambda: AdvertContent(version=version(), leaving=True))

    def _send(self, session: Session, content: Callable[[], AdvertContent]) -> bool:
        try:
            session.send_advert(self._writer.write(content()))
        except Exception as error:
            log.error("this node's advert cannot be made: %s", type(error).__name__)  # noqa: TRY400
            return False
        return True
