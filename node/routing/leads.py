"""Which node makes an answer that several nodes are asked for at the same time. Pure.

Every request key has an owner among the nodes that know each other, the one that scores highest with it (rendezvous
hashing, Thaler and Ravishankar 1998). The owner need not make the answer: it keeps a book of who asked first. That one
leads, and whoever asks later joins it. Two nodes with different neighbours may name different owners; that costs a
second generation and nothing else.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable

from ...protocols.peer_id import PeerId

MAX_LEADS = 4096
"""Keys in the book; the oldest go first."""
LEAD_S = 300.0
"""Seconds that an entry holds. It outlives the generation: who comes a moment later gets the answer from its maker."""
MISSES, AGAIN_S = 2, 5.0
"""An owner who did not answer in time so often in a row is not asked for some seconds. Not at the first time: who
leaves him out names another owner for his keys than everybody else does."""
AVOID_S = 600.0
"""Seconds that a node which led and said nothing is neither followed nor asked: it may do so on purpose."""
FAR_S = 60.0
"""Seconds that an owner who is too far away is not asked."""
SAMPLES = 16
"""Answers that all have to be late before an owner counts as far away: a busy moment does not make him so."""


def owner_of(cid: bytes, members: Iterable[PeerId]) -> PeerId:
    """The member that keeps the book for this key. ValueError without members."""
    return max(members, key=lambda member: (hashlib.blake2b(cid + member.encode(), digest_size=8).digest(), member))


class Leads:
    """The book of one owner."""

    def __init__(self) -> None:
        self._book: OrderedDict[bytes, tuple[PeerId, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._book)

    def leader(
        self, cid: bytes, asker: PeerId, lost: Collection[PeerId], present: Callable[[PeerId], bool], now: float
    ) -> PeerId:
        """Who leads: the one in the book, or the asker from now on.

        lost: whom the asker has found gone. present: whether a node can be reached at all. now: seconds, any clock.
        """
        known = self._book.get(cid)
        if known is not None:
            leader, since = known
            if leader != asker and leader not in lost and now - since < LEAD_S and present(leader):
                return leader
        self._book[cid] = asker, now
        self._book.move_to_end(cid)
        if len(self._book) > MAX_LEADS:
            self._book.popitem(last=False)
        return asker


class Nearness:
    """Which nodes are worth a question before a generation begins: those who answer, and soon.

    near_s: who needed longer than this for each of its last answers is asked once a minute only.
    """

    def __init__(self, near_s: float) -> None:
        self._near_s = near_s
        self._took: dict[PeerId, deque[float]] = {}
        self._not_before: dict[PeerId, float] = {}
        self._misses: dict[PeerId, int] = {}

    def asked(self, peer: PeerId, now: float) -> bool:
        """Whether to ask this one at `now`."""
        return not self._not_before or now >= self._not_before.get(peer, now)

    def answered(self, peer: PeerId, took_s: float, now: float) -> None:
        took = self._took.get(peer)
        if took is None:
            self._forget()
            took = self._took[peer] = deque(maxlen=SAMPLES)
        took.append(took_s)
        self._not_before.pop(peer, None)
        self._misses.pop(peer, None)
        if len(took) == SAMPLES and min(took) > self._near_s:
            self._not_before[peer] = now + FAR_S

    def missed(self, peer: PeerId, now: float) -> None:
        self._forget()
        self._misses[peer] = self._misses.get(peer, 0) + 1
        if self._misses[peer] >= MISSES:
            self._not_before[peer] = now + AGAIN_S

    def avoid(self, peer: PeerId, now: float) -> None:
        self._forget()
        self._not_before[peer] = now + AVOID_S

    def _forget(self) -> None:
        """Peers come and go."""
        if max(len(self._took), len(self._not_before), len(self._misses)) >= MAX_LEADS:
            self._took.clear()
            self._not_before.clear()
            self._misses.clear()
