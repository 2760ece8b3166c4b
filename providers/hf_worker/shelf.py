"""Several models within a memory budget: a worker each, started when asked for; the longest unused goes first."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection

import trio

from .. import cgroups
from ..base import ErrorKind, ProviderError
from ..weights import WeightsDir
from .keeper import WorkerKeeper
from .link import WorkerLink

BUDGET_SHARE = 0.75
"""The part of this machine's memory that models take together when the owner says nothing."""

Prepare = Callable[[WeightsDir], Awaitable[WorkerLink]]


class Shelf:
    """`async with shelf.running()`, then `shelf.keeper(name)`.

    find: the weights of a name; may raise ProviderError. prepare: the link to a worker that will load them.
    budget_bytes: for all workers together, by `WeightsDir.memory`; 0 takes a share of what the machine has.
    """

    def __init__(
        self,
        provider: str,
        find: Callable[[str], Awaitable[WeightsDir]],
        prepare: Prepare,
        *,
        idle_unload_s: float,
        budget_bytes: int = 0,
    ) -> None:
        self._provider, self._find, self._prepare, self._idle_unload_s = provider, find, prepare, idle_unload_s
        self.budget_bytes = budget_bytes or int(BUDGET_SHARE * cgroups.memory_total())
        self._keepers: dict[str, WorkerKeeper] = {}
        self._memory: dict[str, int] = {}
        self._nursery: trio.Nursery | None = None
        self._choosing, self._opening = trio.Lock(), trio.Lock()
        self._started: set[str] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The life of all workers. Leaving it kills them."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for name in list(self._keepers):
                await self._open(nursery, name)
            try:
                yield
            finally:
                self._nursery = None
                self._started.clear()
                nursery.cancel_scope.cancel()

    def __contains__(self, name: str) -> bool:
        return name in self._keepers

    def keeper(self, name: str) -> WorkerKeeper:
        """The keeper of one model, made when it is asked for first; only to look at, since it may not be running."""
        if name not in self._keepers:

            async def prepare() -> WorkerLink:
                return await self._start(name)

            self._keepers[name] = WorkerKeeper(self._provider, prepare, idle_unload_s=self._idle_unload_s)
        return self._keepers[name]

    async def kept(self, name: str) -> WorkerKeeper:
        """The keeper of one model, running. Raises ProviderError when the shelf is not."""
        keeper = self.keeper(name)
        if name not in self._started:
            if self._nursery is None:
                raise ProviderError(ErrorKind.UNAVAILABLE, f"{self._provider} is not running")
            await self._open(self._nursery, name)
        return keeper

    async def _open(self, nursery: trio.Nursery, name: str) -> None:
        async with self._opening:  # several may ask for the same one at the same moment
            if name not in self._started:
                await nursery.start(_keep, self._keepers[name])
                self._started.add(name)

    def keep(self, names: Collection[str]) -> None:
        """Unload what is idle and none of these: somebody has removed it."""
        for name, keeper in self._keepers.items():
            if name not in names and keeper.idle_since is not None:
                keeper.unload("the local model was removed")

    async def _start(self, name: str) -> WorkerLink:
        found = await self._find(name)
        async with self._choosing:
            self._make_room(name, found.memory)
            self._memory[name] = found.memory
        return await self._prepare(found)

    def _make_room(self, name: str, needed: int) -> None:
        """Unload what is idle until `needed` bytes fit. Raises ProviderError with figures when they cannot."""
        available = cgroups.memory_available()
        loaded = {each: self._memory[each] for each, keeper in self._keepers.items() if keeper.link and each != name}
        waiting = {each: at for each in loaded if (at := self._keepers[each].idle_since) is not None}
        while needed > available or needed + sum(loaded.values()) > self.budget_bytes:
            if not waiting:
                break
            oldest = min(waiting, key=waiting.__getitem__)
            del waiting[oldest]
            self._keepers[oldest].unload("the local model was unloaded to make room for another")
            available += loaded.pop(oldest)
        others = sum(loaded.values())
        if needed > available:
            raise ProviderError(
                ErrorKind.UNAVAILABLE,
                f"{name} takes about {_mb(needed)} of memory and {_mb(available)} are free: close something,"
                " or choose a smaller model (`shoal models list`)",
            )
        if needed + others > self.budget_bytes:
            also = f" and {_mb(others)} are in use by other models" if others else ""
            raise ProviderError(
                ErrorKind.UNAVAILABLE,
                f"{name} takes about {_mb(needed)} of memory{also}; memory_mb in [providers.{self._provider}] allows"
                f" {_mb(self.budget_bytes)}: raise it, or choose a smaller model",
                retry_after=5.0 if others else None,
            )


async def _keep(keeper: WorkerKeeper, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    async with keeper.running():
        task_status.started()
        await trio.sleep_forever()


def _mb(size: int) -> str:
    return f"{math.ceil(size / 1e6)} MB"
