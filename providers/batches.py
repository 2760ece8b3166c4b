"""Streams that know which of their events came together, so that a reader takes what came in one packet in one turn.

    async for event in stream:
        for one in (event, *stream.ready()): ...
        if stream.over: break

Any stream of events may be one; the router asks each (`isinstance`) and reads the others event by event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

from .base import Event


class Batches:
    """A stream of events that come in batches: an asynchronous iterator, and no abstract class (see severable.py)."""

    def __aiter__(self) -> AsyncIterator[Event]:
        raise NotImplementedError

    async def __anext__(self) -> Event:
        raise NotImplementedError

    def ready(self) -> list[Event]:
        """What else came with the event that was taken last: no more waits for it."""
        raise NotImplementedError

    @property
    def over(self) -> bool:
        """Whether nothing will follow what was taken; to ask for more would only end the loop."""
        raise NotImplementedError


class Queued(Batches):
    """Events that wait for their reader. More is read only when they are taken: a slow caller slows the source down."""

    _ready: deque[Event]
    _over: bool
    """Nothing more will be read. Both are set by whoever derives from this: a constructor here would cost a call."""

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._ready:
            if self._over:
                raise StopAsyncIteration
            await self._read()
        return self._ready.popleft()

    def ready(self) -> list[Event]:
        ready, self._ready = self._ready, deque()
        return list(ready)

    @property
    def over(self) -> bool:
        return self._over and not self._ready

    async def _read(self) -> None:
        """Waits for what comes next: puts events into `_ready`, or sets `_over`, or neither; raises ProviderError."""
        raise NotImplementedError
