"""One breaker: closed while things go well, open after failures, half-open while one attempt finds out. Pure.

Times are numbers of seconds on whatever clock the caller uses. The table of what opens it is `Health`'s (health.py).

    closed      every request goes through; `FAILURES` in a row open it
    open        nobody goes through until `until`, which lies 1 s ahead at first and at most `MAX_S`
    half-open   one request goes through as the probe; its first word closes the breaker, its failure opens it longer
"""

from __future__ import annotations

import enum
import random

from ...providers.base import ErrorKind

FAILURES = 3
"""Failures in a row that open it."""
FIRST_S, MAX_S = 1.0, 8.0
"""Seconds that it stays open: at first, and at most; doubled in between. Short, so that who recovers is used soon."""
ACCOUNT_S, MAX_ACCOUNT_S = 5.0, 60.0
"""The same after a refused key or a spent quota, which rarely mend by themselves."""
PROBE_S = 30.0
"""A probe that has not said a word for so long (seconds) keeps nobody else from trying."""


class State(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """failures: in a row. kind, reason: the last one. since: when it happened. until: when an open one lets a probe in.

    probing: when the probe began, or None.
    """

    __slots__ = ("failures", "kind", "opened", "probing", "reason", "since", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.opened = 0  # times in a row
        self.kind = ErrorKind.UPSTREAM
        self.reason = ""
        self.since = self.until = 0.0
        self.probing: float | None = None

    def state(self, now: float) -> State:
        if not self.opened:
            return State.CLOSED
        return State.OPEN if now < self.until and self.probing is None else State.HALF_OPEN

    def busy(self, now: float) -> bool:
        """Whether a probe is under way."""
        return self.probing is not None and now - self.probing < PROBE_S

    def failed(self, kind: ErrorKind, reason: str, now: float, jitter: random.Random) -> None:
        self.failures += 1
        self.kind, self.reason, self.since = kind, reason, now
        self.probing = None
        account = kind in (ErrorKind.AUTH, ErrorKind.QUOTA)
        if not account and self.failures < FAILURES:
            return
        first, most = (ACCOUNT_S, MAX_ACCOUNT_S) if account else (FIRST_S, MAX_S)
        # Failures of requests that began before it opened do not lengthen it.
        if not self.opened or now >= self.until:
            self.opened += 1
        pause = min(first * 2.0 ** min(self.opened - 1, 16), most)
        self.until = max(self.until, now + pause * jitter.uniform(0.8, 1.0))

    def spoke(self) -> None:
        """The probe has heard something: the door is open again, but one more failure shuts it."""
        self.opened, self.probing = 0, None
        self.failures = min(self.failures, FAILURES - 1)

    def began(self, now: float) -> None:
        """An attempt begins; when the breaker is not closed, it is the probe."""
        if self.opened:
            self.probing = now

    def let_go(self) -> None:
        """The attempt ended without a verdict (its caller left)."""
        self.probing = None
