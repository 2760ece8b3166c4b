"""The router and the cache: what is looked up where, what is stored under which name, and what is believed."""

from __future__ import annotations

import trio
from shoal.cache.key import request_key
from shoal.cache.record import SignedRecord, sign, verify
from shoal.node.routing.ask import CacheControl
from shoal.node.routing.limits import RoutingLimits
from shoal.node.routing.recording import stands_for
from shoal.protocols.peer_id import Identity
from shoal.providers.base import ErrorKind, Finish, GenerateRequest, ReasoningDelta, TextDelta, ToolCallDelta, Usage

from .fakes_router import (
    ME,
    OTHER,
    QUESTION,
    STOP,
    Neighbours,
    Pause,
    Scripted,
    ScriptedPeer,
    Wait,
    ask,
    caching,
    fails,
    routing,
    says,
)

PATIENT = RoutingLimits(swarm_wait_s=1.0)


def answered_by(identity: Identity, content: str = "Cold.", request: GenerateRequest = QUESTION) -> SignedRecord:
    key = request_key(request, "cid")
    return sign(identity, key, request, provider="there", model="m9", content=content, finish="stop")


async def test_an_answer_is_signed_stored_and_found_again() -> None:
    provider = Scripted("first", says("Cold.", model="m1", usage=Usage(7, 2, cost=0.1)))
    async with caching() as cache, routing(provider, cache=cache) as router:
        made, found = await ask(router), await ask(router)
        assert len(provider.calls) == 1
        assert (made.cache, found.cache) == ("miss", "memory")
        assert made.cid == found.cid
        assert made.cid is not None
        assert (found.text, found.provider, found.model) == ("Cold.", "first", "m1")
        assert found.events[1] == Usage(7, 2, cached_tokens=7, cost=0.0), "nothing was paid for it"
        hit = cache.peek(request_key(QUESTION, "cid"))
        assert hit is not None
        assert verify(hit.signed.block, hit.cid, request_key(QUESTION, "cid").cid).node == ME.peer_id


async def test_peek_gives_what_is_in_memory_without_waiting() -> None:
    async with caching() as cache, routing(Scripted("first", says("Cold.")), cache=cache) as router:
        assert router.peek(router.ask(QUESTION)) is None
        made = await ask(router)
        found = router.peek(router.ask(QUESTION))
        assert found is not None
        assert (found.record.content, found.cid, found.peer) == ("Cold.", made.cid, None)
        assert router.peek(router.ask(QUESTION, cache_control=CacheControl(no_cache=True))) is None


async def test_no_cache_makes_a_new_answer_and_keeps_it() -> None:
    provider = Scripted("first", says("Cold."), says("Icy."))
    async with caching() as cache, routing(provider, cache=cache) as router:
        await ask(router)
        fresh = await ask(router, cache_control=CacheControl(no_cache=True))
        assert (fresh.text, fresh.cache) == ("Icy.", "miss")
        assert (await ask(router)).text == "Icy."


async def test_an_answer_older_than_max_age_is_not_used() -> None:
    key = request_key(QUESTION, "cid")
    old = sign(ME, key, QUESTION, provider="first", model=None, content="Old.", finish="stop", created_ms=1)
    async with caching() as cache, routing(Scripted("first", says("New.")), cache=cache) as router:
        cache.remember(old)
        assert (await ask(router)).text == "Old."
        assert (await ask(router, cache_control=CacheControl(max_age=60))).text == "New."


async def test_only_if_cached_asks_no_provider() -> None:
    provider = Scripted("first", says("Cold."))
    async with caching() as cache, routing(provider, cache=cache) as router:
        told = await ask(router, cache_control=CacheControl(only_if_cached=True))
        assert told.error is not None
        assert told.error.code == "not_cached"
        assert provider.calls == []
        await ask(router)
        assert (await ask(router, cache_control=CacheControl(only_if_cached=True))).text == "Cold."


async def test_a_fallbacks_answer_is_stored_under_its_own_name() -> None:
    first, second = Scripted("first", fails(ErrorKind.AUTH)), Scripted("second", says("Icy.", model="m2"))
    async with caching() as cache, routing(first, second, cache=cache) as router:
        await ask(router)
        found = await ask(router)
    assert (found.cache, found.provider, found.model) == ("memory", "second", "m2")


async def test_another_models_answer_to_a_pinned_model_is_told_as_such_and_not_stored() -> None:
    request = GenerateRequest.of("Hot?", model="gpt-4o", temperature=0)
    async with (
        caching() as cache,
        routing(Scripted("first", says("Cold.", model="gpt-4o-mini")), cache=cache) as router,
    ):
        told = await ask(router, request)
        assert (told.text, told.model, told.cid) == ("Cold.", "gpt-4o-mini", None)
        assert cache.stats()["remembered"] == 0


