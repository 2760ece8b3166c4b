"""Which backend is asked next, as pure functions of what was seen: no clock, no I/O; `now` is any clock in seconds.

Everything that decides is here: how performance is measured (`Pace`), when a backend is left alone and how it comes
back (`Breaker`), and the order in which backends are tried (`Chooser`). Who asks them is pool.py.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from ..base import POLICY, ErrorKind, ProviderError

Strategy = Literal["round_robin", "least_loaded", "best_performance"]
STRATEGIES: tuple[Strategy, ...] = ("round_robin", "least_loaded", "best_performance")

# -- performance -----------------------------------------------------------------------------------------------

ALPHA = 0.3
"""Weight of the newest measurement in the moving averages."""
NOMINAL_TOKENS = 100
"""The length of the answer by which backends are compared, in tokens."""
FAILURE_COST_S = 5.0
"""Seconds that a failed attempt is held to cost its caller, however fast it failed."""
FORGET_S = 60.0
"""Half of a failure is forgotten after this long: who failed in the past gets another chance."""
TRIALS = 2
"""Attempts that a backend gets before it is compared with others."""


class Pace:
    """How fast and how reliably a backend has answered.

    first_token_s: seconds to the first token; tokens_per_s: after that one; None until an answer has come. A failure
    says nothing about speed, so that who fails fast does not look fast.
    """

    def __init__(self) -> None:
        self.answers = self.failures = 0
        self.first_token_s: float | None = None
        self.tokens_per_s: float | None = None
        self._failing = 0.0
        self._failing_at = 0.0

    @property
    def attempts(self) -> int:
        return self.answers + self.failures

    def answered(self, now: float, *, first_token_s: float, tokens: int, seconds: float) -> None:
        """A whole answer: `tokens` in all, `seconds` from the first to the last."""
        self.answers += 1
        self._fail(0.0, now)
        self.first_token_s = _moved(self.first_token_s, first_token_s)
        if tokens > 1 and seconds > 0:
            self.tokens_per_s = _moved(self.tokens_per_s, (tokens - 1) / seconds)

    def failed(self, now: float) -> None:
        self.failures += 1
        self._fail(1.0, now)

    def failing(self, now: float) -> float:
        """How likely the next attempt fails, from 0 to 1: a moving average that fades with time."""
        return float(self._failing * 0.5 ** (max(0.0, now - self._failing_at) / FORGET_S))

    def expected_s(self, now: float) -> float | None:
        """Seconds that a caller waits for an answer of NOMINAL_TOKENS, failures counted in; None when unknown."""
        if self.first_token_s is None:
            return None
        seconds = self.first_token_s + (NOMINAL_TOKENS / self.tokens_per_s if self.tokens_per_s else 0.0)
        failing = min(self.failing(now), 0.95)
        return (seconds + failing * FAILURE_COST_S) / (1.0 - failing)

    def _fail(self, value: float, now: float) -> None:
        before = self.failing(now)
        self._failing, self._failing_at = before + ALPHA * (value - before), now


def _moved(average: float | None, value: float) -> float:
    return value if average is None else average + ALPHA * (value - average)


# -- health ----------------------------------------------------------------------------------------------------

State = Literal["up", "half_open", "down"]

STRIKES = 3
"""Failures in a row, without a success between them, that take a backend down."""
DOWN_MIN_S, DOWN_MAX_S = 2.0, 60.0
"""Seconds that a backend is left alone: at first, and at most (doubled each time its trial fails)."""
REST_MAX_S = 3600.0
"""Seconds that a backend is left alone at most because it asked for it."""
_AT_ONCE = frozenset({ErrorKind.AUTH, ErrorKind.QUOTA})
_CHECK = "check"
_REQUEST = "request"


class Breaker:
    """up -> down by failures or a check; down -> half-open by time or a check; half-open -> up or down by one trial.

    Nothing goes down for ever: `down` always has an end, and an idle backend stays what it was.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._strikes = self._soft = self._falls = 0
        self._until: float | None = None  # None: up
        self._cause = _REQUEST
        self._trial = False

    def state(self, now: float) -> State:
        if self._until is None:
            return "up"
        return "down" if now < self._until else "half_open"

    def allows(self, now: float) -> bool:
        """Whether a request may go there: any while it is up, one at a time while it is half-open."""
        state = self.state(now)
        return state == "up" or (state == "half_open" and not self._trial)

    def wait_s(self, now: float) -> float:
        """Seconds until it may be tried; 0 when that is now."""
        return max(0.0, (self._until or now) - now)

    def began(self, now: float) -> bool:
        """A request goes there; True when it is the trial of a half-open backend. Tell `ended` or the outcome."""
        trial = self.state(now) == "half_open"
        self._trial = self._trial or trial
        return trial

    def left(self, *, trial: bool) -> None:
        """A request was left without an outcome."""
        if trial:
            self._trial = False

    def answered(self, *, trial: bool) -> None:
        self.left(trial=trial)
        self._strikes = self._soft = 0
        if trial:
            self._until, self._falls, self.reason = None, 0, ""

    def failed(self, error: ProviderError, now: float, *, trial: bool) -> None:
        self.left(trial=trial)
        if not POLICY[error.kind].breaker:
            return
        if error.kind is ErrorKind.RATE_LIMITED:
            self._fall(now, min(REST_MAX_S, max(DOWN_MIN_S, error.retry_after or 0.0)), error.message)
            return
        self._strikes += 1
        if trial or error.kind in _AT_ONCE or self._strikes >= STRIKES:
            self._falls += 1
            pause = min(DOWN_MAX_S, DOWN_MIN_S * 2.0 ** (self._falls - 1))
            self._fall(now, max(pause, min(error.retry_after or 0.0, DOWN_MAX_S)), error.message)

    def checked(self, now: float, fault: str = "", *, hard: bool = True, again_s: float = DOWN_MAX_S) -> None:
        """What a check found. hard: certain (refused, still loading), not only slow: a busy server is slow, too.

        again_s: seconds until the next check, at the latest; it is what brings a backend back that a check took down.
        """
        if not fault:
            self._soft = 0
            if self._until is not None and self._cause == _CHECK:
                self._until = min(self._until, now)  # half-open: a request shows whether it really answers
            return
        self._soft += 1
        if hard or self._soft >= 2:
            self._cause, self.reason = _CHECK, fault
            self._until = max(self._until or 0.0, now + 2 * again_s)

    def _fall(self, now: float, seconds: float, reason: str) -> None:
        self._strikes, self._cause, self.reason = 0, _REQUEST, reason
        self._until = max(self._until or 0.0, now + seconds)


