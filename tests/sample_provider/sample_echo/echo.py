"""A provider with settings of its own, that streams events, and says what it left out."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import trio
from shoal.providers.base import (
    Event,
    Finish,
    GenerateRequest,
    ModelInfo,
    Provider,
    Status,
    TextDelta,
    Usage,
)
from shoal.providers.options import settle, told
from shoal.providers.settings import BuildContext, ProviderSettings


class Settings(ProviderSettings, kw_only=True, forbid_unknown_fields=True):
    """`[providers.echo]`."""

    greeting: str = "hello"
    pause_s: float = 0.0


def build(name: str, settings: Settings, context: BuildContext) -> Provider:
    return Echo(name, settings)


class Echo(Provider):
    """Greets, then says the words of the prompt again, one by one."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self._settings = settings

    async def probe(self) -> Status:
        return Status(ready=True, models=(ModelInfo("echo-1", 4096),), default_model="echo-1", version="echo 1.0")

    @contextlib.asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[AsyncIterator[Event]]:
        request, dropped = settle(request, {"max_tokens"}, self._settings.unsupported, self.name)
        events = self._events(request)
        try:
            yield told(dropped, events)
        finally:
            await events.aclose()

    async def _events(self, request: GenerateRequest) -> AsyncGenerator[Event]:
        words = [self._settings.greeting, *request.messages[-1].text.split()]
        limit = request.max_tokens or len(words)
        for word in words[:limit]:
            await trio.sleep(self._settings.pause_s)
            yield TextDelta(f"{word} ")
        yield Usage(len(words), min(limit, len(words)))
        yield Finish("length" if limit < len(words) else "stop", "echo-1")
