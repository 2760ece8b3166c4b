"""Two candidates for one answer: the second starts when the first is silent for longer than is usual for it.

Whoever says something first goes on, and the other one is cancelled. Off unless `router.hedge` is set, since what the
loser has done may have to be paid for.

    async with hedged(open_first, open_second, after_s=0.8, on_start=..., on_win=...) as stream:
        async for event in stream: ...
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio

from ...providers.base import Event

Opener = Callable[[], AbstractAsyncContextManager[AsyncIterator[Event]]]


class Race:
    """The events of whoever wins. winner: 0 or 1 once it is known. result: what the winner's stream has at its end."""

    def __init__(self, openers: tuple[Opener, Opener]) -> None:
        self._openers = openers
        self._scopes = (trio.CancelScope(), trio.CancelScope())
        self._send, self._receive = trio.open_memory_channel[Event](0)
        self._second_may = trio.Event()
        self._errors: list[Exception | None] = [None, None]
        self._gone = 0
        self._stream: Any = None
        self.winner: int | None = None

    @property
    def result(self) -> Any:
        return getattr(self._stream, "result", None)

    @property
    def accepted(self) -> Any:
        return getattr(self._stream, "accepted", None)

    def __aiter__(self) -> Race:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            error = self._errors[self.winner or 0]
            if error is not None:
                raise error from None
            raise StopAsyncIteration from None

    async def run(
        self,
        which: int,
        after_s: float,
        on_start: Callable[[int], None],
        on_win: Callable[[int, Exception | None], None],
    ) -> None:
        """One of the two. It never raises for what a provider does."""
        try:
            with self._scopes[which]:
                if which:
                    with trio.move_on_after(after_s):
                        await self._second_may.wait()
                on_start(which)
                async with self._openers[which]() as stream:
                    async for event in stream:
                        if self.winner is None:
                            self.winner, self._stream = which, stream
                            self._scopes[1 - which].cancel()
                            on_win(which, self._errors[1 - which])
                        await self._send.send(event)
        except Exception as error:
            self._errors[which] = error
        finally:
            self._second_may.set()
            self._gone += 1
            if self._gone == 2 or self.winner == which:
                self._send.close()


@asynccontextmanager
async def hedged(
    first: Opener,
    second: Opener,
    *,
    after_s: float,
    on_start: Callable[[int], None],
    on_win: Callable[[int, Exception | None], None],
) -> AsyncGenerator[Race]:
    """after_s: seconds that the first may be silent. on_start, on_win: told 0 or 1 when that one begins, and speaks
    (on_win with the other one's error, where it has failed already).

    When both fail before they have spoken, the first's error is raised.
    """
    race = Race((first, second))
    async with trio.open_nursery() as nursery:
        for which in (0, 1):
            nursery.start_soon(race.run, which, after_s, on_start, on_win)
        try:
            yield race
        finally:
            nursery.cancel_scope.cancel()
