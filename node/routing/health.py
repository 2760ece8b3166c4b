"""What past failures say about a candidate: the breakers, and how long an upstream asked to be left alone.

`blocked` is asked before an attempt; `began`, `spoke`, `failed`, `answered` and `let_go` are told of it. A refused key,
a spent quota and a dead connection count against the whole provider (or peer), everything else against its model, so
that one model's trouble does not close the door to another's. Nothing is kept of who has never failed.

health.json in the data directory keeps it over a restart (health_file.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from ...providers.base import POLICY, ErrorKind, ProviderError
from .breaker import Breaker, State
from .candidate import Candidate

EVERY_MODEL = "*"
_LOST = frozenset({ErrorKind.CONNECTION, ErrorKind.INTERRUPTED})
"""Kinds that a new connection with a peer puts right: the node that comes back is another process."""
_WIDE = frozenset({ErrorKind.AUTH, ErrorKind.QUOTA, ErrorKind.CONNECTION})
"""Kinds that say something about the whole provider."""
EARLY_S = 0.5
"""When nobody else can answer, a breaker lets one probe in so long (seconds) after the last failure."""
LONGEST_PAUSE_S = 24 * 3600.0

Place = tuple[str, str | None, str | None]
"""(provider as routes name it, model, peer)."""


class Block(Struct, frozen=True):
    """Why a candidate is not asked now, and the (trio) time at which it may be asked again.

    early: when it may be asked if nobody else can answer.
    """

    kind: ErrorKind
    reason: str
    until: float
    early: float = 0.0


class _Kept(Struct, frozen=True):
    """A breaker or a pause on disk; times in Unix seconds."""

    provider: str
    model: str | None
    peer: str | None
    kind: ErrorKind
    reason: str
    until: float
    since: float = 0.0
    failures: int = 0
    opened: int = 0  # 0: a pause that was asked for


class Health:
    """The memory of failures. Pure: time comes in as an argument. failures: counts by provider, since the start."""

    def __init__(self, max_entries: int = 4096, *, jitter: random.Random | None = None) -> None:
        self._pauses: dict[Place, Block] = {}
        self._breakers: dict[Place, Breaker] = {}
        self._max_entries = max_entries
        self._jitter = jitter or random.SystemRandom()
        self._no_prefix: dict[Place, None] = {}
        self.failures: dict[str, int] = {}
        self.version = 0  # grows with each change

    # -- before an attempt -------------------------------------------------------------------------------------

    def blocked(self, candidate: Candidate, now: float, *, last_resort: bool = False) -> Block | None:
        """Why not to ask this candidate at `now`; None: ask it. last_resort: nobody else is left."""
        if not self._pauses and not self._breakers:
            return None
        place, wide = _places(candidate)
        pause = self._pauses.get(place)
        if pause is not None and now < pause.until:
            return pause
        for key in (wide, place):
            breaker = self._breakers.get(key)
            if breaker is None or not breaker.opened or _is_back(candidate, breaker):
                continue
            if breaker.busy(now):
                return Block(breaker.kind, "it failed, and one request finds out whether it still does",
                             now + EARLY_S, now + EARLY_S)  # fmt: skip
            early = breaker.since + EARLY_S
            if now < (early if last_resort else breaker.until):
                return Block(breaker.kind, breaker.reason or "it failed", breaker.until, min(early, breaker.until))
        return None

    # -- what came of it ---------------------------------------------------------------------------------------

    def began(self, candidate: Candidate, now: float) -> None:
        """An attempt begins; behind an open breaker it is the one probe."""
        if not self._breakers:
            return
        for breaker in self._of(candidate):
            breaker.began(now)

    def spoke(self, candidate: Candidate) -> None:
        """The first event has come."""
        if not self._breakers:
            return
        for breaker in self._of(candidate):
            if breaker.opened:
                breaker.spoke()
                self.version += 1

    def answered(self, candidate: Candidate) -> None:
        """The answer is whole: what was held against the candidate is forgotten."""
        if self._pauses or self._breakers:
            place, wide = _places(candidate)
            for key in (place, wide):
                if self._breakers.pop(key, None) is not None:
                    self.version += 1
            if self._pauses.pop(place, None) is not None:
                self.version += 1

    def let_go(self, candidate: Candidate) -> None:
        """The attempt has ended without a verdict."""
        for breaker in self._of(candidate):
            breaker.let_go()

    def failed(self, candidate: Candidate, error: ProviderError, now: float) -> None:
        if not POLICY[error.kind].breaker:
            self.let_go(candidate)
            return
        if candidate.name in self.failures or len(self.failures) < self._max_entries:
            self.failures[candidate.name] = self.failures.get(candidate.name, 0) + 1
        self.version += 1
        place, wide = _places(candidate)
        if error.retry_after and error.kind in (ErrorKind.RATE_LIMITED, ErrorKind.OVERLOADED, ErrorKind.QUOTA):
            self.let_go(candidate)
            if self._room(self._pauses, now):
                until = now + min(error.retry_after, LONGEST_PAUSE_S)
                self._pauses[place] = Block(error.kind, "it asked to be left alone", until, until)
            return
        if error.kind is ErrorKind.OVERLOADED and error.status is None:
            self.let_go(candidate)
            return  # its queue here is full, or a peer's: that passes with the load, and is no sign of a fault
        key = wide if error.kind in _WIDE else place
        breaker = self._breakers.get(key)
        if breaker is not None and _is_back(candidate, breaker):
            breaker = self._breakers[key] = Breaker()
        if breaker is None:
            if not self._room(self._breakers, now):
                return
            breaker = self._breakers[key] = Breaker()
        self.let_go(candidate)
        breaker.failed(error.kind, error.message, now, self._jitter)

    # -- what was learnt ---------------------------------------------------------------------------------------

    def note_rejected_prefix(self, candidate: Candidate) -> None:
        """It was said to continue a prefix, and it does not; remembered while this node runs."""
        if len(self._no_prefix) >= self._max_entries:
            self._no_prefix.pop(next(iter(self._no_prefix)))
        self._no_prefix[_places(candidate)[0]] = None

    def rejects_prefix(self, candidate: Candidate) -> bool:
        return bool(self._no_prefix) and _places(candidate)[0] in self._no_prefix

    # -- what people see, and what is kept ---------------------------------------------------------------------

    def view(self, now: float) -> list[dict[str, Any]]:
        """Everything that is held against anybody, for the status: JSON-compatible. until_s: seconds from now."""
        rows = [
            {
                "provider": name,
                "model": model,
                "peer": peer,
                "state": str(breaker.state(now)),
                "kind": str(breaker.kind),
                "reason": breaker.reason,
                "failures": breaker.failures,
                "until_s": round(max(0.0, breaker.until - now), 3),
            }
            for (name, model, peer), breaker in self._breakers.items()
        ]
        rows += [
            {
                "provider": name,
                "model": model,
                "peer": peer,
                "state": "paused",
                "kind": str(pause.kind),
                "reason": pause.reason,
                "failures": 0,
                "until_s": round(pause.until - now, 3),
            }
            for (name, model, peer), pause in self._pauses.items()
            if pause.until > now
        ]
        return rows

    def dump(self, now: float, wall: float) -> bytes:
        """What to keep over a restart, as JSON. wall: the Unix time at `now`."""
        kept = [
            _Kept(*place, pause.kind, pause.reason, pause.until - now + wall)
            for place, pause in self._pauses.items()
            if pause.until > now
        ]
        kept += [
            _Kept(*place, b.kind, b.reason, b.until - now + wall, b.since - now + wall, b.failures, b.opened)
            for place, b in self._breakers.items()
            if b.opened
        ]
        return msgspec.json.encode(kept)

    def load(self, data: bytes, now: float, wall: float) -> None:
        """Take up what an earlier run knew. ValueError when it is not readable.

        A refused key is tried again: a restart is how a new one comes in.
        """
        try:
            kept = msgspec.json.decode(data, type=list[_Kept])
        except msgspec.MsgspecError as error:
            raise ValueError("what was kept of failures is not readable") from error
        for row in kept[: self._max_entries]:
            place: Place = row.provider, row.model, row.peer
            until = now + min(row.until - wall, LONGEST_PAUSE_S)
            if row.kind is ErrorKind.AUTH or not wall - 3600 < row.until:
                continue
            if row.opened:
                breaker = self._breakers[place] = Breaker()
                breaker.kind, breaker.reason = row.kind, row.reason
                breaker.failures, breaker.opened, breaker.until = row.failures, row.opened, until
                breaker.since = now + min(0.0, row.since - wall)
            elif until > now:
                self._pauses[place] = Block(row.kind, row.reason, until, until)

    # -- inside ------------------------------------------------------------------------------------------------

    def _of(self, candidate: Candidate) -> Iterator[Breaker]:
        if self._breakers:
            for place in _places(candidate):
                if (breaker := self._breakers.get(place)) is not None:
                    yield breaker

    def _room(self, table: dict[Place, Any], now: float) -> bool:
        """Room for one entry more. What has served its time goes first."""
        if len(table) >= self._max_entries:
            for place in [place for place, entry in table.items() if entry.until <= now]:
                del table[place]
        return len(table) < self._max_entries


def _is_back(candidate: Candidate, breaker: Breaker) -> bool:
    """Whether what the breaker holds against a peer was the loss of an earlier connection."""
    return candidate.since is not None and candidate.since > breaker.since and breaker.kind in _LOST


def _places(candidate: Candidate) -> tuple[Place, Place]:
    name, peer = candidate.name, candidate.peer
    return (name, candidate.model, peer), (name, EVERY_MODEL, peer)


__all__ = ["Block", "Breaker", "Health", "State"]
