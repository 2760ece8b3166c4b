"""Streams that know which of their events came together, so that a reader takes what came in one packet in one turn.

    async for event in stream:
        for one in (event, *stream.ready()): ...
        if stream.over: break

Any stream of events may be one; the router asks each (`isinstance`) and reads the others event by event.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator

from .base import Event


class Batches(AsyncIterator[Event]):
    """A stream of events that come in batches."""

    @abc.abstractmethod
    def ready(self) -> list[Event]:
        """What else came with the event that was taken last: no more waits for it."""

    @property
    @abc.abstractmethod
    def over(self) -> bool:
        """Whether nothing will follow what was taken; to ask for more would only end the loop."""
