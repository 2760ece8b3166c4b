"""A token bucket: so many a second, with a burst. Pure: the caller brings the time."""

from __future__ import annotations


class Bucket:
    """Starts full. `rate` in tokens a second, `burst` the most that can be saved up."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self._level, self._at = burst, 0.0

    def take(self, count: float, now: float) -> float:
        """Take `count` tokens, going into debt if need be; the seconds until the debt is paid (0.0: none)."""
        if now > self._at:
            self._level = min(self.burst, self._level + (now - self._at) * self.rate)
            self._at = now
        self._level -= count
        return 0.0 if self._level >= 0 else -self._level / self.rate
