"""A user's own provider: any object with `generate(prompt, *, model_name=None, **options)`.

    class Parrot:
        def generate(self, prompt, *, model_name=None, **options):
            return prompt

    register_llm_provider("parrot", Parrot)

`generate` may return the text, or yield pieces of it or events; it may be `async` (under trio). What is synchronous
runs in a thread. Python cannot end a thread: work that the caller has left goes on until the function returns, and
keeps its place among `max_concurrent` until then.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import trio

from .base import (
    Capabilities,
    Dropped,
    ErrorKind,
    Event,
    Finish,
    GenerateRequest,
    Logprobs,
    Message,
    ModelInfo,
    Provider,
    ProviderError,
    ReasoningDelta,
    Status,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from .batches import Queued
from .gate import Gate
from .options import settle
from .quoting import quotable
from .settings import ProviderSettings

_EVENTS = (TextDelta, ReasoningDelta, ToolCallDelta, Logprobs, Usage, Finish, Dropped)
_END = object()
_CLOSE_S = 1.0


@runtime_checkable
class LLMProvider(Protocol):
    """The simple form of a provider: a prompt in, the answer's text out. A `models` attribute may list model names."""

    def generate(self, prompt: str, *, model_name: str | None = None, **kwargs: Any) -> str: ...


class SimpleProvider(Provider):
    """An `LLMProvider` as a `Provider`. Without a `models` attribute it is asked for any model."""

    def __init__(self, name: str, inner: LLMProvider, settings: ProviderSettings | None = None) -> None:
        settings = settings or ProviderSettings()
        self.name = name
        self.inner = inner
        self._named, self._open = _keywords(inner.generate)
        self._unsupported = settings.unsupported
        self._gate = Gate(
            name, running=settings.max_concurrent, waiting=settings.max_queue, patience_s=settings.queue_s
        )
        self._threads = trio.CapacityLimiter(settings.max_concurrent)

    def facts(self) -> dict[str, Any]:
        return self._gate.facts()

    async def probe(self) -> Status:
        names = tuple(str(n) for n in getattr(self.inner, "models", ()))
        models = tuple(ModelInfo(n, None, Capabilities(streams=False)) for n in names)
        return Status(ready=True, models=models, default_model=names[0] if names else None, any_model=not names)

    @contextlib.asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[AsyncIterator[Event]]:
        request, dropped = self._settle(request)
        prompt, options = self._call_of(request)
        async with self._gate:
            events = _Events(self.name, request, self._threads, dropped)
            try:
                await events.start(self.inner.generate, prompt, options)
                yield events
            finally:
                await events.leave()

    def _settle(self, request: GenerateRequest) -> tuple[GenerateRequest, tuple[str, ...]]:
        """The request without the options that `generate` does not take, and their names."""
        if self._open:
            return request, ()
        return settle(request, self._named, self._unsupported, self.name)

    def _call_of(self, request: GenerateRequest) -> tuple[str, dict[str, Any]]:
        """The prompt and the options. What is no option and cannot be passed on is refused."""
        options: dict[str, Any] = {
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stop": list(request.stop) or None,
            "seed": request.seed,
            "n": request.n if request.n != 1 else None,
            "tools": list(request.tools) or None,
            "tool_choice": request.tool_choice,
            "response_format": request.response_format,
            **request.extra,
        }
        options = {key: value for key, value in options.items() if value is not None}
        prompt = self._prompt_of(request.messages, options)
        if request.prefix:
            raise ProviderError(ErrorKind.UNAVAILABLE, f"{self.name} does not continue an answer that exists in part")
        if request.model is not None or self._accepts("model_name"):
            options["model_name"] = request.model
        refused = sorted(key for key in options if not self._accepts(key))
        if refused:
            raise ProviderError(ErrorKind.UNAVAILABLE, f"{self.name} does not take {', '.join(refused)}")
        return prompt, options

    def _prompt_of(self, messages: tuple[Message, ...], options: dict[str, Any]) -> str:
        """One prompt for the conversation; the messages themselves go along for a `generate` that names them."""
        if "messages" in self._named:
            options["messages"] = [m.as_written() for m in messages]
        elif any(m.shows for m in messages):
            raise ProviderError(ErrorKind.UNAVAILABLE, f"{self.name} takes text, not images or files")
        elif any(m.tool_calls or m.role == "tool" for m in messages):
            raise ProviderError(ErrorKind.UNAVAILABLE, f"{self.name} takes a prompt, not the calls of tools")
        system = "\n\n".join(m.text for m in messages if m.role in ("system", "developer"))
        turns = [m for m in messages if m.role not in ("system", "developer")]
        if system and "system" in self._named:
            options["system"] = system
            system = ""
        if len(turns) == 1:
            text = turns[0].text
        else:
            text = "\n\n".join([*(f"{m.role.capitalize()}: {m.text}" for m in turns), "Assistant:"])
        return f"{system}\n\n{text}" if system else text

    def _accepts(self, option: str) -> bool:
        return self._open or option in self._named