async def test_a_versioned_name_of_the_pinned_model_is_stored() -> None:
    request = GenerateRequest.of("Hot?", model="gpt-4o", temperature=0)
    provider = Scripted("first", says("Cold.", model="gpt-4o-2024-08-06"))
    async with caching() as cache, routing(provider, cache=cache) as router:
        assert (await ask(router, request)).cid is not None


def test_a_model_stands_for_another_only_by_prefix_or_version() -> None:
    assert stands_for("gpt-4o-2024-08-06", "gpt-4o")
    assert stands_for("openai/gpt-4o", "gpt-4o")
    assert stands_for("llama3.2:latest", "llama3.2")
    assert stands_for("GPT-4o", "openai/gpt-4o")
    assert not stands_for("gpt-4o-mini", "gpt-4o")
    assert not stands_for("gpt-4o", "gpt-4o-mini")
    assert not stands_for("llama3", "gpt-4o")


async def test_what_a_record_cannot_hold_is_not_stored() -> None:
    scripts = [
        [ToolCallDelta(0, "c1", "f", "{}"), Finish("tool_calls")],
        ["Sorry.", Finish("content_filter")],
        [ReasoningDelta("hm"), STOP],
    ]
    for script in scripts:
        async with caching() as cache, routing(Scripted("first", script), cache=cache) as router:
            told = await ask(router)
            assert told.error is None
            assert told.cid is None
            assert cache.stats()["remembered"] == 0


async def test_an_interrupted_answer_is_not_stored() -> None:
    async with caching() as cache, routing(Scripted("first", ["Co"]), cache=cache) as router:
        await ask(router)
        assert cache.stats()["remembered"] == 0


# -- peers -----------------------------------------------------------------------------------------------------


async def test_a_peers_answer_is_rebuilt_from_what_was_relayed_and_stored() -> None:
    signed = answered_by(OTHER)
    peer = ScriptedPeer(
        OTHER.peer_id,
        ["Co", "ld.", STOP],
        result={"provider": "there", "model": "m9", "record": signed.record.without_content()},
    )
    async with caching() as cache, routing(peer, cache=cache) as router:
        told = await ask(router)
        assert told.cid == signed.cid_text
        assert (told.provider, told.model, told.peer) == ("there", "m9", OTHER.peer_id)
        assert told.outcomes == [(peer.name, "ok")]
        again = await ask(router)
    assert (again.cache, again.cid, again.provider, again.peer) == ("memory", told.cid, "there", OTHER.peer_id)


async def test_a_record_that_does_not_fit_the_text_is_refused_and_the_answer_is_still_given() -> None:
    meta = answered_by(OTHER, "Something else.").record.without_content()
    peer = ScriptedPeer(OTHER.peer_id, says("Cold."), result={"record": meta})
    async with caching() as cache, routing(peer, cache=cache) as router:
        told = await ask(router)
        assert (told.text, told.cid, told.error) == ("Cold.", None, None)
        assert cache.stats()["refused"] == {"signature": 1}
        assert cache.peek(request_key(QUESTION, "cid")) is None


async def test_a_record_for_another_request_is_refused() -> None:
    meta = answered_by(OTHER, request=GenerateRequest.of("Something else?")).record.without_content()
    peer = ScriptedPeer(OTHER.peer_id, says("Cold."), result={"record": meta})
    async with caching() as cache, routing(peer, cache=cache) as router:
        assert (await ask(router)).cid is None
        assert cache.stats()["refused"] == {"request": 1}


async def test_a_peer_without_a_record_or_with_nonsense_in_its_place_still_answers() -> None:
    for result in (None, [], {"record": "text"}, {"record": b"\xff"}, {"model": 5}, {"provider": "x" * 999}):
        peer = ScriptedPeer(OTHER.peer_id, says("Cold."), result=result)
        async with caching() as cache, routing(peer, cache=cache) as router:
            told = await ask(router)
            assert (told.text, told.cid, told.provider) == ("Cold.", None, peer.name)


# -- beyond this machine ---------------------------------------------------------------------------------------


async def test_a_verified_hit_from_a_neighbour_wins_over_a_slow_first_attempt(
    autojump_clock: trio.testing.MockClock,
) -> None:
    signed = answered_by(OTHER)
    provider = Scripted("first", [Pause(5), "Icy.", STOP])
    neighbours = Neighbours(signed.block, after=0.5)
    async with caching() as cache, routing(provider, cache=cache, beyond=neighbours, limits=PATIENT) as router:
        told = await ask(router)
        assert (told.text, told.cache, told.cid, told.took) == ("Cold.", "swarm", signed.cid_text, 0.5)
        assert told.outcomes == [("first", "lost")]
        assert (provider.cancelled, provider.open) == (1, 0)
        assert neighbours.asked == [request_key(QUESTION, "cid").cid]
        assert (await ask(router)).cache == "memory"


