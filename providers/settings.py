"""What every provider's settings have in common, and what a provider is told when it is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

Unsupported = Literal["drop", "refuse"]


class ProviderSettings(Struct, kw_only=True, forbid_unknown_fields=True):
    """The keys that each `[providers.NAME]` table may hold; providers add their own by inheriting."""

    enabled: bool = True
    share: bool = False
    """Whether peers of the swarm may use this provider."""
    max_concurrent: int = 8
    """Requests that run at once."""
    max_queue: int = 64
    """Requests that may wait for their turn; one more is refused as overloaded."""
    queue_s: Annotated[float, Meta(gt=0)] = 60.0
    """Seconds that a request may wait for its turn."""
    unsupported: Unsupported = "drop"
    """Options of a request that the provider cannot honour: "drop" leaves them out and says so in the route, "refuse"
    leaves the request to another provider."""


class BuildContext(Struct, frozen=True):
    """What a provider is told about the node that builds it."""

    data_dir: Path
    environ: Mapping[str, str]
