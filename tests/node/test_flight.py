"""Single flight: identical requests under way cost one generation, and everyone gets the whole answer."""

from __future__ import annotations

import pytest
import trio
from shoal.node.routing.ask import CacheControl
from shoal.node.routing.limits import RoutingLimits
from shoal.providers.base import ErrorKind, GenerateRequest, TextDelta

from .fakes_router import OTHER, QUESTION, STOP, Pause, Scripted, Told, Wait, ask, caching, fails, hear, routing, says


async def together(router, *questions) -> list[Told]:  # type: ignore[no-untyped-def]
    """Asked at once; what each was told."""
    told: list[Told | None] = [None] * len(questions)

    async def one(i: int) -> None:
        told[i] = await hear(router, questions[i])

    async with trio.open_nursery() as nursery:
        for i in range(len(questions)):
            nursery.start_soon(one, i)
    return [t for t in told if t is not None]


async def test_a_hundred_identical_requests_cost_one_generation(autojump_clock: trio.testing.MockClock) -> None:
    provider = Scripted("first", ["Co", Pause(1), "ld.", STOP])
    async with caching() as cache, routing(provider, cache=cache) as router:
        told = await together(router, *(router.ask(QUESTION) for _ in range(100)))
    assert len(provider.calls) == 1
    assert {t.text for t in told} == {"Cold."}
    assert len({t.cid for t in told}) == 1


async def test_who_joins_late_gets_the_text_so_far_and_then_the_live_stream() -> None:
    go_on = trio.Event()
    provider = Scripted("first", ["Co", "l", Wait(go_on), "d.", STOP])
    async with (
        caching() as cache,
        routing(provider, cache=cache) as router,
        router.answer(router.ask(QUESTION)) as early,
        router.answer(router.ask(QUESTION)) as late,
    ):
        await trio.testing.wait_all_tasks_blocked()
        assert await late.more() == [TextDelta("Co"), TextDelta("l")]
        go_on.set()
        assert [e async for e in late] == [TextDelta("d."), STOP]
        assert len([e async for e in early]) == 4
    assert len(provider.calls) == 1


async def test_only_the_last_to_leave_cancels_the_work() -> None:
    never = trio.Event()
    provider = Scripted("first", ["Co", Wait(never)])
    async with caching() as cache, routing(provider, cache=cache) as router:
        async with router.answer(router.ask(QUESTION)) as staying:
            async with router.answer(router.ask(QUESTION)) as leaving:
                await leaving.more()
            assert provider.open == 1, "somebody still reads"
            await staying.more()
        assert provider.open == 0


async def test_who_comes_after_the_last_has_left_starts_anew() -> None:
    never = trio.Event()
    provider = Scripted("first", ["Co", Wait(never)], says("Cold."))
    async with caching() as cache, routing(provider, cache=cache) as router:
        async with router.answer(router.ask(QUESTION)) as leaving:
            await leaving.more()
        assert (await ask(router)).text == "Cold."


async def test_a_failure_is_everybodys_and_is_not_joined_afterwards(autojump_clock: trio.testing.MockClock) -> None:
    provider = Scripted("first", [Pause(1), *fails(ErrorKind.AUTH, "no key")], says("Cold."))
    async with caching() as cache, routing(provider, cache=cache) as router:
        told = await together(router, router.ask(QUESTION), router.ask(QUESTION))
        assert [t.error.message for t in told if t.error] == ["no key", "no key"]
        assert told[0].error is not told[1].error, "an exception raised twice grows a false traceback"
        assert (await ask(router)).text == "Cold."


async def test_a_short_deadline_ends_its_own_caller_only(autojump_clock: trio.testing.MockClock) -> None:
    provider = Scripted("first", [Pause(5), "Cold.", STOP])
    async with caching() as cache, routing(provider, cache=cache) as router:
        hasty, patient = await together(router, router.ask(QUESTION, timeout_s=2), router.ask(QUESTION, timeout_s=60))
    assert hasty.error is not None
    assert (hasty.error.kind, hasty.took) == (ErrorKind.DEADLINE, 2)
    assert patient.text == "Cold."
    assert len(provider.calls) == 1


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest.of("Hot?", temperature=0.7),
        GenerateRequest.of("Hot?", tools=({"type": "function", "function": {"name": "f"}},)),
    ],
)
async def test_what_is_not_cacheable_is_not_shared(
    request_: GenerateRequest, autojump_clock: trio.testing.MockClock
) -> None:
    provider = Scripted("first", [Pause(1), "Cold.", STOP])
    async with caching() as cache, routing(provider, cache=cache) as router:
        told = await together(router, router.ask(request_), router.ask(request_))
    assert len(provider.calls) == 2
    assert {t.cache for t in told} == {"bypass"}


@pytest.mark.parametrize("control", [CacheControl(no_cache=True), CacheControl(no_store=True), CacheControl(max_age=0)])
async def test_who_wants_a_fresh_answer_gets_a_generation_of_its_own(
    control: CacheControl, autojump_clock: trio.testing.MockClock
) -> None:
    provider = Scripted("first", [Pause(1), "Cold.", STOP])
    async with caching() as cache, routing(provider, cache=cache) as router:
        await together(router, router.ask(QUESTION), router.ask(QUESTION, cache_control=control))
    assert len(provider.calls) == 2


async def test_a_caller_that_forbids_fallback_does_not_share_with_one_that_allows_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    first = Scripted("first", [Pause(1), *fails(ErrorKind.AUTH)])
    async with caching() as cache, routing(first, Scripted("second", says("Cold.")), cache=cache) as router:
        free, bound = await together(router, router.ask(QUESTION), router.ask(QUESTION, allow_fallback=False))
    assert free.text == "Cold."
    assert bound.error is not None


@pytest.mark.parametrize(("publish", "shared", "calls"), [(True, True, 1), (False, True, 2), (True, False, 2)], ids=str)
async def test_a_peer_joins_a_generation_of_this_machine_only_when_it_may_have_both_answer_and_provider(
    publish: bool, shared: bool, calls: int, autojump_clock: trio.testing.MockClock
) -> None:
    provider, other = Scripted("first", [Pause(1), "Cold.", STOP]), Scripted("other", [Pause(1), "Cold.", STOP])
    async with caching(publish=publish) as cache, routing(provider, other, cache=cache) as router:
        listed = router._source.listed  # type: ignore[attr-defined]
        told: list[Told] = []

        async def local() -> None:
            told.append(await ask(router))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(local)
            await trio.sleep(0.5)
            if not shared:
                listed.pop(0)
            async with router.answer_for_peer(QUESTION, OTHER.peer_id, 10) as answer:
                assert len([e async for e in answer]) == 2
    assert len(provider.calls) + len(other.calls) == calls
    assert told[0].text == "Cold."


async def test_a_slow_reader_holds_up_nobody_else() -> None:
    provider = Scripted("first", [*["x"] * 100, STOP])
    async with (
        caching() as cache,
        routing(provider, cache=cache, limits=RoutingLimits(read_ahead_events=10)) as router,
        router.answer(router.ask(QUESTION)) as slow,
    ):
        assert len((await ask(router)).text) == 100
        assert len([e async for e in slow]) == 101
