"""Tells at once when the other side of a connection has closed it, though nobody reads from it.

A server must notice a client that leaves while its request is worked on. A second task that reads beside the handler
costs a task switch for every request, and is blind behind bytes that nobody takes. The kernel knows: one epoll of its
own watches every connection for EPOLLRDHUP (epoll(7), edge-triggered), and one task waits for that epoll's descriptor.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable

import trio

_EVENTS = select.EPOLLRDHUP | select.EPOLLET  # errors and EPOLLHUP are always reported


class HangupWatch:
    """Watches descriptors while `run` runs."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back once when the other side closes, half-closes or resets, also when it has done so before."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, _EVENTS)

    def remove(self, fd: int, callback: Callable[[], None]) -> None:
        """Also when the descriptor is closed already: if its number is in use again, that watch stays."""
        if self._callbacks.get(fd) == callback:
            del self._callbacks[fd]
            with contextlib.suppress(OSError):  # closing has ended the kernel's watch
                self._epoll.unregister(fd)

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for fd, _ in self._epoll.poll(0):
                    callback = self._callbacks.get(fd)
                    if callback is not None:
                        callback()
        finally:
            self._epoll.close()
            self._callbacks.clear()
