"""The stream of an attempt that goes on with what an earlier one has said, as the caller gets it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from ...providers.base import Event
from .continuation import Splice


class Spliced:
    """What the caller gets of a later attempt; `heard` is called for what he does not get."""

    def __init__(self, stream: AsyncIterator[Event], splice: Splice, heard: Callable[[], None]) -> None:
        self._stream, self._splice, self._heard = aiter(stream), splice, heard
        self._ready: list[Event] = []

    def __aiter__(self) -> Spliced:
        return self

    async def __anext__(self) -> Event:
        while not self._ready:
            self._ready = list(self._splice.take(await anext(self._stream)))[::-1]
            if not self._ready:
                self._heard()
        return self._ready.pop()
