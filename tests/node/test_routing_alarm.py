"""Deadlines that move: called once, not before, not after being stopped, and cheap to forget."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
from shoal.node.routing.alarm import Alarms


@asynccontextmanager
async def running() -> AsyncGenerator[tuple[Alarms, list[tuple[str, float]]]]:
    alarms, called = Alarms(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarms.run)
        await trio.testing.wait_all_tasks_blocked()
        yield alarms, called
        nursery.cancel_scope.cancel()


async def test_a_watch_is_called_once_at_its_time(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as (alarms, called):
        start = trio.current_time()
        for name, after in (("b", 2), ("a", 1), ("c", 3)):
            alarms.watch(start + after, lambda name=name: called.append((name, trio.current_time() - start)))
        await trio.sleep(10)
    assert called == [("a", 1), ("b", 2), ("c", 3)]


async def test_a_watch_that_moves_on_is_called_at_its_last_time_only(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as (alarms, called):
        watch = alarms.watch(trio.current_time() + 5, lambda: called.append(("x", trio.current_time())))
        for _ in range(100):
            await trio.sleep(1)
            watch.set(trio.current_time() + 5)
        last = trio.current_time()
        await trio.sleep(20)
    assert called == [("x", last + 5)]


async def test_a_watch_that_moves_closer_is_called_earlier(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as (alarms, called):
        start = trio.current_time()
        watch = alarms.watch(start + 100, lambda: called.append(("x", trio.current_time() - start)))
        await trio.sleep(1)
        watch.set(start + 2)
        await trio.sleep(200)
    assert called == [("x", 2)]


async def test_a_watch_can_be_set_again_after_it_was_called(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as (alarms, called):
        watch = alarms.watch(trio.current_time() + 1, lambda: called.append(("x", trio.current_time())))
        await trio.sleep(5)
        watch.set(trio.current_time() + 1)
        await trio.sleep(5)
    assert len(called) == 2


async def test_a_stopped_watch_is_not_called(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as (alarms, called):
        alarms.watch(trio.current_time() + 1, lambda: called.append(("x", 0.0))).stop()
        await trio.sleep(5)
    assert called == []


async def test_what_many_stopped_watches_leave_behind_is_bounded() -> None:
    async with running() as (alarms, _):
        for _ in range(10_000):
            alarms.watch(trio.current_time() + 300, lambda: None).stop()
        assert len(alarms) < 200
        kept = [alarms.watch(trio.current_time() + 300, lambda: None) for _ in range(1000)]
        assert len(alarms) >= len(kept)
