"""An answer that nobody else can share, for a caller who wants it whole, is made in that caller's own task."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from shoal.node.routing.no_answer import NoAnswer
from shoal.providers.base import ErrorKind, GenerateRequest

from .fakes_router import STOP, Pause, Scripted, Wait, ask, caching, fails, routing, says

PRIVATE = GenerateRequest.of("What is the opposite of hot?", temperature=1.0)
"""Not for the cache, so nobody can join it."""


async def test_it_is_made_without_a_task_of_its_own() -> None:
    here = trio.lowlevel.current_task()
    seen = []

    class Watching(Scripted):
        def generate(self, request: GenerateRequest):  # type: ignore[no-untyped-def]
            seen.append(trio.lowlevel.current_task())
            return super().generate(request)

    async with caching() as cache, routing(Watching("first", says("Cold.")), cache=cache) as router:
        told = await ask(router, PRIVATE, whole=True)
        assert (told.text, told.cache, told.error) == ("Cold.", "bypass", None)
        assert seen.pop() is here
        await ask(router, PRIVATE)
        assert seen.pop() is not here  # who reads along needs a writer beside it
        await ask(router, whole=True)
        assert seen.pop() is not here  # somebody may join this one
        assert router.in_flight == 0


async def test_a_caller_who_leaves_takes_it_along() -> None:
    provider = Scripted("first", ["Co", Wait(trio.Event())])
    async with routing(provider) as router:
        with trio.CancelScope() as caller:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: ask(router, PRIVATE, whole=True))
                await trio.testing.wait_all_tasks_blocked()
                assert (provider.open, router.in_flight) == (1, 1)
                caller.cancel()
        assert (provider.cancelled, provider.open, router.in_flight) == (1, 0, 0)
        assert router.notes[-1].outcome == "cancelled"


async def test_failures_lead_to_the_next_candidate_as_ever() -> None:
    async with routing(Scripted("first", fails(ErrorKind.AUTH)), Scripted("second", ["Co", *says("ld.")])) as router:
        told = await ask(router, PRIVATE, whole=True)
        assert (told.text, told.provider) == ("Cold.", "second")


async def test_its_deadline_holds(autojump_clock: trio.testing.MockClock) -> None:
    provider = Scripted("first", ["Co", Pause(1000), STOP])
    async with routing(provider) as router:
        told = await ask(router, PRIVATE, whole=True, timeout_s=5)
        assert told.error is not None
        assert told.error.kind is ErrorKind.DEADLINE
        assert trio.current_time() <= 8
        assert (provider.open, router.in_flight) == (0, 0)


async def test_one_that_nobody_reads_is_never_begun() -> None:
    provider = Scripted("first", says("Cold."))
    async with routing(provider) as router:
        async with router.answer(router.ask(PRIVATE, whole=True)):
            assert router.in_flight == 1
        assert (provider.calls, router.in_flight) == ([], 0)


async def test_a_router_that_stops_ends_it() -> None:
    provider = Scripted("first", ["Co", Wait(trio.Event())])
    errors: list[NoAnswer] = []

    async with trio.open_nursery() as nursery, routing(provider) as router:

        async def call() -> None:
            with pytest.raises(NoAnswer) as caught:
                async with router.answer(router.ask(PRIVATE, whole=True)) as answer:
                    await answer.more()
            errors.append(caught.value)

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
    assert [error.kind for error in errors] == [ErrorKind.CANCELLED]
    assert (provider.open, router.in_flight) == (0, 0)


async def test_it_may_be_longer_than_a_reader_is_read_ahead() -> None:
    words = [f"word{n} " for n in range(5000)]
    async with routing(Scripted("first", says(*words))) as router:
        told = await ask(router, PRIVATE, whole=True)
        assert told.text == "".join(words)
