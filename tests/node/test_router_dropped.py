"""What a provider says of an attempt is told in the route: options left out, for which such an answer is not kept as if
they had counted, and the back end that was chosen."""

from __future__ import annotations

from shoal.node.routing.attempt import Attempt, route_header
from shoal.providers.base import Dropped, Via

from .fakes_router import OTHER, Scripted, ScriptedPeer, ask, caching, routing, says


async def test_the_route_tells_what_was_left_out_and_the_caller_gets_no_such_event() -> None:
    async with routing(Scripted("first", [Dropped(("seed", "temperature")), *says("Cold.")])) as router:
        told = await ask(router)
    assert told.text == "Cold."
    assert not any(isinstance(event, Dropped) for event in told.events)
    assert told.route[-1].dropped == ("seed", "temperature")


async def test_an_answer_made_without_some_options_is_not_kept() -> None:
    provider = Scripted("first", [Dropped(("temperature",)), *says("Cold.")])
    async with caching() as cache, routing(provider, cache=cache) as router:
        first, second = await ask(router), await ask(router)
    assert (first.cid, second.cache, len(provider.calls)) == (None, "miss", 2)


async def test_a_peer_tells_what_its_provider_left_out() -> None:
    peer = ScriptedPeer(
        OTHER.peer_id, says("Cold."), result={"provider": "there", "record": None, "dropped": ["seed", 7]}
    )
    async with routing(peer) as router:
        told = await ask(router)
    assert told.route[-1].dropped == ("seed",)


def test_the_header_names_them_only_where_there_are_any() -> None:
    route = [
        Attempt(provider="first", outcome="connection", ms=3),
        Attempt(provider="second", outcome="ok", ms=8, dropped=("seed", "odd, name;")),
    ]
    assert route_header(route) == "first;connection;3, second;ok;8;dropped=seed+odd__name_"


async def test_the_route_names_the_back_end_and_the_caller_gets_no_such_event() -> None:
    async with routing(Scripted("backend_manager", [Via("gpu 1"), *says("Cold.")])) as router:
        told = await ask(router)
    assert told.text == "Cold."
    assert not any(isinstance(event, Via) for event in told.events)
    assert told.route[-1].via == "gpu 1"
    assert route_header(told.route).startswith("backend_manager/gpu_1;ok;")


async def test_a_peer_names_no_back_ends() -> None:
    async with routing(ScriptedPeer(OTHER.peer_id, [Via("gpu1"), *says("Cold.")])) as router:
        told = await ask(router)
    assert (told.text, told.route[-1].via) == ("Cold.", "")
