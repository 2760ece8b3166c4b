"""Breakers and pauses over a restart: health.json in the data directory, written shortly after a change.

async with kept(health, path):
    ...
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import trio

from .health import Health

log = logging.getLogger(__name__)

WRITE_S = 2.0
"""Seconds between two looks whether something has changed."""
MAX_BYTES = 4 * 1024 * 1024


@contextlib.asynccontextmanager
async def kept(health: Health, path: Path) -> AsyncGenerator[None]:
    """What `health` knows is read at the beginning and written until the end; a file that cannot be used is ignored."""
    _read(health, path)
    written = health.version
    async with trio.open_nursery() as nursery:

        async def writing() -> None:
            nonlocal written
            while True:
                await trio.sleep(WRITE_S)
                if health.version != written:
                    written = health.version
                    await trio.to_thread.run_sync(_write, path, health.dump(trio.current_time(), time.time()))

        nursery.start_soon(writing)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
            if health.version != written:
                _write(path, health.dump(trio.current_time(), time.time()))


def _read(health: Health, path: Path) -> None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES)
        health.load(data, trio.current_time(), time.time())
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.warning("what was known of failures is lost: %s cannot be used (%s)", path.name, type(error).__name__)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all; no fsync, since what is lost is learnt again."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        log.warning("what is known of failures cannot be kept: %s", type(error).__name__)
