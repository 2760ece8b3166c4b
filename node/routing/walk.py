"""The order of attempts as a pure state machine: who is tried next, and when, given what failed how.

Everything that decides about a retry or a fallback is here and in POLICY (providers/base.py); nothing here waits,
calls or knows a clock. A driver asks `step(now)`, waits until `step.at`, tries, and tells `failed` or stops.

What goes beyond the table:
- A peer's word that a request is bad, or its content not allowed, is not believed without a second opinion: a lying
  peer could refuse for everybody. It ends the walk when another node or provider says so, too.
- A peer whose connection was lost is not called again before the others.
- Once the caller has text, nothing is waited for while somebody else could go on with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from msgspec import Struct

from ...providers.base import POLICY, ErrorKind, ProviderError
from .candidate import Candidate
from .health import Block, Health, Place
from .limits import RoutingLimits

MAX_HOLDS = 8
"""How often one candidate is waited for because somebody else's probe of it is under way."""


class Step(Struct, frozen=True):
    """Try `candidate`, not before `at` (trio time). tries: how often it was tried already.

    last: nobody else is left, so a breaker lets it through early.
    """

    candidate: Candidate
    at: float
    tries: int = 0
    last: bool = False
    holds: int = 0


class Walk:
    """One request's way through its candidates.

    unfit: why a candidate cannot take the request in the state it is in (None: it can).
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
        unfit: Callable[[Candidate], str | None] | None = None,
    ) -> None:
        self._fresh = list(candidates if allow_fallback else candidates[:1])
        self._known: set[Place] | None = None
        self._all = tuple(self._fresh)
        self._again: Step | None = None
        self._later: list[Step] = []
        self._health, self._limits = health, limits
        self._allow_fallback, self._unfit = allow_fallback, unfit
        self._jitter = jitter or _jitter
        self._over = False
        self._doubted: Candidate | None = None
        self._begun = False
        self.tries = self.rescues = 0
        self.skipped: list[tuple[Candidate, Block]] = []
        self.error: ProviderError | None = None

    def step(self, now: float, deadline: float) -> Step | None:
        """What to try next; None when there is nothing left that fits the deadline."""
        if self._over or self.tries >= self._limits.max_attempts or self.rescues > self._limits.max_rescues:
            return None
        if (again := self._again) is not None:
            self._again = None
            block = self._health.blocked(again.candidate, again.at)
            if block is not None:
                self._blocked(again.candidate, block, now)
            elif again.at < deadline:
                return again
        while self._fresh:
            candidate = self._fresh.pop(0)
            if not self._fits(candidate):
                continue
            block = self._health.blocked(candidate, now)
            if block is None:
                return Step(candidate, now)
            self.skipped.append((candidate, block))
            self._blocked(candidate, block, now)
        self._later.sort(key=lambda step: step.at)
        while self._later:
            step = self._later.pop(0)
            if not self._fits(step.candidate):
                continue
            if step.at < deadline and step.at - now <= self._limits.retry_after_max_s:
                return step
        return None

    def held(self, step: Step, block: Block, now: float) -> None:
        """The time of `step` has come, but somebody else's probe of the candidate is under way: a little later."""
        if step.holds >= MAX_HOLDS:
            self.skipped.append((step.candidate, block))
            return
        at = max(now, min(block.early, now + 0.25)) + self._jitter.uniform(0.0, self._limits.retry_max_s)
        self._later.append(Step(step.candidate, at, step.tries, True, step.holds + 1))

    def failed(self, step: Step, error: ProviderError, now: float, *, begun: bool = False, added: bool = False) -> None:
        """`step` was tried in vain. begun: the caller has text; added: this attempt has given him some of it."""
        if added:
            self.rescues += 1
        else:
            self.tries += 1
        policy = POLICY[error.kind]
        over = policy.next == "no"
        if over and error.kind is not ErrorKind.DEADLINE and self._doubts(step.candidate, error):
            over = False
        if begun and error.kind is ErrorKind.BAD_REQUEST:
            over = False  # somebody has taken the request and begun to answer it
        self._begun = begun
        if not begun or added or over:
            self.error = error if begun or over else self._worse(error)
        if step.tries == 0:
            self._retry(step, error, now)
        if over:
            self._over = True
        elif policy.next == "larger":
            self._only_larger(step.candidate)

    def rival(self, now: float) -> Candidate | None:
        """Who could answer beside the one that is asked now; it is off the list then, unless `once_more` returns it."""
        if not self._allow_fallback or self.tries + 1 >= self._limits.max_attempts:
            return None
        for i, candidate in enumerate(self._fresh):
            fit = self._unfit is None or self._unfit(candidate) is None
            if fit and self._health.blocked(candidate, now) is None:
                return self._fresh.pop(i)
        return None

    def once_more(self, candidate: Candidate) -> None:
        """Try this one next: it could not do what was asked of it, but there is another way."""
        self._fresh.insert(0, candidate)

    @property
    def lacks_candidates(self) -> bool:
        """Whether it ends for want of somebody to ask, and not because it is decided or enough was tried."""
        tired = self.tries >= self._limits.max_attempts or self.rescues > self._limits.max_rescues
        return not (self._over or tired) and self._allow_fallback

    def offer(self, candidates: Sequence[Candidate], *, rank: Callable[[Candidate], int] | None = None) -> bool:
        """Who is there now: those not known yet join the end of the row; whether there are any.

        rank: who comes first from now on, by the lowest; among equals the order stays.
        """
        if not self._allow_fallback:
            return False
        if self._known is None:
            self._known = {candidate.place for candidate in self._all}
        before = len(self._known)
        for candidate in candidates:
            if candidate.place not in self._known:
                self._known.add(candidate.place)
                self._fresh.append(candidate)
        if rank is not None:
            self._fresh.sort(key=rank)
        return len(self._known) > before

    # -- inside ------------------------------------------------------------------------------------------------

    def _fits(self, candidate: Candidate) -> bool:
        why = self._unfit(candidate) if self._unfit is not None else None
        if why is None:
            return True
        block = Block(ErrorKind.UNAVAILABLE, why, 0.0)
        self.skipped.append((candidate, block))
        if self.error is None:
            self.error = ProviderError(block.kind, f"{candidate.name} cannot take this: {why}")
        return False

    def _doubts(self, candidate: Candidate, error: ProviderError) -> bool:
        """Whether a refusal needs a second opinion first: the first one, when it is a peer's."""
        if candidate.peer is None or self._doubted is not None:
            return False
        self._doubted = candidate
        return error.kind in (ErrorKind.BAD_REQUEST, ErrorKind.CONTENT_FILTER)

    def _retry(self, step: Step, error: ProviderError, now: float) -> None:
        again, patience = POLICY[error.kind].again, self._limits.patience_s
        if again == "once":
            pause = self._jitter.uniform(self._limits.retry_min_s, self._limits.retry_max_s)
            retry = Step(step.candidate, now + max(pause, error.retry_after or 0.0), 1)
            lost = step.candidate.peer is not None and error.kind is ErrorKind.CONNECTION
            if lost or self._begun or (error.retry_after or 0.0) > patience:
                self._later.append(retry)
            else:
                self._again = retry
        elif again == "after" and error.retry_after is not None:
            # A little over what was asked for: many callers were told the same moment.
            pause = max(error.retry_after, self._limits.retry_min_s) + self._jitter.uniform(
                0.0, self._limits.retry_max_s
            )
            retry = Step(step.candidate, now + pause, 1)
            if error.retry_after <= patience and not self._begun:
                self._again = retry
            else:
                self._later.append(retry)

    def _only_larger(self, candidate: Candidate) -> None:
        """The request did not fit: it goes only where more fits. A peer's word on this binds other peers only."""
        self._again, self._later = None, []
        size = candidate.context_length or 0
        self._fresh = [
            c
            for c in self._fresh
            if (c.context_length is not None and c.context_length > size)
            or (candidate.peer is not None and c.peer is None)
        ]

    def _blocked(self, candidate: Candidate, block: Block, now: float) -> None:
        at = block.early or block.until
        at += self._jitter.uniform(0.0, self._limits.retry_max_s)
        self._later.append(Step(candidate, at, 1, True))
        if self.error is None:
            message = f"{candidate.name} is not asked at the moment: {block.reason}"
            self.error = ProviderError(block.kind, message, retry_after=max(0.0, block.until - now))

    def _worse(self, error: ProviderError) -> ProviderError:
        """Of two failures the one that tells the caller more: a rate limit with a time beats what came before it, and
        a refusal of the request beats a failure of who else was asked."""
        earlier = self.error
        if earlier is None:
            return error
        if POLICY[earlier.kind].next == "no" and POLICY[error.kind].next == "yes":
            return earlier
        if POLICY[error.kind].next != "yes" or earlier.retry_after is None:
            return error
        return error if error.retry_after is not None and error.retry_after <= earlier.retry_after else earlier


_jitter = random.SystemRandom()


def nothing_said(candidate: Candidate) -> ProviderError:
    """The failure of an attempt that ended well without a word (fault 2 of the router's reference page)."""
    return ProviderError(ErrorKind.UPSTREAM, f"{candidate.name} ended without a word")
