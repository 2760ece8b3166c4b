"""Shoal: one endpoint over everything you can ask, shared with the peers you trust.

>>> from shoal import generate_text
>>> generate_text("What is the opposite of hot?", max_tokens=8)        # doctest: +SKIP
'The opposite of hot is cold.'

This is the public face and nothing else: names are loaded on first use, so `import shoal` stays light.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is not imported for its own: the command is started through here, and counts the ms
if TYPE_CHECKING:
    from .deps import RouterDeps, get_default_router_deps, set_default_router_deps
    from .errors import GenerationError, NotConfiguredError, ProviderFailedError, UnknownProviderError
    from .providers.registry import register_llm_provider
    from .providers.simple import LLMProvider
    from .router import (
        clear_llm_router_caches,
        generate_text,
        get_llm_provider,
        llm_router_available,
    )

__all__ = [
    "GenerationError",
    "LLMProvider",
    "NotConfiguredError",
    "ProviderFailedError",
    "RouterDeps",
    "UnknownProviderError",
    "clear_llm_router_caches",
    "generate_text",
    "get_default_router_deps",
    "get_llm_provider",
    "llm_router_available",
    "register_llm_provider",
    "set_default_router_deps",
]

_HOMES = {
    "GenerationError": ".errors",
    "LLMProvider": ".providers.simple",
    "NotConfiguredError": ".errors",
    "ProviderFailedError": ".errors",
    "RouterDeps": ".deps",
    "UnknownProviderError": ".errors",
    "clear_llm_router_caches": ".router",
    "generate_text": ".router",
    "get_default_router_deps": ".deps",
    "get_llm_provider": ".router",
    "llm_router_available": ".router",
    "register_llm_provider": ".providers.registry",
    "set_default_router_deps": ".deps",
}


def __getattr__(name: str) -> object:
    import importlib

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
