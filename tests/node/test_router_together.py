"""Single flight over a swarm: one node generates, the others listen, and when it is lost one of them goes on."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import trio
from shoal.node.routing.ask import CacheControl
from shoal.node.routing.candidate import Candidate
from shoal.node.routing.leads import owner_of
from shoal.node.routing.limits import RoutingLimits
from shoal.node.routing.router import Router
from shoal.protocols.peer_id import PeerId
from shoal.providers.base import ErrorKind, GenerateRequest, TextDelta

from .fakes_router import QUESTION, STOP, Pause, Scripted, Told, Wait, ask, fails, hear, says
from .fakes_together import IDENTITIES, Nodes, scripted, swarm_of

Clock = trio.testing.MockClock


def generations(providers: list[Scripted]) -> int:
    return sum(len(provider.calls) for provider in providers)


def named(router: Router) -> PeerId:
    assert router.together is not None
    return router.together.me


def leading(routers: list[Router], providers: list[Scripted]) -> int:
    """The one at whose provider it is."""
    return next(i for i, provider in enumerate(providers) if provider.open)


async def all_at_once(routers: list[Router], callers: int, request: GenerateRequest = QUESTION) -> list[Told]:
    told: list[Told] = []

    async def one(router: Router) -> None:
        told.append(await hear(router, router.ask(request)))

    async with trio.open_nursery() as nursery:
        for i in range(callers):
            nursery.start_soon(one, routers[i % len(routers)])
    return told


async def test_a_hundred_callers_of_five_nodes_cost_one_generation(autojump_clock: Clock) -> None:
    providers = scripted("Co", Pause(1), "ld.", STOP)
    async with swarm_of(*providers) as (_, routers):
        told = await all_at_once(routers, 100)
    assert generations(providers) == 1
    assert {t.text for t in told} == {"Cold."}
    assert len({t.cid for t in told}) == 1, "all have the record of the node that made it"


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.04])
async def test_nodes_that_begin_at_the_same_instant_agree_on_one(autojump_clock: Clock, delay: float) -> None:
    for n in range(20):
        providers = scripted("Co", Pause(1), "ld.", STOP)
        async with swarm_of(*providers, delay=delay) as (_, routers):
            told = await all_at_once(routers, 5, GenerateRequest.of(f"Question {n}", temperature=0.0))
        assert generations(providers) == 1
        assert {t.text for t in told} == {"Cold."}


async def test_who_joins_late_at_another_node_gets_the_text_so_far_and_then_the_live_stream() -> None:
    go_on = trio.Event()
    providers = scripted("Co", "l", Wait(go_on), "d.", STOP, count=2)
    async with swarm_of(*providers, delay=0.0) as (_, (one, two)), one.answer(one.ask(QUESTION)) as early:
        await early.more()
        async with two.answer(two.ask(QUESTION)) as late:
            assert await anext(late) == TextDelta("Co")
            assert await anext(late) == TextDelta("l")
            go_on.set()
            assert [event async for event in late] == [TextDelta("d."), STOP]
            (attempt,) = late.route
            assert (attempt.way, attempt.outcome, attempt.peer) == ("join", "ok", named(one))
    assert generations(providers) == 1


async def test_a_caller_of_the_node_joins_what_a_peer_started_there_and_the_reverse(autojump_clock: Clock) -> None:
    stranger = IDENTITIES[4].peer_id
    for first_is_a_peer in (True, False):
        (provider, *_) = providers = scripted("Co", Pause(1), "ld.", STOP, count=2)
        async with swarm_of(*providers) as (_, (router, _)):
            told: list[str] = []

            async def peer(router: Router = router, told: list[str] = told) -> None:
                async with router.answer_for_peer(QUESTION, stranger, 30.0) as answer:
                    told.append("".join([e.text async for e in answer if isinstance(e, TextDelta)]))

            async def caller(router: Router = router, told: list[str] = told) -> None:
                told.append((await ask(router)).text)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer if first_is_a_peer else caller)
                await trio.sleep(0.5)
                nursery.start_soon(caller if first_is_a_peer else peer)
        assert told == ["Cold."] * 2
        assert len(provider.calls) == 1


async def test_the_last_to_leave_cancels_it_wherever_he_listens(autojump_clock: Clock) -> None:
    never = trio.Event()
    providers = scripted("Co", Wait(never), count=2)
    async with swarm_of(*providers) as (_, (one, two)):
        async with two.answer(two.ask(QUESTION)) as staying:
            async with one.answer(one.ask(QUESTION)) as leaving:
                await leaving.more()
                await staying.more()
                (running,) = [provider for provider in providers if provider.open]
            await trio.sleep(1)
            assert running.open == 1, "somebody elsewhere still listens"
        with trio.fail_after(0.25):
            while running.open:
                await trio.sleep(0.01)
    assert generations(providers) == 1


@pytest.mark.parametrize("continues", [True, False])
async def test_when_the_leader_is_lost_one_other_goes_on_and_all_get_every_character_once(
    autojump_clock: Clock, continues: bool
) -> None:
    words = ["The", "opposite", "of", "hot", "is", "cold."]
    script = [step for word in words for step in (f"{word} ", Pause(1))]

    class Continuing(Scripted):
        async def _play(self, script):  # type: ignore[no-untyped-def]
            skip = len(self.calls[-1].prefix) if continues else 0
            async for event in super()._play(script):
                if isinstance(event, TextDelta) and skip:
                    text, skip = event.text[skip:], max(0, skip - len(event.text))
                    if text:
                        yield TextDelta(text)
                    continue
                yield event

    providers: list[Scripted] = [Continuing("own", [*script, STOP]) for _ in range(5)]
    listed = [Candidate(provider=p, name="own", model="m1", continues=continues) for p in providers]
    request = GenerateRequest.of("What is the opposite of hot?", temperature=0.0, model="m1")
    async with swarm_of(*[_one(c) for c in listed]) as (nodes, routers):
        told: list[Told] = []

        async def one(router: Router) -> None:
            told.append(await hear(router, router.ask(request)))

        async with trio.open_nursery() as nursery:
            for i in range(25):
                nursery.start_soon(one, routers[i % 5])
            await trio.sleep(2.5)
            victim = leading(routers, providers)
            nodes.lose(named(routers[victim]))
            await trio.sleep(1)
            assert [provider.open for provider in providers].count(1) == 2, "the lost one, and one that took over"
    assert {t.text for t in told} == {" ".join(words) + " "}
    assert generations(providers) == 2


def _one(candidate: Candidate):  # type: ignore[no-untyped-def]
    from .fakes_router import Listed

    return Listed(candidate)


async def test_who_comes_after_the_leader_was_lost_and_before_its_owner_has_noticed_makes_no_answer_of_its_own(
    autojump_clock: Clock,
) -> None:
    providers = scripted("Co", Pause(1), "ld.", STOP)
    async with swarm_of(*providers) as (nodes, routers):
        key = routers[0]._cache.key(QUESTION) if routers[0]._cache is not None else None
        assert key is not None
        gone = routers.pop(0)
        nodes.gone.add(named(gone))
        owner = nodes.routers[owner_of(key.cid, [named(router) for router in routers])]
        assert owner.together is not None
        leader = owner.together.leader

        def unaware(cid: bytes, asker: PeerId, lost: Collection[PeerId] = ()) -> PeerId:
            return named(gone) if named(gone) not in lost else leader(cid, asker, lost)

        owner.together.leader = unaware  # type: ignore[method-assign]
        told = await all_at_once(routers, 20)
    assert {t.text for t in told} == {"Cold."}
    assert generations(providers) == 1


async def test_who_is_told_of_a_new_leader_before_that_one_knows_waits_a_moment_for_it(autojump_clock: Clock) -> None:
    """After a loss: the owner's word reaches a third node sooner than the one that leads from now on."""
    providers = scripted("Co", Pause(3), "ld.", STOP)
    request = GenerateRequest.of("What is the opposite of hot?", temperature=0.0, model="m1")
    async with swarm_of(*[_one(Candidate(provider=p, name="own", model="m1")) for p in providers]) as (nodes, routers):
        cache = routers[0]._cache
        key = cache.key(request) if cache is not None else None
        assert key is not None
        asked = [router for router in routers if named(router) != owner_of(key.cid, nodes.routers)]
        told: list[Told] = []

        async def one(router: Router) -> None:
            told.append(await hear(router, router.ask(request)))

        async with trio.open_nursery() as nursery:
            for router in asked:
                nursery.start_soon(one, router)
            await trio.sleep(1)
            for router in asked:
                assert router.together is not None
                router.together.others.slow_word = 0.1  # type: ignore[attr-defined]
            nodes.lose(named(routers[leading(routers, providers)]))
    assert {t.text for t in told} == {"Cold."}
    assert generations(providers) == 2


