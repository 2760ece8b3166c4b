"""The provider tables of the configuration, checked by the registry; its complaints name the file like all others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config_file import Loaded

if TYPE_CHECKING:
    from ..providers.registry import Registry


def build_registry(loaded: Loaded, environ: Mapping[str, str]) -> Registry:
    """The providers as configured. Raises ConfigError for a table, an order or a variable that cannot be used."""
    from ..providers.environment import VariableError
    from ..providers.faults import RegistryError
    from ..providers.registry import Registry
    from .config import ConfigError

    config = loaded.config
    try:
        return Registry.build(config.providers, data_dir=loaded.data_dir, environ=environ, order=config.router.order)
    except RegistryError as error:
        key = f"providers.{error.provider}" + (f".{error.key}" if error.key else "")
        if error.provider not in config.providers and error.provider in config.router.order:
            raise loaded.blame("router.order", f"{error.provider!r} {error.problem}; {error.remedy}") from None
        if f"{key}.share" in loaded.origin:  # the table is there because of --share alone
            key = f"{key}.share"
        raise loaded.blame(key, f"{error.problem}; {error.remedy}") from None
    except VariableError as error:
        raise ConfigError(str(error)) from None


def check_routes(loaded: Loaded, registry: Registry) -> None:
    """ConfigError for a route that can never be served as things stand, with what keeps each of its targets."""
    from .routing.routes import hindrances

    for name, route in loaded.config.routes.items():
        found = [hindrances(target, registry, forward=loaded.config.router.forward) for target in route]
        if all(found):
            reasons = "; ".join(dict.fromkeys(reason for reason in found if reason))
            raise loaded.blame(f"routes.{name}", f"can never be served: {reasons}")


def models_store(tables: Mapping[str, Mapping[str, Any]], environ: Mapping[str, str]) -> Path:
    """Where the local model's weights lie: `models_dir` of its table, else the variable, else the user's cache."""
    from ..providers.registry import canonical
    from ..providers.weights import models_dir

    table = next((table for name, table in tables.items() if canonical(name) == "local_hf"), {})
    setting = table.get("models_dir")
    return models_dir(environ, setting if isinstance(setting, str) else None)


def table_name(loaded_providers: Mapping[str, object], name: str) -> str:
    """The table that a provider's name or alias means: the one that is there, or the name the registry knows."""
    from ..providers.registry import canonical

    wanted = canonical(name)
    return next((table for table in loaded_providers if canonical(table) == wanted), wanted)
