"""The pool: asks the backend that the policy chooses, and another one while the caller has seen nothing.

Checks run in the background from the start to the end of `running()`; a request never waits for one, but the first
may wait a moment until the backends were looked at.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from typing import Any

import msgspec
import trio

from ..base import (
    POLICY,
    Dropped,
    ErrorKind,
    Event,
    Finish,
    GenerateRequest,
    ModelInfo,
    Provider,
    ProviderError,
    Status,
    Usage,
    Via,
)
from ..embedding import able
from ..gate import Gate
from ..openai_compat import OpenAiCompat
from . import server_kinds
from .backend import Backend
from .policy import Chooser
from .settings import Settings

FIRST_LOOK_S = 4.0
"""Seconds that the first request or probe waits until each backend was looked at."""
SILENT_S = 5.0
"""Leaving a backend that has been silent for so long counts against it: somebody's patience was over."""

_NOT_RUN = frozenset(
    {
        ErrorKind.UNSUPPORTED,
        ErrorKind.UNAVAILABLE,
        ErrorKind.AUTH,
        ErrorKind.QUOTA,
        ErrorKind.RATE_LIMITED,
        ErrorKind.OVERLOADED,
    }
)
"""Failures that show that the request was not worked on."""


class BackendPool(Provider):
    """See the module. providers: backend's name -> how its requests are sent."""

    embeds = True
    completes = True

    def __init__(self, name: str, settings: Settings, providers: Mapping[str, OpenAiCompat]) -> None:
        self.name = name
        self._settings = settings
        self.runs_here = all(server_kinds.on_this_machine(settings.backends[each].base_url) for each in providers)
        self.disturbs = any(settings.backends[each].kind == "llama_cpp_python" for each in providers)
        self.backends = [Backend(each, settings.backends[each], provider) for each, provider in providers.items()]
        self._gate = Gate(
            name, running=settings.max_concurrent, waiting=settings.max_queue, patience_s=settings.queue_s
        )
        self._chooser = Chooser(settings.strategy, explore=settings.explore)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for backend in self.backends:
                await stack.enter_async_context(backend.provider.running())
            nursery = await stack.enter_async_context(trio.open_nursery())
            for backend in self.backends:
                nursery.start_soon(backend.watch)
            yield
            nursery.cancel_scope.cancel()

    # -- what it offers ----------------------------------------------------------------------------------------

    async def probe(self) -> Status:
        await self._looked()
        now = trio.current_time()
        up = [backend for backend in self.backends if backend.breaker.state(now) != "down" and backend.status.ready]
        if not up:
            return Status(ready=False, reason=f"no backend is up; {self._reasons(self.backends)}")
        return Status(
            ready=True,
            models=_models(up),
            default_model=self._settings.default_model or _most_offered(up),
            any_model=any(backend.status.any_model for backend in up),
            version=f"{len(up)} of {len(self.backends)} backends up",
        )

    def facts(self) -> dict[str, Any]:
        now = trio.current_time()
        backends = [backend.facts(now) for backend in self.backends]
        return {**self._gate.facts(), "strategy": self._settings.strategy, "backends": backends}

    async def _looked(self) -> None:
        """Returns when each backend was looked at, but does not wait for the slow ones once one is up."""
        with trio.move_on_after(FIRST_LOOK_S):
            for backend in self.backends:
                await backend.looked.wait()

    def _reasons(self, backends: Iterable[Backend]) -> str:
        said = [f"{b.name}: {b.breaker.reason or b.status.reason or 'on trial'}" for b in backends]
        return "; ".join(said[:8])

    # -- requests ----------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[AsyncIterator[Event]]:
        async with self._gate:
            if not any(backend.looked.is_set() for backend in self.backends):
                await self._looked()
            if request.model is None and self._settings.default_model is not None:
                request = msgspec.structs.replace(request, model=self._settings.default_model)
            answer = PoolAnswer(self, request)
            try:
                await answer.begin()
                yield answer
            finally:
                await answer.leave()

    def next(self, request: GenerateRequest, tried: Iterable[Backend], longer_than: int | None) -> Backend | None:
        """The backend to ask now. longer_than: only one whose context is known to be larger (tokens)."""
        now, tried = trio.current_time(), list(tried)
        able = [
            backend
            for backend in self.backends
            if backend not in tried
            and backend.breaker.allows(now)
            and not backend.provider.gate.full
            and backend.offers(request)
            and (longer_than is None or (backend_length(backend, request) or 0) > longer_than)
        ]
        if not able:
            return None
        by_name = {backend.name: backend for backend in able}
        return by_name[self._chooser.order([backend.seen(now) for backend in able])[0].name]

    async def count(self, request: GenerateRequest) -> int | None:
        """See counting.py: by the first backend that has the model and can tell."""
        for backend in self.backends:
            if backend.status.ready and backend.offers(request):
                model = backend.model(request.model) if request.model is not None else None
                asked = request if model is None else msgspec.structs.replace(request, model=model.name)
                if (tokens := await backend.provider.count(asked)) is not None:
                    return tokens
        return None

    def nobody(self, request: GenerateRequest) -> ProviderError:
        """Why no backend can be asked at all."""
        now = trio.current_time()
        having = [backend for backend in self.backends if backend.offers(request)]
        if not having and any(backend.status.ready for backend in self.backends):
            return ProviderError(ErrorKind.UNAVAILABLE, f"no backend of {self.name} has the model that was asked for")
        if having and all(b.breaker.allows(now) for b in having):
            return ProviderError(ErrorKind.OVERLOADED, f"the queue of every backend of {self.name} is full")
        waits = [backend.breaker.wait_s(now) for backend in having]
        soon = min(waits, default=0.0) or None
        reasons = self._reasons(having or self.backends)
        return ProviderError(ErrorKind.UNAVAILABLE, f"no backend of {self.name} is up; {reasons}", retry_after=soon)

    @property
    def first_token_s(self) -> float:
        return self._settings.first_token_s


