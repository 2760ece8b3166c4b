"""What a node has learnt, kept over a restart: read at the beginning, written shortly after a change and at the end.

async with kept(learnt, path, what="what was known of failures", every_s=2.0, max_bytes=MAX_BYTES):
    ...
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Protocol

import trio

log = logging.getLogger(__name__)


class Learnt(Protocol):
    """What can be kept."""

    @property
    def version(self) -> int: ...  # another number after every change

    def dump(self) -> bytes: ...

    def load(self, data: bytes) -> None: ...  # ValueError for what cannot be read


@contextlib.asynccontextmanager
async def kept(learnt: Learnt, path: Path, *, what: str, every_s: float, max_bytes: int) -> AsyncGenerator[None]:
    """A file that cannot be used is ignored, and said. what: its words in the log. every_s: between two looks."""
    try:
        with path.open("rb") as file:
            learnt.load(file.read(max_bytes))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.warning("%s is lost: %s cannot be used (%s)", what, path.name, type(error).__name__)
    written = learnt.version

    async def writing() -> None:
        nonlocal written
        while True:
            await trio.sleep(every_s)
            if learnt.version != written:
                written = learnt.version
                await trio.to_thread.run_sync(_write, path, learnt.dump(), what)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writing)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
            if learnt.version != written:
                _write(path, learnt.dump(), what)


def _write(path: Path, data: bytes, what: str) -> None:
    """Whole or not at all; no fsync, since what is lost is learnt again."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        log.warning("%s cannot be kept: %s", what, type(error).__name__)