async def test_a_leader_whose_provider_fails_is_followed_by_the_next_node(autojump_clock: Clock) -> None:
    providers = [Scripted("own", [Pause(1), *fails(ErrorKind.AUTH)]), Scripted("own", says("Cold."))]
    async with swarm_of(*providers) as (_, (one, two)):
        told: list[Told] = []

        async def caller(router: Router) -> None:
            told.append(await ask(router))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller, one)
            await trio.sleep(0.5)
            nursery.start_soon(caller, two)
    assert told[0].error is not None
    assert told[1].text == "Cold."
    assert told[1].route[0].way == "join"
    assert told[1].outcomes[-1] == ("own", "ok")


async def test_a_leader_that_never_says_a_word_costs_the_time_of_join_first_s(autojump_clock: Clock) -> None:
    providers = [Scripted("own", [Pause(1000)]), Scripted("own", says("Cold."))]
    async with swarm_of(*providers, limits=RoutingLimits(join_first_s=5.0)) as (_, (one, two)):
        async with one.answer(one.ask(QUESTION)):
            await trio.sleep(0.1)
            told = await ask(two)
        assert told.text == "Cold."
        assert 5.0 <= told.took < 5.5
        assert told.outcomes == [(f"peer:{named(one)[-6:]}", "first_token_timeout"), ("own", "ok")]


