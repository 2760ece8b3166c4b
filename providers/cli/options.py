"""Which options of a request a tool honours, and what becomes of the others: the owner's rule, never silence."""

from __future__ import annotations

from ..base import ErrorKind, GenerateRequest, ProviderError
from .settings import Unsupported

_IGNORED = frozenset({"stream", "stream_options", "user", "metadata", "store", "safety_identifier", "prompt_cache_key"})
"""Fields of `extra` that do not change the answer: leaving them out is nothing to speak of."""


def asked(request: GenerateRequest) -> frozenset[str]:
    """The names of the options that the request sets."""
    names = {
        name
        for name in ("max_tokens", "temperature", "top_p", "seed", "tool_choice")
        if getattr(request, name) is not None
    }
    if request.stop:
        names.add("stop")
    if (request.response_format or {}).get("type", "text") != "text":
        names.add("response_format")
    return frozenset(names | {name for name in request.extra if name not in _IGNORED})


def dropped(request: GenerateRequest, honours: frozenset[str], rule: Unsupported, name: str) -> tuple[str, ...]:
    """The options that will be left out, sorted. Raises ProviderError(BAD_REQUEST) when the rule is to refuse them."""
    missing = tuple(sorted(asked(request) - honours))
    if missing and rule == "refuse":
        raise ProviderError(
            ErrorKind.BAD_REQUEST,
            f"{name} cannot honour {_listed(missing)}; leave {'it' if len(missing) == 1 else 'them'} out, ask another "
            f'provider, or set unsupported = "drop" in [providers.{name}]',
        )
    return missing


def _listed(names: tuple[str, ...]) -> str:
    # A name of `extra` is the caller's: only what looks like an option's name is repeated.
    shown = [name if name.isidentifier() and len(name) <= 40 else "an option" for name in names[:6]]
    return ", ".join(shown)
