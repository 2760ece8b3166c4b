"""A trio loop in a thread of its own, so that plain synchronous code can use what is written for trio.

loop = BackgroundLoop()
loop.call(some_async_function, argument)
held = loop.enter(some_async_context_manager)
loop.close()
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

import trio

T = TypeVar("T")

_log = logging.getLogger(__name__)
_START_S = 30.0
_STOP_S = 10.0


class LoopClosedError(RuntimeError):
    """The loop ended while a call was under way, or before it began."""

    def __init__(self) -> None:
        super().__init__("the background loop was closed")


class Held(Generic[T]):
    """A context that stays entered in the loop until `release()` or the loop's end."""

    def __init__(self, value: T, release: Callable[[], None]) -> None:
        self.value = value
        self.release = release
        """Let the context end, soon. May be called from any thread, and more than once."""
        self.over = False
        """True once it has ended, for whatever reason."""


class BackgroundLoop:
    """Starts with the first call, ends with `close()`, starts again when it is used after that or after a fork.

    Any thread may call, but none that runs a trio loop: it would stand still meanwhile.
    """

    def __init__(self, name: str = "shoal") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def call(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run `await function(*args)` in the loop and wait for it. What interrupts the wait cancels the work.

        Raises what the function raises, or LoopClosedError.
        """
        return self._started().call(function, args)

    def enter(self, context: AbstractAsyncContextManager[T]) -> Held[T]:
        """Enter a context in the loop, to stay. Raises what entering it raises; what leaving raises is logged."""
        running = self._started()
        return running.call(running.enter, (context,))

    def close(self) -> None:
        """End the loop, all it holds and every call under way (LoopClosedError). Waits for its thread."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None and running.alive:
            running.stop()

    @property
    def alive(self) -> bool:
        running = self._running
        return running is not None and running.alive

    def _started(self) -> _Running:
        if _in_trio():
            raise RuntimeError("this blocks its thread; under trio use: await trio.to_thread.run_sync(...)")
        with self._lock:
            if self._running is None or not self._running.alive:
                self._running = _Running(self._name)
            return self._running


class _Running:
    """One thread with one loop."""

    def __init__(self, name: str) -> None:
        self._pid = os.getpid()
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._thread = threading.Thread(target=trio.run, args=(self._main,), name=name, daemon=True)
        self._thread.start()
        if not self._ready.wait(_START_S):
            raise RuntimeError(f"the thread {name!r} did not start within {_START_S:g} s")

    @property
    def alive(self) -> bool:
        return self._pid == os.getpid() and self._thread.is_alive()

    async def _main(self) -> None:
        async with trio.open_nursery() as self._nursery:
            self._token = trio.lowlevel.current_trio_token()
            self._ready.set()
            await trio.sleep_forever()

    def call(self, function: Callable[..., Awaitable[T]], args: tuple[object, ...]) -> T:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        scope = trio.CancelScope()

        async def work() -> None:
            try:
                with scope:
                    future.set_result(await function(*args))
            except Exception as error:  # it belongs to whoever waits
                future.set_exception(error)
            finally:
                if not future.done():
                    future.set_exception(LoopClosedError())

        def start() -> None:
            try:
                assert self._nursery is not None
                self._nursery.start_soon(work)
            except RuntimeError:
                future.set_exception(LoopClosedError())

        if not self._soon(start):
            raise LoopClosedError
        try:
            # The loop may end without ever starting the work: look now and then.
            while not concurrent.futures.wait([future], timeout=1.0).done:
                if not self._thread.is_alive():
                    raise LoopClosedError
            return future.result()
        except BaseException:
            if not future.done():
                self._soon(scope.cancel)
            raise

    async def enter(self, context: AbstractAsyncContextManager[T]) -> Held[T]:
        assert self._nursery is not None
        held: Held[T] = await self._nursery.start(self._hold, context)
        return held

    async def _hold(self, context: AbstractAsyncContextManager[T], task_status: trio.TaskStatus[Held[T]]) -> None:
        released = trio.Event()
        held: Held[T] | None = None
        try:
            async with context as value:
                held = Held(value, lambda: self._release(released))
                task_status.started(held)
                await released.wait()
        except Exception as error:
            if held is None:
                raise
            _log.error("what the background loop held ended with %s", type(error).__name__)
        finally:
            if held is not None:
                held.over = True

    def _release(self, released: trio.Event) -> None:
        self._soon(released.set)

    def stop(self) -> None:
        nursery = self._nursery
        if nursery is not None:
            self._soon(nursery.cancel_scope.cancel)
        self._thread.join(_STOP_S)

    def _soon(self, function: Callable[[], object]) -> bool:
        """Have the loop call a function; False when it has ended."""
        assert self._token is not None
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            return False
        return True


def _in_trio() -> bool:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True
