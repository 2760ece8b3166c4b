"""Single flight beyond one node: the same question to several nodes of a swarm at once is answered by one of them.

What belongs here: what a generation does before it asks a provider of this node, and what this node tells others about
its own generations. Who leads is leads.py's to say, what crosses the wire swarm/joining.py's, and what becomes of a
leader that is lost the walk's (generation.py): the next who asks leads, and goes on from the text that it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import trio

from ...protocols.peer_id import PeerId
from ...providers.base import Provider
from .ask import Ask
from .candidate import Candidate
from .flight import Flight
from .joined import JoinedHere
from .leads import Leads, Nearness, owner_of
from .limits import RoutingLimits

MAX_JOINS = 4
"""How often one generation follows somebody else; after that it asks its own provider whatever others do."""


class Others(Protocol):
    """What is wanted of the swarm (swarm_seat.py)."""

    def members(self) -> Sequence[PeerId]:
        """The connected nodes that may be asked."""
        ...

    async def lead(self, owner: PeerId, cid: bytes, lost: Collection[PeerId]) -> PeerId | None:
        """Who leads this key, as its owner says; None when it does not."""
        ...

    def joined(self, leader: PeerId, cid: bytes) -> Provider | None:
        """The leader's generation as a provider; None when it cannot be asked."""
        ...


class Together:
    """One for a router. counts: `led`, `followed` and `missed` (the owner was silent).

    me: this node. trusts: whether an answer of that node may be used.
    """

    def __init__(self, me: PeerId, others: Others, limits: RoutingLimits, trusts: Callable[[PeerId], bool]) -> None:
        self.me, self.others, self.trusts = me, others, trusts
        self.wait_s = limits.join_wait_s
        self.counts: Counter[str] = Counter()
        self.here: dict[bytes, Part] = {}
        self.near = Nearness(limits.join_near_s)
        self._book = Leads()

    def part(self, cid: bytes, flight: Flight, ask: Ask) -> Part | None:
        """A generation's part in it; None while this node is alone."""
        return Part(self, cid, flight, ask) if self.here or self.others.members() else None

    # -- what others ask ---------------------------------------------------------------------------------------

    def leader(self, cid: bytes, asker: PeerId, lost: Collection[PeerId] = ()) -> PeerId:
        """Who leads: this node is the owner of that key for whoever asks it."""
        members = self.others.members()
        now = trio.current_time()
        return self._book.leader(cid, asker, lost, lambda peer: peer == self.me or peer in members, now)

    async def led(self, cid: bytes) -> Part | None:
        """The generation here that another node may join, once it is settled that it leads."""
        part = self.here.get(cid)
        if part is None:
            return None
        with trio.move_on_after(self.wait_s):
            await part.settled.wait()
        return part if part.leads and part.open and part.flight.public else None

    # -- what generations here ask -----------------------------------------------------------------------------

    async def leader_of(self, cid: bytes, lost: Collection[PeerId]) -> PeerId | None:
        """Who leads, by the word of the key's owner; None when he cannot be asked in time."""
        silent: set[PeerId] = set()
        deadline = trio.current_time() + self.wait_s
        while len(silent) < 2:
            now = trio.current_time()
            near = [p for p in self.others.members() if p not in silent and self.near.asked(p, now)]
            owner = owner_of(cid, (self.me, *near))
            if owner == self.me:
                return self.leader(cid, self.me, lost)
            told = None
            with trio.CancelScope(deadline=deadline):
                told = await self.others.lead(owner, cid, lost)
            then = trio.current_time()
            if told is not None:
                self.near.answered(owner, then - now, then)
                return told
            self.near.missed(owner, then)
            if then >= deadline:
                break
            silent.add(owner)
        self.counts["missed"] += 1
        return None


class Part:
    """One generation among those of the other nodes.

    leads: others may join it; settled: whether that is known. following: the node that it follows, if any. shunned:
    nodes that wait for this generation, by way of others of this node, and must not be waited for in turn.
    """

    def __init__(self, together: Together, cid: bytes, flight: Flight, ask: Ask) -> None:
        self.flight, self.ask = flight, ask
        self.leads = False
        self.settled = trio.Event()
        self.following: PeerId | None = None
        self.shunned = set(ask.seen)
        self._together, self._cid = together, cid
        self._lost: set[PeerId] = set()
        self._joins = 0

    @property
    def open(self) -> bool:
        return not self.flight.ended and self.flight.readers > 0 and not self.flight.astray

    async def follow(self) -> Candidate | None:
        """Whom to follow instead of asking a provider of this node; None: nobody, this one generates.

        Each time it is called, whoever was followed before is taken to be lost.
        """
        if self.leads or self._joins >= MAX_JOINS:
            return None
        self._joins += 1
        together, mine = self._together, self
        here = together.here.get(self._cid)
        if here is None or not here.open:
            together.here[self._cid] = here = mine
        if here is not mine:
            return await self._beside(here)
        if self.settled.is_set():  # whom it followed is lost: who asks for it now waits for what comes of that
            self.settled = trio.Event()
        candidate = self.following = None
        for _ in range(MAX_JOINS):
            leader = await together.leader_of(self._cid, self._lost)
            if leader is None or leader == together.me or not self._may_follow(leader):
                break
            self._lost.add(leader)
            if (provider := together.others.joined(leader, self._cid)) is not None:
                model = self.ask.request.model
                candidate = Candidate(provider=provider, name=provider.name, model=model, peer=leader, joins=True)
                self.following = leader
                break
            # It is gone from here, and the owner has not noticed yet: somebody else leads from now on.
        self.leads = candidate is None
        together.counts["led" if self.leads else "followed"] += 1
        self.settled.set()
        return candidate

    def _may_follow(self, leader: PeerId) -> bool:
        if leader in self.shunned:
            return False
        return self._together.trusts(leader) and self._together.near.asked(leader, trio.current_time())

    def was_silent(self, leader: PeerId) -> None:
        """Whom it followed has not said a word in time."""
        self._together.near.avoid(leader, trio.current_time())

    async def _beside(self, here: Part) -> Candidate | None:
        """Another generation of this node has the same key: for a peer's request, or by a route.

        A peer's request follows none that waits for that same peer, and keeps it from doing so later.
        """
        if not self.ask.from_here:
            with trio.move_on_after(self._together.wait_s):
                await here.settled.wait()
            if not (here.settled.is_set() and here.open and here.flight.public):
                return None
            if here.following in self.shunned or here.flight.peer in self.shunned:
                return None
            here.shunned |= self.shunned
        flight = here.flight
        provider = JoinedHere(flight, self.flight.deadline)
        return Candidate(provider=provider, name=provider.name, model=flight.model, joins=True)

    def over(self) -> None:
        """The generation has ended."""
        self.leads = False
        self.settled.set()
        if self._together.here.get(self._cid) is self:
            del self._together.here[self._cid]
