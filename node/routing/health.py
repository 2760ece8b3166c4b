"""What past failures say about a candidate: for now, only how long an upstream asked to be left alone.

The place of the breakers: `blocked` is asked before an attempt, `failed` and `answered` are told after it. State is
kept by (name, model, peer), so that one model's limit does not close the door to another's.
"""

from __future__ import annotations

from msgspec import Struct

from ...providers.base import POLICY, ErrorKind, ProviderError
from .candidate import Candidate


class Block(Struct, frozen=True):
    """Why a candidate is not asked now, and the (trio) time at which it may be asked again."""

    kind: ErrorKind
    reason: str
    until: float


class Health:
    """The memory of failures. Pure: time comes in as an argument."""

    def __init__(self, max_entries: int = 4096) -> None:
        self._blocks: dict[tuple[str, str | None, str | None], Block] = {}
        self._max_entries = max_entries
        self.failures: dict[str, int] = {}

    def blocked(self, candidate: Candidate, now: float) -> Block | None:
        if not self._blocks:
            return None
        place = self._place(candidate)
        block = self._blocks.get(place)
        if block is not None and block.until <= now:
            del self._blocks[place]
            return None
        return block

    def failed(self, candidate: Candidate, error: ProviderError, now: float) -> None:
        if not POLICY[error.kind].breaker:
            return
        if candidate.name in self.failures or len(self.failures) < self._max_entries:
            self.failures[candidate.name] = self.failures.get(candidate.name, 0) + 1
        if error.retry_after and error.kind is ErrorKind.RATE_LIMITED:
            if len(self._blocks) >= self._max_entries:
                self._blocks = {place: block for place, block in self._blocks.items() if block.until > now}
            if len(self._blocks) < self._max_entries:
                until = now + error.retry_after
                self._blocks[self._place(candidate)] = Block(error.kind, "it asked to be left alone", until)

    def answered(self, candidate: Candidate) -> None:
        if self._blocks:
            self._blocks.pop(self._place(candidate), None)

    @staticmethod
    def _place(candidate: Candidate) -> tuple[str, str | None, str | None]:
        return candidate.name, candidate.model, candidate.peer
