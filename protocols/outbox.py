"""What leaves on a session: one queue, and the one task that writes it to the stream.

What belongs here: when queued bytes go, how many may wait, and how fast. Queueing never blocks; a producer asks for
`room` first. Frames that say `now` leave at once and take everything queued before with them; others (deltas) wait
for company, but at most `flush_delay_s` after the last write, so a lone token on a quiet line leaves at once.
"""

from __future__ import annotations

import math
from typing import Protocol

import trio

from .call_errors import CallError, SessionLost
from .framing import CREDIT, WHOLE_BODY_BYTES, frame
from .rate import Bucket
from .session_limits import SessionLimits


class ByteStream(Protocol):
    """What a session runs over."""

    async def read(self, n: int, /) -> bytes: ...  # 1 to n bytes; b"" at the end
    async def write(self, data: bytes, /) -> None: ...
    async def close_write(self) -> None: ...  # the peer reads its end after what was written; reading goes on
    async def reset(self) -> None: ...


class Outbox:
    """writes, frames, bytes: counted. lost: set by `close`, raised to those who wait for room."""

    def __init__(self, stream: ByteStream, limits: SessionLimits) -> None:
        self.flush_bytes = limits.flush_bytes
        self.lost: Exception | None = None
        self.writes = self.frames = self.bytes = 0
        self._stream, self._limits = stream, limits
        self._out = bytearray()
        self._out_frames = 0
        self._flush_at = math.inf  # when what is queued must go
        self._last_write = -math.inf
        self._wake = trio.Event()
        self._wake_at = -1.0  # the writer sleeps until then (-1: it is not asleep)
        self._writing_since = math.inf
        self._lot = trio.lowlevel.ParkingLot()
        # The peer drops who sends too fast: stay well below, by its clock too.
        self._pace = Bucket(limits.frames_per_s * 0.8, limits.frame_burst * 0.5)
        self._byte_pace = Bucket(limits.bytes_per_s * 0.8, limits.byte_burst * 0.5)
        self._max_frames = int(limits.frame_burst * 0.25)  # in one write

    def queue(self, data: bytes, now: bool) -> None:
        """Queue one frame; never blocks."""
        self._out += data
        self._out_frames += 1
        if now or len(self._out) >= self.flush_bytes:
            self._flush_at = 0.0
        elif self._flush_at == math.inf:
            self._flush_at = self._last_write + self._limits.flush_delay_s
        if self._flush_at < self._wake_at:
            self._wake.set()

    def queue_credit(self, call_id: int, size: int) -> None:
        self.queue(frame(CREDIT, call_id, size), True)

    def check_size(self, payload: bytes) -> None:
        """Raises CallError("too_large") for a body that the peer would refuse."""
        limit = self._limits.max_body_bytes
        if len(payload) > limit:
            raise CallError("too_large", f"a body of {len(payload)} bytes; the limit is {limit}")

    @property
    def quiet_since(self) -> float:
        """The trio time of the last write; now, while something is on its way."""
        return trio.current_time() if self._out or self._writing_since < math.inf else self._last_write

    def backlog(self) -> int:
        """Bytes queued and not yet given to the stream."""
        return len(self._out)

    async def room(self, bulk: bool = False) -> None:
        """Wait until a producer may queue more; one that sends parts (`bulk`) leaves most of the line to others.

        Raises why the session was lost.
        """
        high = WHOLE_BODY_BYTES if bulk else self._limits.high_water_bytes
        while (len(self._out) >= high or self._out_frames >= self._max_frames) and self.lost is None:
            await self._lot.park()
        self.check_open()

    def check_open(self) -> None:
        """Raises why the session was lost, if it was."""
        if self.lost is not None:
            raise SessionLost(str(self.lost))  # a new one: raised in many tasks, one would gather all their tracebacks

    async def flushed(self) -> None:
        """Wait until everything queued was written, or the session is lost."""
        while (self._out or self._writing_since < math.inf) and self.lost is None:
            await self._lot.park()

    def check_moving(self) -> None:
        """Raises SessionLost when the peer takes no data: called now and then, cheaper than a deadline a write."""
        limit = self._limits.write_timeout_s
        if trio.current_time() - self._writing_since > limit:
            raise SessionLost(f"the peer took no data for {limit:.0f} s")

    def close(self, reason: Exception) -> None:
        self.lost = reason
        self._lot.unpark_all()

    async def run(self) -> None:
        """The writer. Raises what the stream raises."""
        stream = self._stream
        while True:
            while (due := self._flush_at) > trio.current_time():
                self._wake, self._wake_at = trio.Event(), due
                if due == math.inf:
                    await self._wake.wait()
                else:
                    with trio.CancelScope(deadline=due):
                        await self._wake.wait()
                self._wake_at = -1.0
            data, count = self._out, self._out_frames
            self._out, self._out_frames, self._flush_at = bytearray(), 0, math.inf
            self._writing_since = trio.current_time()
            await stream.write(bytes(data))
            self._writing_since = math.inf
            self.writes += 1
            self.frames += count
            self.bytes += len(data)
            self._last_write = now = trio.current_time()
            self._lot.unpark_all()
            if pause := max(self._pace.take(count, now), self._byte_pace.take(len(data), now)):
                await trio.sleep(pause)
