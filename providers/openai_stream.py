"""One answer of an OpenAI-compatible upstream on its way: the context that it is made in, and its events.

The settings, the connections and the probe are openai_compat.py; what the bytes mean is openai_wire.py.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING

import trio

from ..protocols.http.client import BadResponse, Call, ClientError, Response
from .base import Dropped, ErrorKind, Event, GenerateRequest, ProviderError
from .batches import Queued
from .openai_wire import ChatAnswer
from .severable import Severable

if TYPE_CHECKING:
    from .openai_compat import OpenAiCompat

_ANSWER_BYTES = 16 * 1024 * 1024

_TAIL_S = 2.0
"""Once the upstream has said how the answer ends, usage and the stream's end get this long; the answer is whole."""


class Generating(Severable):
    """The context of one answer. A class, as a generator for each context is a tenth of a short request's time."""

    __slots__ = ("_call", "_provider", "_request", "_severed", "_waiting")

    def __init__(self, provider: OpenAiCompat, request: GenerateRequest) -> None:
        self._provider, self._request = provider, request
        self._call: Call | None = None
        self._waiting: trio.CancelScope | None = None
        self._severed = False

    def sever(self) -> None:
        self._severed = True
        if self._waiting is not None:
            self._waiting.cancel()
        if self._call is not None:
            self._call.sever()

    async def __aenter__(self) -> AsyncIterator[Event]:
        provider, request = self._provider, self._request
        provider.refuse_what_it_cannot(request)
        model = request.model
        if model is None or not provider.gate.enter_now():
            model = await self._wait(model)
        try:
            request, dropped = provider.settled(request)
            self._call = provider.call(request, model)
            if self._severed:
                self._call.sever()
            return await provider.begin(self._call, request, dropped)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise

    async def _wait(self, model: str | None) -> str:
        """The way in that may take time: the model to ask for, once the gate is open."""
        with trio.CancelScope() as self._waiting:
            model = model or await self._provider.default_model()
            await self._provider.gate.__aenter__()
        if self._waiting.cancelled_caught or model is None:
            raise ProviderError(ErrorKind.CANCELLED, f"{self._provider.name} was not asked in time")
        self._waiting = None
        return model

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._call is not None:
                await self._call.__aexit__(kind, error, trace)
        finally:
            self._provider.gate.leave()


class Events(Queued):
    """The events of one response."""

    def __init__(self, response: Response, answer: ChatAnswer, dropped: tuple[str, ...], *, whole: bool) -> None:
        self._response = response
        self._chunks = aiter(response)
        self._answer = answer
        self._whole = whole
        self._ready: deque[Event] = deque([Dropped(dropped)] if dropped else ())
        self._over = False

    async def _read(self) -> None:
        answer = self._answer
        if self._whole:
            await self._read_whole()
        elif answer.failure is not None:
            self._end()
        elif answer.finished or answer.done:
            if not self._response.whole:
                with trio.move_on_after(_TAIL_S):
                    await self._read_tail()
            self._end()
        else:
            try:
                data = await anext(self._chunks, b"")
            except ClientError as error:
                raise self._broken(error) from error
            if data:
                self._ready.extend(answer.feed(data))
                if answer.ended_well and self._response.whole:
                    self._end()
            else:
                self._end()

    async def _read_tail(self) -> None:
        """Usage, and the body's end so that the connection can serve again. A cut here costs neither."""
        with contextlib.suppress(ClientError):
            async for data in self._chunks:
                if not self._answer.done:
                    self._ready.extend(self._answer.feed(data))
                if self._answer.failure is not None:
                    return

    async def _read_whole(self) -> None:
        try:
            data = await self._response.read(_ANSWER_BYTES)
        except ClientError as error:
            raise self._broken(error) from error
        self._ready.extend(self._answer.whole(data))
        self._whole = False
        if self._answer.failure is None:
            self._end()

    def _end(self) -> None:
        self._over = True
        self._ready.extend(self._answer.end())

    def _broken(self, error: ClientError) -> ProviderError:
        self._over = True
        if isinstance(error, BadResponse):
            return self._answer.interrupted("the upstream's answer breaks the rules of HTTP")
        return self._answer.interrupted("the upstream closed the connection in mid-stream", ErrorKind.CONNECTION)