class PoolAnswer:
    """The events of one request, from the first backend that gives any."""

    def __init__(self, pool: BackendPool, request: GenerateRequest) -> None:
        self._pool, self._request = pool, request
        self._tried: list[Backend] = []
        self._failures: list[tuple[Backend, ProviderError]] = []
        self._asked: Backend | None = None
        self._in_use: Backend | None = None
        self._trial = False
        self._stack = contextlib.AsyncExitStack()
        self._events: AsyncIterator[Event] | None = None
        self._first: list[Event] = []
        self._began = self._first_at = self._last_at = 0.0
        self._pieces = 0
        self._tokens = 0
        self._said = self._over = False

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if self._first:
            return self._first.pop(0)
        if self._over or self._events is None:
            raise StopAsyncIteration
        try:
            event = await anext(self._events)
        except StopAsyncIteration:
            self._over = True
            raise
        except ProviderError as error:
            self._failed(error)
            raise _told(self._asked, error) from error
        self._take(event)
        return event

    async def begin(self) -> None:
        """Until a backend has said something. Raises ProviderError when none does."""
        longer_than: int | None = None
        while True:
            backend = self._pool.next(self._request, self._tried, longer_than)
            if backend is None:
                raise self._give_up()
            self._tried.append(backend)
            error = await self._try(backend)
            if error is None:
                self._first.insert(0, Via(backend.name))
                return
            self._failures.append((backend, error))
            step = POLICY[error.kind].next
            if step == "no" or (self._request.has_tools and error.kind not in _NOT_RUN):
                raise self._give_up()
            if step == "larger":
                longer_than = backend_length(backend, self._request) or 0

    async def _try(self, backend: Backend) -> ProviderError | None:
        """None when the backend has said something, or finished. Else why not; it is left then."""
        now = trio.current_time()
        self._asked = self._in_use = backend
        self._began = self._last_at = now
        self._trial = backend.breaker.began(now)
        backend.mine += 1
        self._first, self._pieces, self._tokens = [], 0, 0
        error: ProviderError | None = None
        with trio.move_on_after(self._pool.first_token_s) as patience:
            try:
                asked = self._for(backend)
                provider = (able(backend.provider) if asked.embed is not None else None) or backend.provider
                self._events = await self._stack.enter_async_context(provider.generate(asked))
                while not self._said:
                    event = await anext(self._events)
                    self._take(event)
                    self._first.append(event)
            except ProviderError as caught:
                error = caught
            except StopAsyncIteration:
                error = ProviderError(ErrorKind.UPSTREAM, "it ended its stream without an end mark")
        if patience.cancelled_caught:
            limit = f"{self._pool.first_token_s:g} s"
            error = ProviderError(ErrorKind.FIRST_TOKEN_TIMEOUT, f"it gave no first token in {limit}")
        if error is not None:
            self._failed(error)
            await self._close()
        return error

    def _for(self, backend: Backend) -> GenerateRequest:
        """The request with the model's name as the backend spells it."""
        wanted = self._request.model
        model = backend.model(wanted) if wanted is not None else None
        if model is None or model.name == wanted:
            return self._request
        return msgspec.structs.replace(self._request, model=model.name)

    def _take(self, event: Event) -> None:
        now = trio.current_time()
        if isinstance(event, Usage):
            self._tokens = event.completion_tokens
        elif isinstance(event, Finish):
            self._over = self._said = True
            self._answered(now)
        elif not isinstance(event, Dropped):
            self._pieces += 1
            self._last_at = now
            if not self._said:
                self._said, self._first_at = True, now

    def _answered(self, now: float) -> None:
        backend = self._release()
        if backend is not None:
            backend.breaker.answered(trial=self._trial)
            first_at = self._first_at or now
            backend.pace.answered(
                now,
                first_token_s=first_at - self._began,
                tokens=self._tokens or self._pieces,
                seconds=self._last_at - first_at,
            )

    def _failed(self, error: ProviderError) -> None:
        self._over = self._said
        backend, now = self._release(), trio.current_time()
        if backend is not None:
            backend.breaker.failed(error, now, trial=self._trial)
            if POLICY[error.kind].breaker:
                backend.pace.failed(now)

    def _release(self) -> Backend | None:
        """The backend whose request this was; once."""
        backend, self._in_use = self._in_use, None
        if backend is not None:
            backend.mine -= 1
        return backend

    async def leave(self) -> None:
        """The caller has left, with or without the whole answer."""
        backend, now = self._release(), trio.current_time()
        if backend is not None:
            if now - self._last_at >= SILENT_S:
                error = ProviderError(ErrorKind.IDLE_TIMEOUT, f"it was silent for {now - self._last_at:.0f} s")
                backend.breaker.failed(error, now, trial=self._trial)
                backend.pace.failed(now)
            else:
                backend.breaker.left(trial=self._trial)
        await self._close()

    async def _close(self) -> None:
        stack, self._stack = self._stack, contextlib.AsyncExitStack()
        self._events = None
        await stack.aclose()

    def _give_up(self) -> ProviderError:
        """The failure that tells most: of one backend its own, of several the last, with all reasons."""
        if not self._failures:
            return self._pool.nobody(self._request)
        backend, last = self._failures[-1]
        if len(self._failures) == 1:
            return _told(backend, last)
        waits = [error.retry_after for _, error in self._failures if error.retry_after is not None]
        said = "; ".join(f"{backend.name}: {error.message}" for backend, error in self._failures[:8])
        return ProviderError(last.kind, said, retry_after=min(waits, default=None), status=last.status)


