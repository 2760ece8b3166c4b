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

RETRY_S = 5.0
"""After so many seconds it is worth asking again for a model that found no room beside others at work."""

Prepare = Callable[[WeightsDir], Awaitable[WorkerLink]]


class Shelf:
    """`async with shelf.running()`, then `shelf.keeper(name)`.

    find: the weights of a name; may raise ProviderError. prepare: the link to a worker that will load them.
    budget_bytes: for all workers together, by `WeightsDir.memory`; 0 takes a share of what the machine has.
    patience_s: seconds that a request waits for other models to be idle, where there is room for one of them only.
    """

    def __init__(
        self,
        provider: str,
        find: Callable[[str], Awaitable[WeightsDir]],
        prepare: Prepare,
        *,
        idle_unload_s: float,
        budget_bytes: int = 0,
        patience_s: float = 0.0,
    ) -> None:
        self._provider, self._find, self._prepare, self._idle_unload_s = provider, find, prepare, idle_unload_s
        self._patience_s = patience_s
        self.budget_bytes = budget_bytes or int(BUDGET_SHARE * cgroups.memory_total())
        self._keepers: dict[str, WorkerKeeper] = {}
        self._memory: dict[str, int] = {}
        self._nursery: trio.Nursery | None = None
        self._choosing, self._opening = trio.Lock(), trio.Lock()
        self._started: set[str] = set()
        self._freed = trio.Event()

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

            keeper = WorkerKeeper(self._provider, prepare, idle_unload_s=self._idle_unload_s)
            keeper.on_idle = self._tell_freed
            self._keepers[name] = keeper
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
        placed = False
        with trio.move_on_after(self._patience_s):
            while not placed:
                freed = self._freed
                placed = await self._placed(name, found.memory, waits=True)
                if not placed:
                    await freed.wait()
        if not placed:
            await self._placed(name, found.memory, waits=False)
        return await self._prepare(found)

    def _tell_freed(self) -> None:
        """A model has become idle, so that it may be unloaded."""
        self._freed.set()
        self._freed = trio.Event()

    async def _placed(self, name: str, needed: int, *, waits: bool) -> bool:
        """Whether there is room; when there may be soon, and `waits`, a no is an answer. Raises ProviderError."""
        async with self._choosing:
            try:
                self._make_room(name, needed)
            except ProviderError as fault:
                if waits and fault.retry_after is not None:
                    return False
                raise
            self._memory[name] = needed
            return True

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
                retry_after=RETRY_S if others and needed <= min(available + others, self.budget_bytes) else None,
            )
        if needed + others > self.budget_bytes:
            also = f" and {_mb(others)} are in use by other models" if others else ""
            raise ProviderError(
                ErrorKind.UNAVAILABLE,
                f"{name} takes about {_mb(needed)} of memory{also}; memory_mb in [providers.{self._provider}] allows"
                f" {_mb(self.budget_bytes)}: raise it, or choose a smaller model",
                retry_after=RETRY_S if others and needed <= self.budget_bytes else None,
            )


async def _keep(keeper: WorkerKeeper, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    async with keeper.running():
        task_status.started()
        await trio.sleep_forever()


def _mb(size: int) -> str:
    return f"{math.ceil(size / 1e6)} MB"
