"""How fast candidates were: the order of those that look equal otherwise, and when a silent one counts as slow. Pure.

Peers come ordered by their load (node/swarm/load.py). What was measured here goes before that: a peer that took more
than twice as long as the best one, or breaks off, comes after the others. Who was not measured lately counts among the
good ones, so that everybody is tried again now and then. Among the good ones an answer that can be kept goes to the
peer that its key picks (rendezvous hashing, Thaler and Ravishankar 1998): nodes that ask the same thing at the same
time then ask the same peer, which generates it once.

Engines of this machine (the local model, a server on loopback) come in the configuration's order, unless one was
measured to be slower by a fifth: it comes after the others. What is kept of their tokens a second counts (rates.py),
since one may send a token an event and another several; where nothing is, what their events took lately.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Sequence

from .candidate import Candidate

FORGET_S = 120.0
"""Seconds after which a measurement no longer counts."""
SLOW, SLACK_S = 2.0, 0.05
"""Slow is who takes more than twice as long as the best one, and 50 ms."""
SLOW_HERE = 1.2
"""The same for engines of this machine."""
TYPICAL_EVENTS = 100
KEEP = 32
ENOUGH = 8
"""Measurements that make a 95th percentile worth something."""
_WEIGHT = 0.3  # of the newest measurement

Place = tuple[str, str | None, str | None]


class _Measured:
    __slots__ = ("at", "failed", "first_s", "firsts", "per_event_s")

    def __init__(self) -> None:
        self.first_s = self.per_event_s = self.at = self.failed = 0.0
        self.firsts: deque[float] = deque(maxlen=KEEP)


class Speed:
    """Measurements by place. Times in seconds, `now` on any clock."""

    def __init__(self, max_entries: int = 4096) -> None:
        self._measured: dict[Place, _Measured] = {}
        self._max_entries = max_entries

    def answered(self, candidate: Candidate, first_s: float, events: int, took_s: float, now: float) -> None:
        """A whole answer: its first event came after first_s, all `events` within took_s."""
        measured = self._of(candidate)
        per_event = max(0.0, took_s - first_s) / max(1, events - 1)
        if not measured.firsts:
            measured.first_s, measured.per_event_s = first_s, per_event
        else:
            measured.first_s += _WEIGHT * (first_s - measured.first_s)
            measured.per_event_s += _WEIGHT * (per_event - measured.per_event_s)
        measured.firsts.append(first_s)
        if measured.failed:
            measured.failed *= 1 - _WEIGHT
        measured.at = now

    def failed(self, candidate: Candidate, now: float) -> None:
        measured = self._of(candidate)
        measured.failed += _WEIGHT * (1 - measured.failed)
        measured.at = now

    def slow_after(self, candidate: Candidate) -> float | None:
        """The 95th percentile of its first events; None when too little was measured."""
        measured = self._measured.get(candidate.place)
        if measured is None or len(measured.firsts) < ENOUGH:
            return None
        return sorted(measured.firsts)[math.ceil(0.95 * len(measured.firsts)) - 1]

    def cost(self, candidate: Candidate, now: float) -> float | None:
        """Seconds that an answer of 100 events costs there, failures included; None when not measured lately."""
        measured = self._measured.get(candidate.place)
        if measured is None or now - measured.at > FORGET_S:
            return None
        typical = measured.first_s + TYPICAL_EVENTS * measured.per_event_s
        return typical / (1 - measured.failed) if measured.firsts else math.inf

    def ranked(self, candidates: Sequence[Candidate], now: float, key: bytes | None) -> Sequence[Candidate]:
        """The candidates with each run of peers in order, and the engines of this machine; others stay put.

        key: that of an answer that can be kept.
        """
        candidates = self._engines(candidates, now)
        if len(candidates) < 2 or sum(candidate.peer is not None for candidate in candidates) < 2:
            return candidates
        ranked: list[Candidate] = []
        run: list[Candidate] = []
        for candidate in candidates:
            if candidate.peer is not None:
                run.append(candidate)
                continue
            ranked += self._run(run, now, key)
            ranked.append(candidate)
            run = []
        return ranked + self._run(run, now, key)

    def _engines(self, candidates: Sequence[Candidate], now: float) -> Sequence[Candidate]:
        """The same places, taken by the engines of this machine with the slow ones last."""
        if sum(candidate.here for candidate in candidates) < 2:
            return candidates
        here = [candidate for candidate in candidates if candidate.here]
        costs = {id(each): self._cost_here(each, now) for each in here}
        best = min((cost for cost in costs.values() if cost is not None), default=math.inf)

        def slow(candidate: Candidate) -> bool:
            cost = costs[id(candidate)]
            return cost is not None and cost > SLOW_HERE * best + SLACK_S

        ordered = iter(sorted(here, key=slow))
        return [next(ordered) if candidate.here else candidate for candidate in candidates]

    def _cost_here(self, candidate: Candidate, now: float) -> float | None:
        """As `cost`, by what is known of its tokens where that is."""
        if candidate.expected_s is None:
            return self.cost(candidate, now)
        measured = self._measured.get(candidate.place)
        failed = 0.0 if measured is None or now - measured.at > FORGET_S else measured.failed
        return candidate.expected_s / (1 - failed) if failed < 1 else math.inf

    def _run(self, peers: list[Candidate], now: float, key: bytes | None) -> list[Candidate]:
        costs = [self.cost(peer, now) for peer in peers]
        best = min((cost for cost in costs if cost is not None), default=math.inf)

        def rank(entry: tuple[Candidate, float | None]) -> tuple[bool, int]:
            peer, cost = entry
            slow = cost is not None and cost > SLOW * best + SLACK_S
            return slow, 0 if key is None else -_score(key, peer)

        return [peer for peer, _ in sorted(zip(peers, costs, strict=True), key=rank)]

    def _of(self, candidate: Candidate) -> _Measured:
        measured = self._measured.get(candidate.place)
        if measured is None:
            if len(self._measured) >= self._max_entries:
                self._measured.pop(min(self._measured, key=lambda place: self._measured[place].at))
            measured = self._measured[candidate.place] = _Measured()
        return measured


def _score(key: bytes, peer: Candidate) -> int:
    return int.from_bytes(hashlib.blake2b(key + str(peer.peer).encode(), digest_size=8).digest(), "big")
