"""The keys of `[providers.backend_manager]` and of its backends."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from .. import openai_compat
from ..settings import ProviderSettings
from .policy import Strategy
from .server_kinds import Kind


class BackendSettings(openai_compat.Settings, kw_only=True, forbid_unknown_fields=True):
    """`[providers.backend_manager.backends.NAME]`: the keys of `type = "openai_compat"`, and these."""

    kind: Kind = "auto"
    """vllm, ollama, llama_cpp, llama_cpp_python, sglang, lm_studio, openai, or auto, which asks it. By it health and
    load are read."""
    weight: Annotated[float, Meta(ge=0.01, le=1000)] = 1.0
    """Its share of the requests, beside the others'."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Name that callers use -> what this server calls that model."""
    check_s: Annotated[float, Meta(ge=0.05)] = 10.0
    """Seconds between two checks."""
    models_ttl_s: Annotated[float, Meta(gt=0)] = 30.0


class Settings(ProviderSettings, kw_only=True, forbid_unknown_fields=True):
    """`[providers.backend_manager]`."""

    backends: dict[str, BackendSettings] = field(default_factory=dict)
    """Name -> where it is. At least one."""
    strategy: Strategy = "least_loaded"
    """round_robin, least_loaded or best_performance. SHOAL_LLM_LOAD_BALANCING wins."""
    explore: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """The share of requests with which best_performance tries another than the best."""
    first_token_s: Annotated[float, Meta(gt=0)] = 30.0
    """Seconds that a backend gets until its first token before another one is asked."""
    default_model: str | None = None
    """The model for a request that names none. Unset: the one that most backends have."""
    max_concurrent: int = 256
    """Requests at once over all backends; each has a limit of its own as well."""
    max_queue: int = 1024