def _keywords(function: Callable[..., object]) -> tuple[frozenset[str], bool]:
    """The keywords that a function names, and whether it takes any others."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return frozenset(), True
    named = frozenset(p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD))
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


class _Events(Queued):
    """The events of one call, from whatever the user's function gave."""

    def __init__(
        self, name: str, request: GenerateRequest, threads: trio.CapacityLimiter, dropped: tuple[str, ...]
    ) -> None:
        self._name, self._request, self._threads = name, request, threads
        self._ready: deque[Event] = deque([Dropped(dropped)] if dropped else ())
        self._pieces: Iterator[object] | AsyncIterator[object] | None = None
        self._in_thread = self._left = False
        self._sent = self._useful = self._over = False

    async def start(self, generate: Callable[..., object], prompt: str, options: dict[str, Any]) -> None:
        with self._failures():
            result: object
            if inspect.iscoroutinefunction(generate) or inspect.isasyncgenfunction(generate):
                result = generate(prompt, **options)
            else:
                result = await trio.to_thread.run_sync(
                    lambda: generate(prompt, **options), abandon_on_cancel=True, limiter=self._threads
                )
            if inspect.isawaitable(result):
                result = await result
        if isinstance(result, str):
            self._take(result)
            self._take(_END)
        elif isinstance(result, (Iterator, AsyncIterator)):
            self._pieces = result
        else:
            raise self._failure(f"returned {type(result).__name__}; it must return text, or yield text or events")

    async def _read(self) -> None:
        self._take(await self._next())

    async def _next(self) -> object:
        with self._failures():
            if isinstance(self._pieces, AsyncIterator):
                return await anext(self._pieces, _END)
            self._in_thread = True
            return await trio.to_thread.run_sync(self._advance, abandon_on_cancel=True, limiter=self._threads)

    def _advance(self) -> object:
        """In a thread: the next piece. Closes the generator itself where the caller has left meanwhile."""
        pieces = self._pieces
        assert isinstance(pieces, Iterator)
        try:
            return next(pieces, _END)
        finally:
            self._in_thread = False
            if self._left:
                _close(pieces)

    def _take(self, piece: object) -> None:
        if isinstance(piece, str):
            piece = TextDelta(piece) if piece else None
        if piece is None:
            return
        if piece is _END:
            piece = Finish("stop")
        if not isinstance(piece, _EVENTS):
            raise self._failure(f"yielded {type(piece).__name__}; it must yield text or events")
        if isinstance(piece, Finish):
            self._over = True
            if not self._useful:
                raise self._failure("finished with no text")
        elif not isinstance(piece, Usage | Dropped):
            self._sent = True
            self._useful = (
                self._useful or isinstance(piece, ToolCallDelta) or (isinstance(piece, TextDelta) and bool(piece.text))
            )
        self._ready.append(piece)

    async def leave(self) -> None:
        """Closes what the user's function left open."""
        self._left = True
        pieces, self._pieces = self._pieces, None
        if pieces is None or self._in_thread:
            return
        with trio.move_on_after(_CLOSE_S, shield=True):
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()
            else:
                await trio.to_thread.run_sync(_close, pieces, abandon_on_cancel=True, limiter=self._threads)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """The user's function is foreign code: whatever it raises is a failure of this provider."""
        try:
            yield
        except ProviderError:
            self._over = True
            raise
        except Exception as error:
            said = quotable(str(error), private=(m.text for m in self._request.messages))
            raise self._failure(f"raised {type(error).__name__}{': ' + said if said else ''}") from error

    def _failure(self, what: str) -> ProviderError:
        self._over = True
        return ProviderError(ErrorKind.INTERRUPTED if self._sent else ErrorKind.UPSTREAM, f"{self._name} {what}")


def _close(pieces: object) -> None:
    close = getattr(pieces, "close", None)
    if close is not None:
        with contextlib.suppress(Exception):
            close()
