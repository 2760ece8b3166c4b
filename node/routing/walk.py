"""The order of attempts as a pure state machine: who is tried next, and when, given what failed how.

Everything that decides about a retry or a fallback is here and in POLICY (providers/base.py); nothing here waits,
calls or knows a clock. A driver asks `step(now)`, waits until `step.at`, tries, and tells `failed` or stops.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from msgspec import Struct

from ...providers.base import POLICY, ErrorKind, ProviderError
from .candidate import Candidate
from .health import Block, Health
from .limits import RoutingLimits


class Step(Struct, frozen=True):
    """Try `candidate`, not before `at` (trio time). tries: how often it was tried already."""

    candidate: Candidate
    at: float
    tries: int = 0


class Walk:
    """One request's way through its candidates.

    skipped: candidates that were passed over, with the reason, since the last look (the driver takes them out).
    error: the failure that the caller is told when the walk is over.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        *,
        health: Health,
        limits: RoutingLimits,
        allow_fallback: bool = True,
        jitter: random.Random | None = None,
    ) -> None:
        self._fresh = list(candidates if allow_fallback else candidates[:1])
        self._again: Step | None = None
        self._later: list[Step] = []
        self._health, self._limits = health, limits
        self._jitter = jitter or _jitter
        self._over = False
        self.tries = 0
        self.skipped: list[tuple[Candidate, Block]] = []
        self.error: ProviderError | None = None

    def step(self, now: float, deadline: float) -> Step | None:
        """What to try next; None when there is nothing left that fits the deadline."""
        if self._over or self.tries >= self._limits.max_attempts:
            return None
        if (again := self._again) is not None:
            self._again = None
            if again.at < deadline:
                return again
        while self._fresh:
            candidate = self._fresh.pop(0)
            block = self._health.blocked(candidate, now)
            if block is None:
                return Step(candidate, now)
            self.skipped.append((candidate, block))
            self._blocked(candidate, block, now)
        self._later.sort(key=lambda step: step.at)
        if self._later:
            step = self._later.pop(0)
            if step.at < deadline and step.at - now <= self._limits.retry_after_max_s:
                return step
        return None

    def failed(self, step: Step, error: ProviderError, now: float) -> None:
        """`step` was tried and nothing of its answer was sent to the caller."""
        self.tries += 1
        self.error = self._worse(error)
        policy = POLICY[error.kind]
        if step.tries == 0:
            if policy.again == "once":
                pause = self._jitter.uniform(self._limits.retry_min_s, self._limits.retry_max_s)
                self._again = Step(step.candidate, now + max(pause, error.retry_after or 0.0), 1)
                if error.retry_after and error.retry_after > self._limits.patience_s:
                    self._later.append(self._again)
                    self._again = None
            elif policy.again == "after" and error.retry_after is not None:
                # A little over what was asked for: many callers were told the same moment.
                pause = error.retry_after + self._jitter.uniform(0.0, self._limits.retry_max_s)
                again = Step(step.candidate, now + pause, 1)
                if error.retry_after <= self._limits.patience_s:
                    self._again = again
                else:
                    self._later.append(again)
        if policy.next in ("no", "continue"):
            self._over = True
        elif policy.next == "larger":
            self._again, self._later = None, []
            size = step.candidate.context_length or 0
            self._fresh = [c for c in self._fresh if c.context_length is not None and c.context_length > size]

    def _blocked(self, candidate: Candidate, block: Block, now: float) -> None:
        self._later.append(Step(candidate, block.until + self._jitter.uniform(0.0, self._limits.retry_max_s), 1))
        if self.error is None:
            message = f"{candidate.name} is not asked at the moment: {block.reason}"
            self.error = ProviderError(block.kind, message, retry_after=block.until - now)

    def _worse(self, error: ProviderError) -> ProviderError:
        """Of two failures the one that tells the caller more: a rate limit with a time beats what came before it."""
        earlier = self.error
        if earlier is None or POLICY[error.kind].next != "yes" or earlier.retry_after is None:
            return error
        return error if error.retry_after is not None and error.retry_after <= earlier.retry_after else earlier


_jitter = random.SystemRandom()


def nothing_said(candidate: Candidate) -> ProviderError:
    """The failure of an attempt that ended well without a word (fault 2 of the router's reference page)."""
    return ProviderError(ErrorKind.UPSTREAM, f"{candidate.name} ended without a word")
