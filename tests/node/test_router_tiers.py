"""Caches beyond this machine, one behind the other: who is asked when, who wins, and what is counted."""

from __future__ import annotations

import trio
import trio.testing
from shoal.node.routing.limits import RoutingLimits
from shoal.providers.base import ErrorKind

from .fakes_router import OTHER, STOP, Neighbours, Pause, Scripted, ask, caching, fails, routing
from .test_router_cache import answered_by

PATIENT = RoutingLimits(swarm_wait_s=1.0)


async def test_who_was_found_far_away_is_asked_when_the_near_have_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    signed = answered_by(OTHER)
    near, far = Neighbours(after=0.01), Neighbours(signed.block, after=0.1)
    slow = Scripted("first", [Pause(5), "Icy.", STOP])
    async with (
        caching() as cache,
        routing(slow, cache=cache, beyond=near, farther={"dht": far.find}, limits=PATIENT) as router,
    ):
        told = await ask(router)
        assert (told.text, told.cache, told.cid, round(told.took, 2)) == ("Cold.", "dht", signed.cid_text, 0.11)
        assert told.outcomes == [("first", "lost")]
        assert cache.stats()["hits"]["dht"] == 1
        assert router.beyond is not None
        assert {tier: (count["asked"], count["found"]) for tier, count in router.beyond.stats().items()} == {
            "swarm": (1, 0),
            "dht": (1, 1),
        }


async def test_the_far_are_spared_when_the_near_have_it(autojump_clock: trio.testing.MockClock) -> None:
    near, far = Neighbours(answered_by(OTHER).block, after=0.05), Neighbours()
    slow = Scripted("first", [Pause(5), "Icy.", STOP])
    async with (
        caching() as cache,
        routing(slow, cache=cache, beyond=near, farther={"dht": far.find}, limits=PATIENT) as router,
    ):
        assert (await ask(router)).cache == "swarm"
        assert far.asked == []


async def test_a_slow_neighbour_does_not_take_the_time_of_those_behind_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = Neighbours(after=60), Neighbours(answered_by(OTHER).block, after=0.3)
    slow = Scripted("first", [Pause(5), "Icy.", STOP])
    async with (
        caching() as cache,
        routing(slow, cache=cache, beyond=near, farther={"dht": far.find}, limits=PATIENT) as router,
    ):
        told = await ask(router)
        assert (told.cache, round(told.took, 2)) == ("dht", 0.5)
        assert near.cancelled == 1


async def test_the_first_token_ends_every_look_up(autojump_clock: trio.testing.MockClock) -> None:
    near, far = Neighbours(after=60), Neighbours(after=60)
    quick = Scripted("first", [Pause(0.4), "Icy.", STOP])
    async with (
        caching() as cache,
        routing(quick, cache=cache, beyond=near, farther={"dht": far.find}, limits=PATIENT) as router,
    ):
        assert (await ask(router)).cache == "miss"
    assert (near.cancelled, far.cancelled) == (1, 1)


async def test_all_tiers_together_have_no_more_time_than_one(autojump_clock: trio.testing.MockClock) -> None:
    near, far = Neighbours(after=60), Neighbours(after=60)
    async with (
        caching() as cache,
        routing(
            Scripted("first", fails(ErrorKind.AUTH)),
            cache=cache,
            beyond=near,
            farther={"dht": far.find},
            limits=PATIENT,
        ) as router,
    ):
        told = await ask(router)
        assert told.error is not None
        assert told.took <= 1.06
