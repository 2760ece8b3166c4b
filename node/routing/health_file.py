"""Breakers and pauses over a restart: health.json in the data directory, written shortly after a change.

async with kept(health, path):
    ...
"""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import trio

from . import kept_file
from .health import Health

WRITE_S = 2.0
"""Seconds between two looks whether something has changed."""
MAX_BYTES = 4 * 1024 * 1024


def kept(health: Health, path: Path) -> AbstractAsyncContextManager[None]:
    """What `health` knows is read at the beginning and written until the end; a file that cannot be used is ignored."""
    return kept_file.kept(_Here(health), path, what="what was known of failures", every_s=WRITE_S, max_bytes=MAX_BYTES)


class _Here:
    """Health as it is at this time of this run, and of the world."""

    def __init__(self, health: Health) -> None:
        self._health = health

    @property
    def version(self) -> int:
        return self._health.version

    def dump(self) -> bytes:
        return self._health.dump(trio.current_time(), time.time())

    def load(self, data: bytes) -> None:
        self._health.load(data, trio.current_time(), time.time())
