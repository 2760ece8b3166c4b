"""A router of our own in this process: the node's, without a swarm and without a disk.

Providers by the node's configuration, the same order, pins, retries and single flight, and a cache in memory.
`local_router` is the whole wiring; it runs in the background loop's thread, as all coroutines here do.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import AsyncGenerator, Mapping

import msgspec
import trio

from .cache.memory import Memory
from .cache.tiers import AnswerCache
from .errors import GenerationError, NotConfiguredError, ProviderFailedError
from .node.config_file import Loaded
from .node.provider_tables import build_registry
from .node.routing.ask import Ask
from .node.routing.candidate import Candidate
from .node.routing.candidates import NodeCandidates
from .node.routing.limits import RoutingLimits
from .node.routing.no_answer import NoAnswer
from .node.routing.router import Router
from .options import Call
from .protocols.peer_id import Identity
from .providers.base import ErrorKind, GenerateRequest, Provider, ProviderError, TextDelta
from .providers.deferred import Deferred, adapted
from .providers.registry import Registry, canonical, registered_names, registrations
from .providers.settings import ProviderSettings


class Said(msgspec.Struct, frozen=True):
    """An answer's text. storable: whether it may be kept under the request's key beyond this process."""

    text: str
    storable: bool


@contextlib.asynccontextmanager
async def local_router(loaded: Loaded, environ: Mapping[str, str]) -> AsyncGenerator[LocalRouter]:
    """The parts of a node that one process needs, wired. Raises ConfigError."""
    config = loaded.config
    registry = build_registry(loaded, environ)
    # Records stay in this process, so the key that signs them may be one that nobody knows.
    identity = Identity.generate()
    cache = None
    if config.cache.enabled:
        cache = AnswerCache(
            identity.peer_id,
            memory=Memory(max_bytes=config.cache.memory_bytes),
            mode=config.cache.mode,
            ttl_s=config.cache.ttl_s or None,
            publish=False,
        )
    order, provider, model = config.router.order, config.router.provider, config.router.model
    source = NodeCandidates(registry, order=order, provider=provider, model=model, forward=False)
    limits = RoutingLimits(
        deadline_s=config.router.deadline_s, first_token_s=config.router.first_token_s, idle_s=config.router.idle_s
    )
    router = Router(source, cache=cache, signer=identity, limits=limits)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(registry.running())
        if cache is not None:
            await stack.enter_async_context(cache.running())
        await stack.enter_async_context(source.running())
        await stack.enter_async_context(router.running())
        nursery = await stack.enter_async_context(trio.open_nursery())
        yield LocalRouter(registry, router, cache, identity, limits, nursery)
        nursery.cancel_scope.cancel()


class LocalRouter:
    """Answers calls in this process; made by `local_router`."""

    def __init__(
        self,
        registry: Registry,
        router: Router,
        cache: AnswerCache | None,
        identity: Identity,
        limits: RoutingLimits,
        nursery: trio.Nursery,
    ) -> None:
        self._registry, self._router, self._cache = registry, router, cache
        self._identity, self._limits, self._nursery = identity, limits, nursery
        self._registrations = registrations()
        self._names = _InstanceNames()
        self._instances: dict[str, _Instance] = {}

    async def answer(self, call: Call, instance: object | None = None) -> Said:
        """The text. Raises UnknownProviderError, NotConfiguredError, GenerationError; TypeError for an odd instance."""
        self._forget_what_was_replaced()
        if instance is not None:
            return await self._answer_by(instance, call)
        if call.request.provider is not None:
            self._registry.get(call.request.provider)
        said, provider = await self._ask(self._router, call)
        # What a provider of this process alone has said must not stand for others in a shared cache.
        return Said(said.text, said.storable and provider not in registered_names())

    async def check(self, name: str | None) -> object | None:
        """Whether a provider (None: any) can be used. Gives what a registered factory made, None for the others.

        Raises UnknownProviderError, NotConfiguredError, ProviderFailedError.
        """
        if name is None:
            statuses = await self._registry.statuses()
            if not any(status.ready for status in statuses.values()):
                reasons = "; ".join(f"{who}: {status.reason}" for who, status in statuses.items())
                raise NotConfiguredError(f"no provider can be used ({reasons or 'none is configured'})")
            return None
        provider, known = self._registry.get(name), canonical(name)
        status = await provider.probe()
        if not status.ready:
            raise ProviderFailedError(f"{known}: {status.reason}")
        if known in registered_names() and isinstance(provider, Deferred):
            return await provider.made()
        return None

    def _forget_what_was_replaced(self) -> None:
        """Answers of a provider that was registered anew are not those of its successor."""
        if self._registrations != registrations():
            self._registrations = registrations()
            if self._cache is not None:
                self._cache.memory.clear()

    async def _ask(self, router: Router, call: Call) -> tuple[Said, str | None]:
        """The answer and who gave it."""
        ask = router.ask(
            call.request,
            timeout_s=call.timeout_s,
            cache_control=call.cache_control(enabled=self._cache is not None),
            allow_fallback=call.allow_fallback,
        )
        text: list[str] = []
        try:
            async with router.answer(ask) as answer:
                while events := await answer.more():
                    text += [event.text for event in events if isinstance(event, TextDelta)]
        except NoAnswer as error:
            raise GenerationError(
                error.message, kind=error.kind, route=error.route, retry_after=error.retry_after
            ) from error
        if not text:
            raise no_text(answer.provider)
        return Said("".join(text), answer.response_cid is not None), answer.provider

    async def _answer_by(self, instance: object, call: Call) -> Said:
        """By the caller's own object. Calls of one object at once share a router; its answers are its own."""
        name = self._names.of(instance)
        entry = self._instances.get(name)
        if entry is None:
            provider = adapted(name, instance, ProviderSettings())
            entry = self._instances[name] = _Instance(
                provider, Router(_Only(provider, name), cache=self._cache, signer=self._identity, limits=self._limits)
            )
            self._nursery.start_soon(entry.live)
        entry.calls += 1
        try:
            await entry.settled.wait()
            if entry.failure is not None:
                raise GenerationError(entry.failure.message, kind=entry.failure.kind)
            pinned = msgspec.structs.replace(call.request, provider=name)
            said, _ = await self._ask(entry.router, msgspec.structs.replace(call, request=pinned))
            return Said(said.text, storable=False)
        finally:
            entry.calls -= 1
            if not entry.calls:
                self._instances.pop(name, None)
                entry.unused.set()


