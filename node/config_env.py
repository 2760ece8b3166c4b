"""The environment variables that stand for configuration keys.

SHOAL_ is the prefix; the predecessor's prefix is read as an alias for the names it had, and ours wins. How names and
booleans are read is providers/environment.py; what a provider reads for itself (a credential, its model) is there too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..providers import environment
from .config import ConfigError

PREFIX, OLD_PREFIX = environment.PREFIXES


class Variable(NamedTuple):
    """name: without a prefix. key: what it sets. old: whether the predecessor's prefix is read as well."""

    name: str
    key: str
    boolean: bool = False
    old: bool = True


VARIABLES: tuple[Variable, ...] = (
    Variable("LLM_PROVIDER", "router.provider"),
    Variable("LLM_MODEL", "router.model"),
    Variable("ROUTER_CACHE", "router.provider_cache", boolean=True),
    Variable("ROUTER_RESPONSE_CACHE", "cache.enabled", boolean=True),
    Variable("ROUTER_CACHE_KEY", "cache.mode"),
    Variable("ROUTER_CACHE_CID_BASE", "cache.cid_base"),
    Variable("RPC_LISTEN", "rpc.listen", old=False),
    Variable("SWARM_KEY", "swarm.key", old=False),
    Variable("LOG_LEVEL", "log.level", old=False),
    Variable("LOG_FORMAT", "log.format", old=False),
)

PLACES = ("CONFIG", "DATA_DIR")
"""Ours too, read before the file is: where the configuration and the data directory are."""

OF_PROVIDERS: dict[str, str] = {
    "OPENROUTER_API_KEY": "openrouter",
    "OPENROUTER_MODEL": "openrouter",
    "OPENROUTER_BASE_URL": "openrouter",
    "ENABLE_BACKEND_MANAGER": "backend_manager",
    "LLM_LOAD_BALANCING": "backend_manager",
    "CODEX_CLI_MODEL": "codex_cli",
    "CODEX_MODEL": "codex_cli",
    "COPILOT_SDK_MODEL": "copilot_sdk",
    "COPILOT_SDK_TIMEOUT": "copilot_sdk",
    "MODELS_DIR": "local_hf",
    "GEMINI_MODEL": "gemini_cli",
    "CLAUDE_MODEL": "claude_code",
}
"""Read by the providers themselves, with either prefix: name -> provider."""


def settings(environ: Mapping[str, str]) -> Iterator[tuple[str, str, Any]]:
    """(variable's full name, dotted key, value) for each variable that is set. Raises ConfigError for a bad boolean."""
    for variable in VARIABLES:
        pair = environment.found(environ, variable.name)
        if pair is None or (not variable.old and not pair[0].startswith(PREFIX)):
            continue
        name, value = pair
        if variable.boolean:
            try:
                yield name, variable.key, environment.boolean(environ, variable.name)
            except environment.VariableError as error:
                raise ConfigError(str(error)) from None
        else:
            yield name, variable.key, value


def variable_of(key: str) -> str | None:
    """The variable that sets a dotted key, with our prefix; None where there is none."""
    return next((PREFIX + variable.name for variable in VARIABLES if variable.key == key), None)


def misspelt(environ: Mapping[str, str]) -> Iterator[str]:
    """One line for each SHOAL_ variable that nothing reads."""
    known = {PREFIX + name for name in (*(variable.name for variable in VARIABLES), *PLACES, *OF_PROVIDERS)}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            yield f"{name} is set, but no such variable is read" + (f"; did you mean {near[0]}?" if near else "")
