"""What every provider's settings have in common, and what a provider is told when it is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct


class ProviderSettings(Struct, kw_only=True, forbid_unknown_fields=True):
    """The keys that each `[providers.NAME]` table may hold; providers add their own by inheriting."""

    enabled: bool = True
    share: bool = False
    """Whether peers of the swarm may use this provider."""
    max_concurrent: int = 8
    """Requests that run at once."""
    max_queue: int = 64
    """Requests that may wait for their turn; one more is refused as overloaded."""


class BuildContext(Struct, frozen=True):
    """What a provider is told about the node that builds it."""

    data_dir: Path
    environ: Mapping[str, str]
