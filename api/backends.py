"""The backend manager for programs: the configured pool, or one of a program's own.

deps.get_backend_manager(strategy="best_performance", backends={"desk": {"base_url": "http://127.0.0.1:8000/v1"}})
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from .errors import NotConfiguredError
from .providers import backend_manager
from .providers.environment import VariableError
from .providers.faults import SettingsError
from .providers.registry import canonical
from .providers.settings import BuildContext

if TYPE_CHECKING:
    from .deps import RouterDeps

NAME = "backend_manager"


class OwnPool:
    """A pool of backends that only this object's calls use. What it has measured stays with it."""

    def __init__(self, pool: backend_manager.BackendPool, deps: RouterDeps) -> None:
        self.pool, self._deps = pool, deps

    def generate(self, prompt: str, *, model_name: str | None = None, **kwargs: Any) -> str:
        """As `generate_text`, by one of the backends."""
        from .router import generate_text

        return generate_text(prompt, model_name=model_name, provider_instance=self.pool, deps=self._deps, **kwargs)

    def __repr__(self) -> str:
        return f"OwnPool({', '.join(backend.name for backend in self.pool.backends)})"


def own_pool(deps: RouterDeps, options: dict[str, Any]) -> OwnPool:
    """A pool by the keys of `[providers.backend_manager]`; what is not given is as configured.

    Raises TypeError for an unknown key, ValueError for a value that cannot be used, NotConfiguredError for no backends.
    """
    known = {field.name for field in msgspec.structs.fields(backend_manager.Settings)}
    if unknown := sorted(options.keys() - known):
        raise TypeError(f"get_backend_manager() has no option {unknown[0]!r}; there are {', '.join(sorted(known))}")
    loaded = deps.loaded
    tables = loaded.config.providers
    table = next((keys for name, keys in tables.items() if canonical(name) == NAME), {})
    keys = {name: value for name, value in table.items() if name not in ("type", "enabled")} | options
    if not keys.get("backends"):
        raise NotConfiguredError(f"{NAME}: no backend is configured; give backends={{name: {{'base_url': ...}}}}")
    environ = dict(deps.environ)
    if "strategy" in options:  # what the program says wins over what is said for all programs
        environ = {name: value for name, value in environ.items() if not name.endswith("LLM_LOAD_BALANCING")}
    try:
        settings = msgspec.convert(keys, backend_manager.Settings)
        pool = backend_manager.build(NAME, settings, BuildContext(loaded.data_dir, environ))
    except (msgspec.ValidationError, SettingsError, VariableError) as error:
        raise ValueError(f"the backends cannot be used: {error}") from None
    return OwnPool(pool, deps)