async def test_the_first_token_ends_a_look_up_that_still_runs(autojump_clock: trio.testing.MockClock) -> None:
    neighbours = Neighbours(answered_by(OTHER).block, after=0.5)
    provider = Scripted("first", [Pause(0.1), "Icy", Pause(2), ".", STOP])
    async with caching() as cache, routing(provider, cache=cache, beyond=neighbours, limits=PATIENT) as router:
        told = await ask(router)
    assert (told.text, told.cache) == ("Icy.", "miss")
    assert neighbours.cancelled == 1


async def test_a_block_that_does_not_verify_is_refused_and_the_next_is_looked_at(
    autojump_clock: trio.testing.MockClock,
) -> None:
    good = answered_by(OTHER)
    flipped = bytearray(good.block)
    flipped[-1] ^= 1
    foreign = answered_by(OTHER, request=GenerateRequest.of("Something else?")).block
    neighbours = Neighbours(bytes(flipped), foreign, b"garbage", good.block)
    provider = Scripted("first", [Pause(5), "Icy.", STOP])
    async with caching() as cache, routing(provider, cache=cache, beyond=neighbours, limits=PATIENT) as router:
        told = await ask(router)
        assert told.cid == good.cid_text
        assert sum(cache.stats()["refused"].values()) == 3


async def test_a_look_up_ends_after_its_time_and_costs_the_answer_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    neighbours = Neighbours(answered_by(OTHER).block, after=60)
    provider = Scripted("first", [Pause(5), "Icy.", STOP])
    async with caching() as cache, routing(provider, cache=cache, beyond=neighbours, limits=PATIENT) as router:
        told = await ask(router)
    assert (told.text, told.took) == ("Icy.", 5)


async def test_when_every_candidate_fails_the_look_up_still_has_its_say(
    autojump_clock: trio.testing.MockClock,
) -> None:
    neighbours = Neighbours(answered_by(OTHER).block, after=0.5)
    provider = Scripted("first", fails(ErrorKind.AUTH))
    async with caching() as cache, routing(provider, cache=cache, beyond=neighbours, limits=PATIENT) as router:
        told = await ask(router)
    assert (told.text, told.cache) == ("Cold.", "swarm")


async def test_a_head_start_lets_the_look_up_spare_the_attempt(autojump_clock: trio.testing.MockClock) -> None:
    neighbours = Neighbours(answered_by(OTHER).block, after=0.02)
    provider = Scripted("first", says("Icy."))
    limits = RoutingLimits(swarm_wait_s=1.0, swarm_head_start_s=0.05)
    async with caching() as cache, routing(provider, cache=cache, beyond=neighbours, limits=limits) as router:
        assert (await ask(router)).cache == "swarm"
    assert provider.calls == []


async def test_a_peers_question_is_not_passed_on_as_a_look_up() -> None:
    neighbours = Neighbours(answered_by(OTHER).block)
    async with (
        caching() as cache,
        routing(Scripted("first", says("Icy.")), cache=cache, beyond=neighbours, limits=PATIENT) as router,
        router.answer_for_peer(QUESTION, OTHER.peer_id, 10) as answer,
    ):
        assert [e async for e in answer] == [TextDelta("Icy."), STOP]
    assert neighbours.asked == []


async def test_leaving_while_the_look_up_runs_ends_both() -> None:
    never = trio.Event()
    neighbours = Neighbours(after=1000)
    provider = Scripted("first", [Wait(never)])
    async with caching() as cache, routing(provider, cache=cache, beyond=neighbours, limits=PATIENT) as router:
        async with router.answer(router.ask(QUESTION)):
            await trio.testing.wait_all_tasks_blocked()
            assert provider.open == 1
        assert provider.open == 0
        assert neighbours.cancelled == 1


async def test_a_lone_node_looks_nothing_up() -> None:
    neighbours = Neighbours(answered_by(OTHER).block)
    neighbours.there = False
    async with (
        caching() as cache,
        routing(Scripted("first", says("Icy.")), cache=cache, beyond=neighbours, limits=PATIENT) as router,
    ):
        told = await ask(router)
        assert (told.text, told.cache, neighbours.asked) == ("Icy.", "miss", [])


async def test_an_event_at_hand_when_the_look_up_wins_is_not_told_behind_the_answer() -> None:
    both = trio.Event()

    class Neighbour(Neighbours):
        async def find(self, request_cid: bytes, timeout: float) -> list[bytes]:
            await trio.testing.wait_all_tasks_blocked()
            both.set()  # the provider's next word is on its way in the same moment
            return self.blocks

    provider = Scripted("first", [Wait(both), "Icy.", STOP])
    beyond = Neighbour(answered_by(OTHER).block)
    async with caching() as cache, routing(provider, cache=cache, beyond=beyond, limits=PATIENT) as router:
        told = await ask(router)
        assert (told.text, told.cache) == ("Cold.", "swarm")
        assert told.events[-1] == STOP or isinstance(told.events[-1], Finish)
        assert len(told.events) == 2
        assert (await ask(router)).text == "Cold."
