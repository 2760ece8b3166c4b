"""A provider that is made on first use: one that was registered as a factory, or that a plug-in brings.

Making it may import heavy modules or fail; neither may hold up or end the node, so it happens in a thread, once,
and a failure is the reason why the provider is not ready.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, NoReturn

import trio

from .base import ErrorKind, Event, GenerateRequest, Provider, ProviderError, Status
from .embedding import able
from .quoting import quotable
from .settings import ProviderSettings
from .simple import LLMProvider, SimpleProvider

_RETRY_S = 30.0
"""A factory that failed is asked again after this long."""


class Deferred(Provider):
    """`make()` gives a Provider or an LLMProvider. It runs at the first probe or request inside `running()`."""

    def __init__(self, name: str, make: Callable[[], object], settings: ProviderSettings) -> None:
        self.name = name
        self.embeds = True  # as far as is known before it is made
        self._make = make
        self._settings = settings
        self._nursery: trio.Nursery | None = None
        self._open = trio.Event()
        self._settled: trio.Event | None = None
        self._made: Provider | None = None
        self._failure: ProviderError | None = None
        self._failed_at = float("-inf")
        self._in_use = 0
        self._retired = False
        self._unused = trio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._open.set()
            try:
                yield
            finally:
                self._nursery, self._made, self._settled = None, None, None
                self._open = trio.Event()
                nursery.cancel_scope.cancel()

    async def until_unused(self) -> None:
        """Returns when somebody called `retire()` and the last request is over."""
        await self._unused.wait()

    def retire(self) -> None:
        """Another provider took this one's name: no new requests come."""
        self._retired = True
        if not self._in_use:
            self._unused.set()

    def facts(self) -> dict[str, Any]:
        return self._made.facts() if self._made is not None else {}

    async def probe(self) -> Status:
        try:
            provider = await self._provider()
        except ProviderError as error:
            return Status(ready=False, reason=error.message)
        return await provider.probe()

    @contextlib.asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[AsyncIterator[Event]]:
        self._in_use += 1
        try:
            provider = await self._provider()
            if request.embed is not None:
                provider = able(provider) or _mute(self.name)
            async with provider.generate(request) as events:
                yield events
        finally:
            self._in_use -= 1
            if self._retired and not self._in_use:
                self._unused.set()

    async def made(self) -> object:
        """What `make()` gave, made now if need be. Raises ProviderError."""
        provider = await self._provider()
        return provider.inner if isinstance(provider, SimpleProvider) else provider

    async def _provider(self) -> Provider:
        await self._open.wait()
        if self._made is None and self._settled is None:
            if self._failure is not None and trio.current_time() < self._failed_at + _RETRY_S:
                raise self._failure
            assert self._nursery is not None
            self._settled, self._failure = trio.Event(), None
            self._nursery.start_soon(self._live, self._settled)
        if self._made is None and self._settled is not None:
            await self._settled.wait()
        if self._made is None:
            raise self._failure or ProviderError(ErrorKind.UNAVAILABLE, f"{self.name} is shutting down")
        return self._made

    async def _live(self, settled: trio.Event) -> None:
        """Makes the provider and holds its `running()` open. What goes wrong is foreign code's, and stays here."""
        try:
            made = await trio.to_thread.run_sync(self._make, abandon_on_cancel=True)
            provider = adapted(self.name, made, self._settings)
            async with provider.running():
                self._made, self.embeds, self.completes = provider, able(provider) is not None, provider.completes
                settled.set()
                await trio.sleep_forever()
        except ProviderError as error:
            self._failure = error
        except Exception as error:
            said = quotable(str(error), private=())
            self._failure = ProviderError(
                ErrorKind.UNAVAILABLE, f"could not be made: {type(error).__name__}{': ' + said if said else ''}"
            )
        finally:
            self._made, self._settled = None, None
            self._failed_at = trio.current_time()
            settled.set()


def _mute(name: str) -> NoReturn:
    raise ProviderError(ErrorKind.UNAVAILABLE, f"{name} makes no embeddings")


def adapted(name: str, made: object, settings: ProviderSettings) -> Provider:
    """A Provider as it is, an LLMProvider wrapped. Raises TypeError for anything else."""
    if isinstance(made, Provider):
        return made
    if isinstance(made, LLMProvider) and callable(made.generate):
        return SimpleProvider(name, made, settings)
    raise TypeError(
        f"the factory gave {type(made).__name__}, which has no generate(prompt, *, model_name=None, **options)"
    )
