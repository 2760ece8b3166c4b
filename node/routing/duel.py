"""A candidate and its rival in one attempt: what the race of hedge.py means for flight, route and breakers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import trio

from ...providers.base import Event, GenerateRequest, ProviderError
from .ask import Ask
from .attempt import LOST, Attempt
from .candidate import Candidate, attempt_at
from .continuation import Continuation
from .flight import Flight
from .health import Health
from .hedge import Race, hedged


class Duel:
    """after_s: seconds that `first` may be silent before `rival` is asked, too. started: whether it was."""

    def __init__(
        self,
        first: Candidate,
        rival: Candidate,
        ask: Ask,
        flight: Flight,
        health: Health,
        whole: Continuation,
        after_s: float,
    ) -> None:
        self.rival, self.started = rival, False
        self._candidates = (first, rival)
        self._ask, self._flight, self._health, self._whole, self._after_s = ask, flight, health, whole, after_s
        self._attempts: list[Attempt] = []
        self._began = [0.0, 0.0]
        self._winner: int | None = None

    def open(
        self, first: AbstractAsyncContextManager[AsyncIterator[Event]], request: GenerateRequest, attempt: Attempt
    ) -> AbstractAsyncContextManager[Race]:
        """The stream of whoever speaks first. attempt: the first one's entry in the route."""
        self._attempts = [attempt, attempt_at(self.rival)]

        def second() -> AbstractAsyncContextManager[AsyncIterator[Event]]:
            return self.rival.open(request, self._ask, deadline_s=self._flight.deadline - trio.current_time())

        return hedged(lambda: first, second, after_s=self._after_s, on_start=self._start, on_win=self._win)

    def over(self, candidate: Candidate, attempt: Attempt) -> tuple[Candidate, Attempt]:
        """Who answers, as far as that is known."""
        if self._winner is None:
            return candidate, attempt
        return self._candidates[self._winner], self._attempts[self._winner]

    def ended(self, ms: float) -> None:
        """The attempt is over. A rival that was asked in vain, while nobody spoke, is let go."""
        if self.started and self._winner is None:
            self._attempts[1].outcome, self._attempts[1].ms = LOST, ms
            self._health.let_go(self.rival)

    def _start(self, which: int) -> None:
        self._began[which] = trio.current_time()
        if which:
            self.started = True
            self._flight.route.append(self._attempts[1])
            self._health.began(self.rival, self._began[1])

    def _win(self, which: int, error: Exception | None) -> None:
        self._winner = which
        if not self.started:
            return
        loser, lost, now = self._candidates[1 - which], self._attempts[1 - which], trio.current_time()
        # The one who answers stands last in the route.
        self._flight.route.remove(lost)
        self._flight.route.insert(-1, lost)
        lost.outcome, lost.reason = LOST, "the other one was faster"
        lost.ms = round((now - self._began[1 - which]) * 1000, 3)
        if isinstance(error, ProviderError):
            lost.outcome, lost.reason = str(error.kind), error.message
            self._health.failed(loser, error, now)
        else:
            self._health.let_go(loser)
        if which:
            flight = self._flight
            flight.provider, flight.peer, flight.model = self.rival.name, self.rival.peer, self.rival.model
            self._whole.model = self.rival.model
