"""How many threads this process may use: whole cores, by affinity and a container's quota. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from .. import cgroups


def usable_cores(root: Path = Path("/")) -> int:
    """Whole cores, at least one. root: where /proc and /sys are looked for."""
    return max(int(cgroups.usable_cores(root)), 1)