# -- the choice ------------------------------------------------------------------------------------------------


class Seen(Struct, frozen=True, kw_only=True):
    """A backend as the chooser sees it.

    weight: its share, 1 is usual. mine: our requests there, running or queued. others: requests of others that it told
    of. width: requests that it takes at once. expected_s: `Pace.expected_s`. failing: `Pace.failing`. tried: attempts.
    """

    name: str
    weight: float = 1.0
    mine: int = 0
    others: int = 0
    width: int = 8
    expected_s: float | None = None
    failing: float = 0.0
    tried: int = 0

    @property
    def load(self) -> float:
        return (self.mine + self.others) / self.weight


class Chooser:
    """Puts backends in the order to try them; the first is the choice, the others are there if it fails.

    explore: the share of requests that best_performance sends to another backend than the best, so that what is known
    stays true.
    """

    def __init__(self, strategy: Strategy, *, explore: float = 0.1, random_: random.Random | None = None) -> None:
        self.strategy, self._explore = strategy, explore
        self._random = random_ or random.SystemRandom()
        self._turn: dict[str, float] = {}

    def order(self, backends: Sequence[Seen]) -> list[Seen]:
        """All of them, each once."""
        if len(backends) < 2:
            return list(backends)
        turns = self._turns(backends)
        match self.strategy:
            case "round_robin":
                ordered = turns
            case "least_loaded":
                ordered = sorted(turns, key=lambda seen: seen.load)
            case "best_performance":
                ordered = self._by_performance(turns)
        self._turn[ordered[0].name] -= sum(seen.weight for seen in backends)
        return ordered

    def _turns(self, backends: Sequence[Seen]) -> list[Seen]:
        """Smooth weighted round robin (as nginx does it): each gains its weight, who was chosen pays all of them."""
        self._turn = {seen.name: self._turn.get(seen.name, 0.0) + seen.weight for seen in backends}
        return sorted(backends, key=lambda seen: -self._turn[seen.name])

    def _by_performance(self, turns: list[Seen]) -> list[Seen]:
        new = [seen for seen in turns if seen.tried < TRIALS and not seen.mine]
        if new:
            # Not compared yet. One request at a time finds out, so that a slow newcomer slows few callers.
            return [*new, *(seen for seen in self._ranked(turns) if seen not in new)]
        ranked = self._ranked(turns)
        others = ranked[1:]
        if self._random.random() < self._explore:
            chances = [seen.weight * (1.0 - min(seen.failing, 0.95)) for seen in others]
            chosen = self._random.choices(others, chances)[0]
            return [chosen, *(seen for seen in ranked if seen is not chosen)]
        return ranked

    @staticmethod
    def _ranked(turns: Sequence[Seen]) -> list[Seen]:
        known = [seen.expected_s for seen in turns if seen.expected_s is not None]
        unknown_s = sum(known) / len(known) if known else 1.0

        def cost(seen: Seen) -> float:
            seconds = seen.expected_s
            if seconds is None:
                failing = min(seen.failing, 0.95)
                seconds = (unknown_s + failing * FAILURE_COST_S) / (1.0 - failing)
            return seconds * (1.0 + (seen.mine + seen.others) / seen.width) / seen.weight

        return sorted(turns, key=cost)
