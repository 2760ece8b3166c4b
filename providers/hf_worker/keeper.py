"""Keeps one worker: started when somebody asks, replaced when it dies, ended when nobody asks for long."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from ..base import ErrorKind, ProviderError
from .link import WorkerLink

log = logging.getLogger("shoal.providers.local_hf")

LONGEST_PAUSE_S = 60.0


class WorkerKeeper:
    """`async with keeper.running()`, then `await keeper.worker()` for a link that is ready.

    prepare: makes the link to a worker that is not started yet; may raise ProviderError.
    idle_unload_s: seconds without a request after which the worker ends; 0 keeps it.
    """

    def __init__(self, name: str, prepare: Callable[[], Awaitable[WorkerLink]], *, idle_unload_s: float) -> None:
        self._name, self._prepare, self._idle_unload_s = name, prepare, idle_unload_s
        self._nursery: trio.Nursery | None = None
        self._link: WorkerLink | None = None
        self._starting = trio.Lock()
        self._users = 0
        self._idle_since = 0.0
        self._deaths = 0
        self._not_before = 0.0
        self._last_words = ""
        self.on_idle: Callable[[], None] = lambda: None
        """Called when the last request has ended, or the worker was lost."""

    @property
    def link(self) -> WorkerLink | None:
        """The worker that is up or starting; None when there is none."""
        return self._link

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The keeper's life. Leaving it kills the worker; its requests get an error at once."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if self._idle_unload_s > 0:
                nursery.start_soon(self._unload_when_idle)
            try:
                yield
            finally:
                self._nursery = self._link = None
                nursery.cancel_scope.cancel()

    @property
    def idle_since(self) -> float | None:
        """When its last request ended, in trio's time; None while it has some, or no worker."""
        return None if self._users or self._link is None else self._idle_since

    def unload(self, reason: str) -> None:
        """End the worker; the next request starts another."""
        if self._link is not None:
            link, self._link = self._link, None
            link.stop(reason)

    def preload(self) -> None:
        """Start a worker in the background; a failure shows in `pause_reason` and in the log."""
        if self._nursery is not None:
            self._nursery.start_soon(self._preload)

    async def _preload(self) -> None:
        with contextlib.suppress(ProviderError):
            async with self.worker():
                pass

    @contextlib.asynccontextmanager
    async def worker(self) -> AsyncIterator[WorkerLink]:
        """A worker that is ready, and stays up while the context lasts unless it dies. Raises ProviderError."""
        self._users += 1
        try:
            link = await self._current()
            await link.ready.wait()
            if link.lost is not None:
                raise ProviderError(ErrorKind.UNAVAILABLE if link.refused else ErrorKind.CONNECTION, link.lost)
            yield link
        finally:
            self._users -= 1
            self._idle_since = trio.current_time()
            if not self._users:
                self.on_idle()

    def pause_reason(self) -> str:
        """Why no worker is started just now; empty when one may be."""
        left = self._not_before - trio.current_time()
        if left <= 0:
            return ""
        times = f"{self._deaths} times in a row" if self._deaths > 1 else "once"
        return f"its worker failed {times}, the next start is in {left:.0f} s; last reason: {self._last_words}"

    async def _current(self) -> WorkerLink:
        async with self._starting:  # the first request makes the link, the others of the same moment share it
            if self._link is None:
                if reason := self.pause_reason():
                    left = round(self._not_before - trio.current_time(), 1)
                    raise ProviderError(ErrorKind.UNAVAILABLE, f"{self._name}: {reason}", retry_after=left)
                link = await self._prepare()
                if self._nursery is None:
                    raise ProviderError(ErrorKind.UNAVAILABLE, f"{self._name} is not running")
                self._link = link
                link.on_lost = self._learn
                self._nursery.start_soon(link.run)
            return self._link

    def _learn(self, link: WorkerLink) -> None:
        """What the death of a worker means for the next one."""
        if link is not self._link:
            return  # it was unloaded on purpose
        self._link = None
        self.on_idle()
        if link.answered:
            self._deaths = 0
        self._deaths += 1
        self._last_words = link.lost or ""
        log.warning("%s: %s", self._name, self._last_words)
        if link.refused or self._deaths > 1:  # the first death is an accident: the next request gets a fresh worker
            self._not_before = trio.current_time() + min(2.0 ** (self._deaths - 1), LONGEST_PAUSE_S)

    async def _unload_when_idle(self) -> None:
        while True:
            if self._users or self.link is None:
                self._idle_since = trio.current_time()
            left = self._idle_since + self._idle_unload_s - trio.current_time()
            if left <= 0 and self._link is not None:
                self.unload("the local model was unloaded after a time without requests")
                left = self._idle_unload_s
            await trio.sleep(max(min(left, self._idle_unload_s / 4), 0.01))