def _told(backend: Backend | None, error: ProviderError) -> ProviderError:
    name = backend.name if backend is not None else "a backend"
    return ProviderError(error.kind, f"{name}: {error.message}", retry_after=error.retry_after, status=error.status)


def backend_length(backend: Backend, request: GenerateRequest) -> int | None:
    """The context of the model that would answer, in tokens, where it is known."""
    name = request.model or backend.status.default_model
    model = backend.model(name) if name is not None else None
    return model.context_length if model is not None else None


def _models(backends: Iterable[Backend]) -> tuple[ModelInfo, ...]:
    """What they offer together; of one model the largest context, and images where one of them takes some."""
    found: dict[str, ModelInfo] = {}
    seeing: set[str] = set()
    for backend in backends:
        for model in backend.status.models:
            known = found.get(model.name)
            if known is None or (model.context_length or 0) > (known.context_length or 0):
                found[model.name] = model
            if model.capabilities.images:
                seeing.add(model.name)
    return tuple(_seeing(model) if model.name in seeing else model for model in found.values())


def _seeing(model: ModelInfo) -> ModelInfo:
    if model.capabilities.images:
        return model
    return msgspec.structs.replace(model, capabilities=msgspec.structs.replace(model.capabilities, images=True))


def _most_offered(backends: Iterable[Backend]) -> str | None:
    """The default model of the first backend among those that most of them have."""
    backends = list(backends)
    counts = Counter(model.name for backend in backends for model in backend.status.models)
    defaults = [b.status.default_model for b in backends if b.status.default_model is not None]
    return max(defaults, key=lambda name: counts[name], default=None)