async def test_a_leader_that_was_silent_once_is_neither_followed_nor_asked_for_some_time(autojump_clock: Clock) -> None:
    """A node that answers every question with "I lead", takes whoever joins, and says nothing."""
    providers = [Scripted("own", [Pause(1000)]), Scripted("own", says("Cold."))]
    async with swarm_of(*providers, limits=RoutingLimits(join_first_s=5.0)) as (nodes, (liar, honest)):
        together = liar.together
        assert together is not None
        together.leader = lambda cid, asker, lost=(): named(liar)  # type: ignore[method-assign]
        questions = [n for n in range(60) if owner_of(_key(honest, n), nodes.routers) == named(liar)]
        async with trio.open_nursery() as nursery:
            for n in questions:
                nursery.start_soon(hear, liar, liar.ask(_question(n)))
            await trio.sleep(1)
            took = [(await ask(honest, _question(n))).took for n in questions]
            nursery.cancel_scope.cancel()
        assert 5.0 <= took[0] < 5.5
        assert sum(took[1:]) < 0.1


async def test_an_owner_that_is_silent_costs_the_budget_twice_and_not_each_time(autojump_clock: Clock) -> None:
    providers = scripted("Cold.", STOP, count=2)
    limits = RoutingLimits(join_wait_s=0.25)
    async with swarm_of(*providers, delay=30.0, limits=limits) as (nodes, (one, two)):
        theirs = [n for n in range(40) if owner_of(_key(one, n), (named(one), named(two))) == named(two)]
        took = [(await ask(one, _question(n))).took for n in theirs]
        assert took[:2] == pytest.approx([0.25, 0.25], abs=0.01)
        assert sum(took[2:]) < 0.01
        assert nodes.asked == 2


