"""How adverts reach nodes that their signers are not connected to: hints of what is new, and the adverts on request.

A node that believes a new advert hints at it to its other peers, `[peer, number]` in a note, a few times a second at
most. Who lacks it asks the one that hinted. So each advert crosses a line once, however many lines there are, and the
signature is checked by everyone: a relay can withhold an advert but not change it. Every node now and then tells a
random peer a few of the numbers that it has, so that what was lost on the way arrives all the same.

On the wire: note "news", `[[peer, number], ...]`; call "adverts" with `[peer, ...]`, answered by `[advert, ...]`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any, Protocol

import trio

from ...protocols.peer_id import PeerId, parse_peer_id
from ...protocols.session import CallError, Session, SessionLost
from .advert import Advert, AdvertBook, AdvertRefused

log = logging.getLogger("shoal.swarm")

NEWS = "news"
ADVERTS = "adverts"
MAX_HINTS = 128  # in one note
MAX_PULLED = 64  # adverts in one answer
MAX_ANSWER_BYTES = 512 * 1024
MAX_WANTED = 256  # of one peer
FLUSH_S = 0.2
PULL_S = 10.0
DIRECT_S = 0.5  # an advert is on its way from its signer itself: do not ask another for it at once
REPAIR_S = 30.0
REPAIR_HINTS = 16


class Swarm(Protocol):
    """What gossip needs of the swarm."""

    def book(self) -> AdvertBook: ...
    def sessions(self) -> Sequence[Session]: ...
    def is_connected(self, peer: PeerId) -> bool: ...
    def is_here(self, peer: PeerId) -> bool: ...  # connected, and on this machine
    def learned(self, advert: Advert, session: Session) -> None: ...  # an advert that was passed on is believed


class Gossip:
    """me: this node, of whom nothing is asked. pulled: how many adverts were asked for since the start."""

    def __init__(self, me: PeerId, swarm: Swarm, *, rng: random.Random | None = None) -> None:
        self.pulled = 0
        self._me, self._swarm = me, swarm
        self._random = rng or random.SystemRandom()
        self._fresh: dict[PeerId, PeerId] = {}  # whose advert is new -> who brought it
        self._wanted: dict[Session, dict[PeerId, float]] = {}  # -> not before (trio time)
        self._pulling: set[Session] = set()
        self._stirred = trio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._repair)
            while True:
                await self._stirred.wait()
                await trio.sleep(FLUSH_S)
                self._stirred = trio.Event()
                self._flush()
                self._ask(nursery)

    # -- what is new here --------------------------------------------------------------------------------------

    def greet(self, session: Session) -> None:
        """Tell a new session whom this node knows: a part of them when they are many."""
        self._hint(session, self._sample(MAX_HINTS, session.remote_peer))

    def spread(self, peer: PeerId, brought_by: PeerId) -> None:
        """An advert of `peer` is new here."""
        if len(self._fresh) < 4 * MAX_HINTS:
            self._fresh[peer] = brought_by
            self._stirred.set()

    def _sample(self, count: int, but: PeerId) -> list[tuple[PeerId, int]]:
        known = [(held.advert.peer, held.advert.seq) for held in self._swarm.book().all() if held.advert.peer != but]
        return self._random.sample(known, min(count, len(known)))

    def _flush(self) -> None:
        book = self._swarm.book()
        chosen = [(peer, by, book.number(peer)) for peer, by in list(self._fresh.items())[:MAX_HINTS]]
        for peer, _, _ in chosen:
            del self._fresh[peer]
        if self._fresh:
            self._stirred.set()
        for session in self._swarm.sessions():
            other = session.remote_peer
            self._hint(session, [(peer, seq) for peer, by, seq in chosen if seq >= 0 and other not in (peer, by)])

    def _hint(self, session: Session, hints: Sequence[tuple[PeerId, int]]) -> None:
        if hints:
            session.send_note(NEWS, hints)

    async def _repair(self) -> None:
        while True:
            await trio.sleep(self._random.uniform(0.5, 1.5) * REPAIR_S)
            if sessions := self._swarm.sessions():
                session = self._random.choice(sessions)
                self._hint(session, self._sample(REPAIR_HINTS, session.remote_peer))

    # -- what is new elsewhere -----------------------------------------------------------------------------------

    def on_news(self, session: Session, data: Any) -> None:
        """A peer's hints. What is ill-typed is passed over: hints are only that."""
        if not isinstance(data, list) or len(data) > MAX_HINTS:
            return
        book, now = self._swarm.book(), trio.current_time()
        if not book.heard:
            return
        wanted = self._wanted.setdefault(session, {})
        for hint in data:
            if not (
                isinstance(hint, list) and len(hint) == 2 and isinstance(hint[0], str) and isinstance(hint[1], int)
            ):
                continue
            try:
                peer = parse_peer_id(hint[0])
            except ValueError:
                continue
            if peer != self._me and hint[1] > book.number(peer) and len(wanted) < MAX_WANTED:
                wanted.setdefault(peer, now + (DIRECT_S if self._swarm.is_connected(peer) else 0.0))
        self._stirred.set()

    def _ask(self, nursery: trio.Nursery) -> None:
        now, book = trio.current_time(), self._swarm.book()
        for session, wanted in list(self._wanted.items()):
            if not session.usable:
                del self._wanted[session]
                continue
            if session in self._pulling:
                continue
            ready = [peer for peer, due in wanted.items() if due <= now][:MAX_PULLED]
            if len(ready) < len(wanted):
                self._stirred.set()
            for peer in ready:
                del wanted[peer]
            if not wanted:
                del self._wanted[session]
            if ready:
                self._pulling.add(session)
                nursery.start_soon(self._pull, session, ready, book)

    async def _pull(self, session: Session, peers: list[PeerId], book: AdvertBook) -> None:
        try:
            with trio.fail_after(PULL_S):
                told = await session.request(ADVERTS, peers)
        except (CallError, SessionLost, trio.TooSlowError):
            told = None
        finally:
            self._pulling.discard(session)
            if session in self._wanted:
                self._stirred.set()
        if not isinstance(told, list) or book is not self._swarm.book():
            return
        for wire in told[:MAX_PULLED]:
            await trio.lowlevel.checkpoint()  # a signature takes 0.1 ms to check
            try:
                here = self._swarm.is_here(session.remote_peer)
                advert = book.take_relayed(wire, brought_by=session.remote_peer, here=here)
            except AdvertRefused as refused:
                if refused.reason not in ("stale", "expired"):
                    log.warning("an advert that was passed on is refused: %s", refused)
                continue
            if advert.peer != self._me:
                self.pulled += 1
                self._swarm.learned(advert, session)
            else:
                book.forget(self._me)

    def answer(self, params: Any, asker: PeerId) -> list[list[bytes]]:
        """The adverts that a peer asks for, as they came here. CallError for a question that is ill-typed."""
        if not isinstance(params, list) or len(params) > MAX_PULLED or not all(isinstance(p, str) for p in params):
            raise CallError("bad_request", f"ask for the adverts of at most {MAX_PULLED} peers, by their ids")
        told, room, here = list[list[bytes]](), MAX_ANSWER_BYTES, self._swarm.is_here(asker)
        for peer in params:
            wire = self._swarm.book().wire(PeerId(peer), here=here)
            if wire is not None and len(wire[0]) <= room:
                told.append(wire)
                room -= len(wire[0])
        return told
