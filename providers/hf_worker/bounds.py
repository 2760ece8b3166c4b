"""Bounds for what a model's author wrote and this process runs: seconds and memory, by the system's own means.

    with bounded(2.0):
        text = template.render(...)     # raises OutOfBoundsError, or MemoryError

The timer needs the main thread, which is the one that computes; a thread without it is bounded in memory alone, and so
is a system without /proc in time alone.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

TEMPLATE_S = 2.0
"""Seconds that a chat template gets; a long chat takes some milliseconds."""
TEMPLATE_BYTES = 256 * 1024 * 1024
"""Memory that it may take beyond what the process has."""
_PAGE = resource.getpagesize()


class OutOfBoundsError(Exception):
    """It took too long."""


@contextlib.contextmanager
def bounded(seconds: float = TEMPLATE_S, more_bytes: int = TEMPLATE_BYTES) -> Iterator[None]:
    """What is done inside takes no longer and no more than this."""
    with _in_time(seconds), _in_memory(more_bytes):
        yield


@contextlib.contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outer, _ = signal.getitimer(signal.ITIMER_REAL)
    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, _over)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, outer or seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer:  # there is one timer only: what is bounded already stays so
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, outer - (time.monotonic() - began)))


def _over(number: int, frame: FrameType | None) -> None:
    raise OutOfBoundsError


@contextlib.contextmanager
def _in_memory(more_bytes: int) -> Iterator[None]:
    try:
        size = int(Path("/proc/self/statm").read_bytes().split()[0]) * _PAGE
    except (OSError, ValueError, IndexError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = size + more_bytes
    if soft != resource.RLIM_INFINITY:
        wanted = min(soft, wanted)
    if hard != resource.RLIM_INFINITY:
        wanted = min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
