"""The backend manager: several OpenAI-compatible servers behind one name, chosen among for each request.

    [providers.backend_manager]
    strategy = "least_loaded"

    [providers.backend_manager.backends.big]
    base_url = "http://10.0.0.5:8000/v1"
    weight = 3

    [providers.backend_manager.backends.small]
    base_url = "http://127.0.0.1:11434/v1"

pool.py asks, policy.py decides, backend.py is one server and its checks, server_kinds.py what a server says of itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from .. import environment, openai_compat
from ..faults import SettingsError
from ..settings import BuildContext
from .policy import STRATEGIES, Strategy
from .pool import BackendPool
from .settings import BackendSettings, Settings

__all__ = ["BackendPool", "BackendSettings", "Settings", "build", "missing", "switched"]

_HOW = "add a table [providers.backend_manager.backends.NAME] with base_url"


def switched(environ: Mapping[str, str]) -> bool | None:
    """Whether the environment switches it on or off; None when it says nothing. Raises VariableError."""
    return environment.boolean(environ, "ENABLE_BACKEND_MANAGER")


def missing(environ: Mapping[str, str]) -> str:
    """Why it cannot work without a table."""
    on = switched(environ)
    if on is False:
        return "switched off by the environment (ENABLE_BACKEND_MANAGER)"
    return f"{'switched on, but ' if on else ''}no backend is configured; {_HOW}"


def build(name: str, settings: Settings, context: BuildContext) -> BackendPool:
    """Raises SettingsError, or VariableError for a variable that cannot be read."""
    if not settings.backends:
        raise SettingsError("backends", "is empty", _HOW)
    strategy: Strategy = settings.strategy
    told = environment.choice(context.environ, "LLM_LOAD_BALANCING", STRATEGIES)
    for each in STRATEGIES:
        if each == told:
            strategy = each
    providers: dict[str, openai_compat.OpenAiCompat] = {}
    for backend, keys in settings.backends.items():
        where = f"backends.{backend}"
        if keys.share:
            raise SettingsError(f"{where}.share", "is the pool's to say", f"write share into [providers.{name}]")
        if not keys.enabled:
            continue
        for key in ("max_concurrent", "max_queue"):
            if getattr(keys, key) < (key == "max_concurrent"):
                raise SettingsError(f"{where}.{key}", "is too small", f"write {key} = 8, for example")
        if keys.unsupported != settings.unsupported and keys.unsupported == "drop":
            keys = msgspec.structs.replace(keys, unsupported=settings.unsupported)
        try:
            provider = openai_compat.build(f"{name}.{where}", keys, context)
        except SettingsError as fault:
            raise SettingsError(f"{where}.{fault.key}", fault.problem, fault.remedy) from None
        providers[backend] = provider
    if not providers:
        raise SettingsError("backends", "are all switched off", "set enabled = true for one of them")
    return BackendPool(name, msgspec.structs.replace(settings, strategy=strategy), providers)
