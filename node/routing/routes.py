"""Routes: a model name that callers use, and the ordered targets behind it. Pure; the schema is [routes] of the file.

    [routes]
    fast = [{ provider = "desk", model = "qwen3-8b" }, { provider = "openrouter", model = "qwen/qwen3-8b" }]
    "gpt-*" = [{ provider = "openrouter" }]
    default = [{ provider = "local_hf" }]

A name in full goes before a pattern, and of two patterns the one with more letters before its first wildcard; `*` takes
every name that has no other route, `default` the requests that name no model. A name without a route goes to whoever
offers that model. A target without a model is asked for the name that the caller used.
"""

from __future__ import annotations

import fnmatch
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta, Struct

from ...providers.base import GenerateRequest

DEFAULT = "default"
_TYPED = frozenset({"max_tokens", "temperature", "top_p", "stop", "seed", "response_format", "tool_choice"})
_FORBIDDEN = frozenset({"messages", "model", "provider", "prefix", "n", "tools", "extra", "stream"})


class Target(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One candidate of a route.

    provider: a provider's name, "peers", or one peer's id. options: generation options for callers who don't set them.
    weight: with any weight in a route, the order is drawn anew for each request, by weight. context_length: in tokens,
    where the provider does not tell.
    """

    provider: str
    model: str | None = None
    options: dict[str, Any] = {}
    weight: Annotated[float, Meta(ge=0)] | None = None
    context_length: Annotated[int, Meta(ge=1)] | None = None

    def request_of(self, asked: GenerateRequest) -> GenerateRequest:
        """The caller's request as this target gets it. What the caller set stays."""
        changes: dict[str, Any] = {}
        if self.model is not None and self.model != asked.model:
            changes["model"] = self.model
        extra = None
        for name, value in self.options.items():
            if name in _TYPED:
                if not getattr(asked, name):
                    unset = () if name == "stop" else None
                    if getattr(asked, name) == unset:
                        changes[name] = tuple(value) if name == "stop" else value
            elif name not in asked.extra:
                extra = {**(extra or asked.extra), name: value}
        if extra is not None:
            changes["extra"] = extra
        return msgspec.structs.replace(asked, **changes) if changes else asked


Route = tuple[Target, ...]


class Routes:
    """All routes of a node. Looking one up is a dictionary's work for names, and a scan for patterns."""

    def __init__(self, routes: Mapping[str, Sequence[Target]] | None = None) -> None:
        routes = routes or {}
        self._names: dict[str, Route] = {name: tuple(found) for name, found in routes.items() if not _wild(name)}
        patterns = [name for name in routes if _wild(name)]
        patterns.sort(key=lambda name: -len(re.split(r"[*?\[]", name, maxsplit=1)[0]))
        self._patterns = [(name, tuple(routes[name])) for name in patterns]
        self._default = self._names.pop(DEFAULT, None)
        self.any = bool(self._names or self._patterns or self._default)

    @property
    def names(self) -> Iterator[tuple[str, Route]]:
        """The routes whose name can be asked for as it stands."""
        yield from self._names.items()

    def find(self, model: str | None) -> Route | None:
        """The route of a model name that a caller used (None: he used none); None when it has no route."""
        if model is None:
            return self._default
        route = self._names.get(model)
        if route is None and self._patterns:
            route = next((found for name, found in self._patterns if fnmatch.fnmatchcase(model, name)), None)
        return route


def drawn(route: Route, jitter: random.Random) -> Route:
    """The targets in the order to try: as written, or drawn by weight when any has one (the others count as 1)."""
    if all(target.weight is None for target in route):
        return route
    # Efraimidis and Spirakis (2006): sorting by random()^(1/weight) draws without replacement by weight.
    weights = {id(target): 1.0 if target.weight is None else target.weight for target in route}
    first = [target for target in route if weights[id(target)] > 0]
    last = [target for target in route if weights[id(target)] == 0]
    first.sort(key=lambda target: -(jitter.random() ** (1.0 / weights[id(target)])))
    return (*first, *last)


def option_faults(options: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a target's options, with what to write instead."""
    for name, value in options.items():
        if name in _FORBIDDEN:
            yield f"{name} is not an option of a route; remove it"
        elif name in _TYPED:
            try:
                msgspec.convert({"messages": [], name: value}, GenerateRequest)
            except msgspec.ValidationError as error:
                yield f"{name}: {str(error).partition(' - at')[0]}"


class Known(Protocol):
    """What is wanted of the registry (providers/registry.py)."""

    @property
    def providers(self) -> Mapping[str, object]: ...
    @property
    def refused(self) -> Mapping[str, str]: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...


def hindrances(target: Target, registry: Known, *, forward: bool) -> str:
    """Why a target can never answer as this node is configured; "" when it might."""
    from ...providers.registry import canonical  # loaded by those who have a registry; the schema has none

    name = target.provider.strip()
    if name.startswith("12D3Koo") or canonical(name) in ("peers", "peer", "swarm"):
        return "" if forward else "router.forward is false, so no peer is asked"
    name = canonical(name)
    if name in registry.refused:
        return f"the provider {name} cannot be used: {registry.refused[name]}"
    if name not in registry.providers:
        known = ", ".join(registry.providers) or "none"
        return f"there is no provider {name!r} here; configured: {known}"
    settings = registry.settings.get(name)
    models = tuple(getattr(settings, "models", ()) or ())
    if target.model is None or not models or getattr(settings, "any_model", False):
        return ""
    if target.model in (*models, getattr(settings, "default_model", None)):
        return ""
    return f"the provider {name} does not offer the model {target.model!r}; it offers: {', '.join(models[:5])}"


def _wild(name: str) -> bool:
    return any(char in name for char in "*?[")