def no_text(provider: str | None) -> GenerationError:
    """An answer that is whole and has no text: all of it was reasoning, or calls of tools."""
    message = f"{provider or 'the provider'} finished without any text; if it reasons, raise max_tokens"
    return GenerationError(message, kind=ErrorKind.UPSTREAM)


class _Instance:
    """An object that the caller brought, while calls use it."""

    def __init__(self, provider: Provider, router: Router) -> None:
        self.provider, self.router = provider, router
        self.calls = 0
        self.settled, self.unused = trio.Event(), trio.Event()
        self.failure: ProviderError | None = None

    async def live(self) -> None:
        try:
            async with self.provider.running(), self.router.running():
                self.settled.set()
                await self.unused.wait()
        except Exception as error:  # foreign code: it ends this object's calls and nothing else
            message = f"the provider instance could not start: {type(error).__name__}"
            self.failure = ProviderError(ErrorKind.UNAVAILABLE, message)
        finally:
            self.settled.set()


class _Only:
    """A candidate source that knows one provider, and takes any model for it."""

    def __init__(self, provider: Provider, name: str) -> None:
        self._provider, self._name = provider, name

    def candidates(self, request: GenerateRequest, ask: Ask) -> list[Candidate]:
        return [Candidate(provider=self._provider, name=self._name, model=request.model)]

    def settled(self, request: GenerateRequest, ask: Ask | None = None) -> GenerateRequest:
        return request

    async def refresh(self, request: GenerateRequest | None = None, ask: Ask | None = None) -> None:
        await trio.lowlevel.checkpoint()

    def why_none(self, request: GenerateRequest, ask: Ask) -> NoAnswer:
        return NoAnswer(ErrorKind.UNAVAILABLE, f"{self._name} cannot answer this.")


class _InstanceNames:
    """A name for each object that is told apart from every other one, those that are gone among them."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[object], str]] = {}
        self._count = itertools.count(1)

    def of(self, instance: object) -> str:
        known = self._known.get(id(instance))
        if known is not None and known[0]() is instance:
            return known[1]
        name = f"instance:{next(self._count)}"
        with contextlib.suppress(TypeError):  # an object without weak references gets a new name each time
            key = id(instance)
            self._known[key] = weakref.ref(instance, lambda _: self._known.pop(key, None)), name
        return name
