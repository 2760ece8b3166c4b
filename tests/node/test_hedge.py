"""Hedging: when the first is slower than its own 95 %, a second is asked, and whoever speaks first goes on."""

from __future__ import annotations

import pytest
import trio
from msgspec.structs import replace
from shoal.node.routing.limits import RoutingLimits
from shoal.node.routing.router import Router
from shoal.providers.base import ErrorKind, GenerateRequest

from .fakes_router import QUESTION, STOP, Pause, Scripted, Step, Told, ask, fails, routing, says

HEDGE = RoutingLimits(hedge=True)
USUAL: list[Step] = [Pause(0.1), *says("Cold.")]


async def warmed(router: Router, first: Scripted, then: list[Step], **how: object) -> Told:
    """The first has answered in its usual time for a while; then it does `then`."""
    first.scripts = [USUAL]
    for n in range(10):
        assert (await ask(router, GenerateRequest.of(f"{n}?"))).provider == "first"
    first.scripts = [then]
    return await ask(router, QUESTION, **how)


async def test_a_first_that_is_slower_than_usual_gets_a_rival_who_answers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    first, second = Scripted("first"), Scripted("second", [Pause(0.2), *says("Icy.")])
    async with routing(first, second, limits=HEDGE) as router:
        told = await warmed(router, first, [Pause(30), *says("Cold.")])
    assert (told.text, told.provider) == ("Icy.", "second")
    assert told.took == pytest.approx(0.3, abs=0.02)
    assert told.outcomes == [("first", "lost"), ("second", "ok")]
    assert (first.open, first.cancelled, second.open) == (0, 1, 0)


async def test_the_first_may_still_win(autojump_clock: trio.testing.MockClock) -> None:
    first, second = Scripted("first"), Scripted("second", [Pause(9), *says("Icy.")])
    async with routing(first, second, limits=HEDGE) as router:
        told = await warmed(router, first, [Pause(0.4), "Co", Pause(20), "ld.", STOP])
    assert (told.text, told.provider) == ("Cold.", "first")
    assert told.outcomes == [("second", "lost"), ("first", "ok")]
    assert (second.open, second.cancelled) == (0, 1)


async def test_one_in_its_usual_time_has_no_rival(autojump_clock: trio.testing.MockClock) -> None:
    first, second = Scripted("first"), Scripted("second", says("Icy."))
    async with routing(first, second, limits=HEDGE) as router:
        told = await warmed(router, first, [Pause(0.05), *says("Cold.")])
    assert told.outcomes == [("first", "ok")]
    assert second.calls == []


async def test_a_first_that_fails_hands_over_at_once(autojump_clock: trio.testing.MockClock) -> None:
    first, second = Scripted("first"), Scripted("second", says("Icy."))
    async with routing(first, second, limits=HEDGE) as router:
        told = await warmed(router, first, fails(ErrorKind.UPSTREAM, "down"))
        assert router.health.failures == {"first": 1}
    assert told.outcomes == [("first", "upstream"), ("second", "ok")]
    assert told.took == 0


async def test_when_both_fail_the_walk_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    first, second = Scripted("first"), Scripted("second", fails(ErrorKind.AUTH))
    third = Scripted("third", says("Icy."))
    async with routing(first, second, third, limits=HEDGE) as router:
        told = await warmed(router, first, [Pause(0.5), *fails(ErrorKind.AUTH)])
    assert (told.text, told.provider) == ("Icy.", "third")


async def test_a_winner_that_breaks_off_is_gone_on_with(autojump_clock: trio.testing.MockClock) -> None:
    first, second = Scripted("first"), Scripted("second", ["I", *fails(ErrorKind.CONNECTION)])
    async with routing(first, second, limits=HEDGE) as router:
        told = await warmed(router, first, [Pause(30), *says("Cold.")])
    assert told.text == "I"
    assert told.error is not None
    assert told.error.kind is ErrorKind.INTERRUPTED


@pytest.mark.parametrize("why", ["off", "tools", "no fallback"])
async def test_without_leave_there_is_no_rival(why: str, autojump_clock: trio.testing.MockClock) -> None:
    first, second = Scripted("first"), Scripted("second", says("Icy."))
    async with routing(first, second, limits=HEDGE if why != "off" else RoutingLimits()) as router:
        await warmed(router, first, [Pause(3), *says("Cold.")], allow_fallback=False)
        tools = ({"type": "function", "function": {"name": "f"}},) if why == "tools" else ()
        told = await ask(router, replace(QUESTION, tools=tools), allow_fallback=why != "no fallback")
    assert told.provider == "first"
    assert second.calls == []


async def test_a_caller_who_leaves_ends_both(autojump_clock: trio.testing.MockClock) -> None:
    first, second = Scripted("first"), Scripted("second", [Pause(30), *says("Icy.")])
    async with routing(first, second, limits=HEDGE) as router:
        await warmed(router, first, USUAL)
        first.scripts = [[Pause(30), *says("Cold.")]]
        with trio.move_on_after(1):
            await ask(router)
        assert len(second.calls) == 1
        assert (first.open, second.open, router.in_flight) == (0, 0, 0)