async def test_a_question_does_not_change_the_owner_of_others_while_it_waits(autojump_clock: Clock) -> None:
    """Many different questions at once: whoever is asked about one keeps the book for the others, too."""
    providers = scripted("Co", Pause(1), "ld.", STOP)
    async with swarm_of(*providers, delay=0.02) as (_, routers), trio.open_nursery() as nursery:
        for router in routers:
            for n in range(20):
                nursery.start_soon(hear, router, router.ask(_question(n)))
    assert generations(providers) == 20


async def test_a_node_that_owns_the_key_begins_at_once(autojump_clock: Clock) -> None:
    async with swarm_of(*scripted("Cold.", STOP, count=2), delay=30.0) as (nodes, (one, two)):
        mine = next(n for n in range(40) if owner_of(_key(one, n), (named(one), named(two))) == named(one))
        assert (await ask(one, _question(mine))).took == 0.0
        assert nodes.asked == 0


def _question(n: int) -> GenerateRequest:
    return GenerateRequest.of(f"Question {n}", temperature=0.0)


def _key(router: Router, n: int) -> bytes:
    key = router._cache.key(_question(n)) if router._cache is not None else None
    assert key is not None
    return key.cid


@pytest.mark.parametrize(
    ("request_", "control"),
    [
        (GenerateRequest.of("What?", temperature=0.7), CacheControl()),
        (QUESTION, CacheControl(no_cache=True)),
        (QUESTION, CacheControl(no_store=True)),
        (QUESTION, CacheControl(publish="none")),
        (GenerateRequest.of("What?", temperature=0.0, provider="own"), CacheControl()),
    ],
    ids=["sampled", "no-cache", "no-store", "unpublished", "pinned"],
)
async def test_what_is_not_for_others_is_neither_asked_nor_told(
    autojump_clock: Clock, request_: GenerateRequest, control: CacheControl
) -> None:
    providers = scripted("Co", Pause(1), "ld.", STOP, count=2)
    async with swarm_of(*providers) as (nodes, routers):

        async def caller(router: Router) -> None:
            assert (await ask(router, request_, cache_control=control)).text == "Cold."

        async with trio.open_nursery() as nursery:
            for router in routers:
                nursery.start_soon(caller, router)
        assert nodes.asked == 0
        assert all(router.together is not None and not router.together.here for router in routers)
    assert generations(providers) == 2


async def test_nodes_that_trust_nobody_generate_for_themselves(autojump_clock: Clock) -> None:
    providers = scripted("Co", Pause(1), "ld.", STOP)
    async with swarm_of(*providers, trust=()) as (_, routers):
        told = await all_at_once(routers, 5)
    assert {t.text for t in told} == {"Cold."}
    assert generations(providers) == 5


async def test_an_answer_that_has_just_ended_is_given_to_who_asks_for_it_by_its_key(autojump_clock: Clock) -> None:
    providers = scripted("Cold.", STOP, count=2)
    async with swarm_of(*providers) as (_, (one, two)):
        await ask(one)
        told = await ask(two)
    assert told.text == "Cold."
    assert told.outcomes == [(f"peer:{named(one)[-6:]}", "ok")]
    assert generations(providers) == 1


async def test_a_request_that_waits_for_its_asker_is_not_joined_to_him() -> None:
    """A leads and asks B for the answer: B must make it, although the book says that A does."""
    providers = scripted("Cold.", STOP, count=2)
    async with swarm_of(*providers, delay=0.0) as (_, (one, two)):
        key = one._cache.key(QUESTION) if one._cache is not None else None
        assert key is not None
        for router in (one, two):
            router.leader(key.cid, named(one))
        with trio.fail_after(2):
            async with two.answer_for_peer(QUESTION, named(one), 30.0) as answer:
                assert [e async for e in answer] == [TextDelta("Cold."), STOP]


async def test_nothing_is_kept_of_generations_that_are_over(autojump_clock: Clock) -> None:
    nodes: Nodes
    async with swarm_of(*scripted("Co", Pause(1), "ld.", STOP)) as (nodes, routers):
        await all_at_once(routers, 25)
        await trio.sleep(1)
        assert [len(router.together.here) for router in routers if router.together is not None] == [0] * 5
        assert nodes.calls == []
