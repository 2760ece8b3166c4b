"""When to ask a peer for a sign of life, and when to give it up. Any bytes are a sign of life."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from .call_errors import PeerSilent
from .framing import PING, frame
from .outbox import Outbox
from .session_limits import SessionLimits


class Heartbeat:
    """last_rx: trio time of the last bytes; the reader keeps it up to date."""

    def __init__(self, limits: SessionLimits) -> None:
        self.last_rx = -math.inf
        self._limits = limits
        self._woken = trio.Event()

    def wake(self) -> None:
        """A call begins on an idle session: from now on the short interval counts."""
        self._woken.set()

    async def run(self, is_busy: Callable[[], bool], outbox: Outbox) -> None:
        """Until the peer was silent for `misses` intervals in a row, or takes no data; then SessionLost."""
        limits = self._limits
        base, misses = trio.current_time(), 0
        while True:
            busy = is_busy()
            interval = limits.busy_ping_s if busy else limits.idle_ping_s
            # Half an interval at least: after this process itself stood still, the peer has a chance to be heard.
            due = max(base + (misses + 1) * interval, trio.current_time() + interval / 2)
            if busy:
                await trio.sleep_until(due)
            else:
                self._woken = trio.Event()
                with trio.move_on_at(due):
                    await self._woken.wait()
                    base, misses = trio.current_time(), 0
                    continue
            outbox.check_moving()
            if self.last_rx > base:
                base, misses = self.last_rx, 0
                continue
            misses += 1
            if misses >= limits.misses:
                raise PeerSilent(f"the peer was silent for {trio.current_time() - base:.1f} s")
            outbox.queue(frame(PING, 0), True)
