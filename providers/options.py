"""What becomes of a request's options that a provider cannot honour: the owner's rule, the same for every provider.

    request, dropped = settle(request, HONOURS, settings.unsupported, name)

Dropped options are told by a `Dropped` event, which the router writes into the route. What is no option (tools,
images, several answers) is not here: a provider that lacks it cannot give the answer at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Set
from typing import Any

import msgspec

from .base import Dropped, ErrorKind, Event, GenerateRequest, ProviderError
from .settings import Unsupported

SAMPLING = frozenset({"temperature", "top_p", "seed"})
TYPED = frozenset({"max_tokens", "stop", "tool_choice", "response_format"}) | SAMPLING
"""The options that `GenerateRequest` types; the others are the names in its `extra`."""

_UNSET: dict[str, Any] = {field.name: field.default for field in msgspec.structs.fields(GenerateRequest)}
_WITHOUT_EFFECT = frozenset(
    {"stream", "stream_options", "user", "metadata", "store", "safety_identifier", "prompt_cache_key"}
)
"""Fields of `extra` that do not change the answer: leaving them out is nothing to speak of."""


def asked(request: GenerateRequest) -> frozenset[str]:
    """The names of the options that the request sets."""
    names = {name for name in ("max_tokens", "tool_choice", *SAMPLING) if getattr(request, name) is not None}
    if request.stop:
        names.add("stop")
    if (request.response_format or {}).get("type", "text") != "text":
        names.add("response_format")
    wanted = (name for name, value in request.extra.items() if value is not None and value is not False)
    return frozenset(names.union(name for name in wanted if name not in _WITHOUT_EFFECT))


def dropped(request: GenerateRequest, honours: Set[str], rule: Unsupported, name: str) -> tuple[str, ...]:
    """The options that will be left out, sorted. Raises ProviderError(UNAVAILABLE) when the rule is to refuse them."""
    return _by_rule(tuple(sorted(asked(request) - honours)), rule, name)


def settle(
    request: GenerateRequest, honours: Set[str], rule: Unsupported, name: str
) -> tuple[GenerateRequest, tuple[str, ...]]:
    """The request without what is dropped, and the names of that."""
    missing = dropped(request, honours, rule, name)
    return without(request, missing), missing


def settle_lacking(
    request: GenerateRequest, lacks: Set[str], rule: Unsupported, name: str
) -> tuple[GenerateRequest, tuple[str, ...]]:
    """The same for a provider that honours everything but `lacks`."""
    if not lacks:
        return request, ()
    missing = _by_rule(tuple(sorted(asked(request) & lacks)), rule, name)
    return without(request, missing), missing


def without(request: GenerateRequest, names: tuple[str, ...]) -> GenerateRequest:
    """The request with these options as if they had not been set."""
    if not names:
        return request
    changes = {name: _UNSET[name] for name in names if name in TYPED}
    extra = {name: value for name, value in request.extra.items() if name not in names}
    return msgspec.structs.replace(request, extra=extra, **changes)


def told(dropped: tuple[str, ...], events: AsyncIterator[Event]) -> AsyncIterator[Event]:
    """The events, after one that names what was dropped."""
    return _Told(dropped, events) if dropped else events


class _Told:
    def __init__(self, dropped: tuple[str, ...], events: AsyncIterator[Event]) -> None:
        self._first: Dropped | None = Dropped(dropped)
        self._events = events

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._events)


def named(names: tuple[str, ...]) -> str:
    """The names in a sentence. A name of `extra` is the caller's: only what looks like an option's is repeated."""
    return ", ".join(shown(name) for name in names[:6]) + (", ..." if len(names) > 6 else "")


def shown(name: str) -> str:
    return name if name.isidentifier() and name.isascii() and len(name) <= 40 else "an option"


def _by_rule(missing: tuple[str, ...], rule: Unsupported, name: str) -> tuple[str, ...]:
    if missing and rule == "refuse":
        them = "it" if len(missing) == 1 else "them"
        raise ProviderError(
            ErrorKind.UNAVAILABLE,
            f"{name} cannot honour {named(missing)}; leave {them} out, ask another provider, "
            f'or set unsupported = "drop" in [providers.{name}]',
        )
    return missing
