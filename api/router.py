"""`generate_text` and what stands around it.

>>> from shoal import generate_text
>>> generate_text("What is the opposite of hot?", max_tokens=8)        # doctest: +SKIP
'The opposite of hot is cold.'

An answer comes from the node that runs on this machine, or from the same router in this process when none does.
"""

from __future__ import annotations

import inspect
from typing import Any

from .deps import RouterDeps, get_default_router_deps, living
from .options import call_of
from .providers.base import Provider
from .providers.registry import canonical, registrations
from .providers.simple import LLMProvider

llm_router_available = True


def generate_text(
    prompt: str | None,
    *,
    model_name: str | None = None,
    provider: str | None = None,
    provider_instance: LLMProvider | Provider | None = None,
    deps: RouterDeps | None = None,
    **kwargs: Any,
) -> str:
    """The answer's text.

    model_name, provider: pins, never swapped for another; None leaves the choice to the router (SHOAL_LLM_MODEL and
    SHOAL_LLM_PROVIDER, then the configuration, then who is ready). provider_instance: an object to ask instead.
    deps: whose caches and providers; None is the process's default.

    Options: max_tokens (or max_new_tokens), temperature, top_p, stop, seed, system, messages (the conversation before
    the prompt, in OpenAI's shape), response_format, timeout (seconds in all), fallback (False: only the first
    candidate), use_cache (False: neither looked up nor kept; None: as configured), frequency_penalty, presence_penalty,
    repetition_penalty, top_k, min_p, logit_bias, reasoning_effort, and extra (a dict of fields for the provider).

    Raises TypeError for an unknown option, ValueError for an impossible value, UnknownProviderError,
    NotConfiguredError, GenerationError with the route when nobody could answer, ConfigError.
    """
    if provider_instance is not None and provider is not None:
        raise TypeError("give provider or provider_instance, not both")
    call = call_of(prompt, model_name, provider, kwargs)
    return (deps or get_default_router_deps()).answer(call, provider_instance)


class RoutedProvider:
    """What `get_llm_provider` gives: it asks through the router, pinned to `name` unless that is None."""

    def __init__(self, name: str | None, deps: RouterDeps) -> None:
        self.name, self._deps = name, deps

    def generate(self, prompt: str, *, model_name: str | None = None, **kwargs: Any) -> str:
        return generate_text(prompt, model_name=model_name, provider=self.name, deps=self._deps, **kwargs)

    def __repr__(self) -> str:
        return f"RoutedProvider({self.name or 'any'})"


def get_llm_provider(
    provider: str | None = None, *, deps: RouterDeps | None = None, use_cache: bool | None = None
) -> LLMProvider:
    """A provider that can be used now: what a registered factory made, or a `RoutedProvider`.

    use_cache: whether the same name gives the same object again; None is as configured (SHOAL_ROUTER_CACHE).
    Raises UnknownProviderError, NotConfiguredError with the reason, or ProviderFailedError.
    """
    deps = deps or get_default_router_deps()
    name = canonical(provider) if provider is not None else None
    made = deps.check(name)
    if not isinstance(made, Provider) and isinstance(made, LLMProvider) and _is_plain(made.generate):
        return made
    if use_cache is False or (use_cache is None and not deps.loaded.config.router.provider_cache):
        return RoutedProvider(name, deps)
    return deps.get_or_create(("llm_provider", name, registrations()), lambda: RoutedProvider(name, deps))


def _is_plain(function: object) -> bool:
    """Whether calling it gives the text itself; of any other form, the router makes one."""
    odd = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    return not any(is_odd(function) for is_odd in odd)


def clear_llm_router_caches() -> None:
    """Forget everything that `generate_text` keeps in this process: answers, providers, objects, the configuration."""
    for deps in living():
        deps.clear()
