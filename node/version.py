"""Which Shoal this is."""

from __future__ import annotations

import functools


@functools.cache
def version() -> str:
    """The installed distribution's version; "0+unknown" when it runs from somewhere that was never installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version("shoal")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"
