"""A stream that dies after text was sent goes on elsewhere: what the caller gets, and what is kept of it."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from shoal.cache.cid import parse_cid
from shoal.node.routing.candidate import Candidate
from shoal.node.routing.limits import RoutingLimits
from shoal.node.routing.router import Router
from shoal.providers.base import (
    ErrorKind,
    Finish,
    GenerateRequest,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)

from .fakes_router import (
    OTHER,
    QUESTION,
    STOP,
    Pause,
    Scripted,
    ScriptedPeer,
    Step,
    Told,
    ask,
    caching,
    fails,
    hear,
    routing,
    says,
)

SAMPLED = replace(QUESTION, temperature=0.7)
CUT = fails(ErrorKind.CONNECTION, "reset")


def offered(provider: Scripted, *, model: str = "m1", continues: bool = False, **more: Any) -> Candidate:
    peer = getattr(provider, "peer", None)
    return Candidate(provider=provider, name=provider.name, model=model, peer=peer, continues=continues, **more)


class Continuing(Scripted):
    """Writes one text, from the prefix on; breaks off after so many characters of it, by call."""

    def __init__(self, name: str, text: str, *breaks: int | None) -> None:
        super().__init__(name, [])
        self.text, self.breaks = text, breaks

    def generate(self, request: GenerateRequest) -> Any:
        at = self.breaks[min(len(self.calls), len(self.breaks) - 1)] if self.breaks else None
        assert self.text.startswith(request.prefix)
        rest = self.text[len(request.prefix) :]
        script: list[Step] = [TextDelta(char) for char in (rest if at is None else rest[:at])]
        self.scripts = [[*script, *([STOP] if at is None else CUT)]]
        return super().generate(request)


async def test_a_cut_stream_goes_on_by_prefix_where_the_next_one_continues() -> None:
    first = Scripted("first", ["Co", "l", *CUT])
    second = Continuing("second", "Cold.")
    async with caching() as cache, routing(offered(first), offered(second, continues=True), cache=cache) as router:
        told = await ask(router)
        assert cache.stats()["remembered"] == 0, "a text of two hands is nobody's to sign"
    assert (told.text, told.error, told.provider, told.cid) == ("Cold.", None, "second", None)
    assert second.calls[0].prefix == "Col"
    assert told.outcomes == [("first", "interrupted"), ("second", "ok")]
    assert told.route[-1].way == "prefix"


async def test_a_cut_stream_goes_on_by_replay_where_it_is_the_same_choice_and_model() -> None:
    first, second = Scripted("first", ["Co", "l", *CUT]), Scripted("second", says("C", "old", ".", usage=Usage(5, 3)))
    async with caching() as cache, routing(offered(first), offered(second), cache=cache) as router:
        told = await ask(router, replace(QUESTION, model="m1"))
        assert told.cid is not None
        block = await cache.block(parse_cid(told.cid))
    assert told.text == "Cold."
    assert told.route[-1].way == "replay"
    assert block is not None, "the second one wrote all of it, and is named for it"
    assert b"second" in block
    assert told.events[-2] == Usage(10, 5), "what was paid for: two pieces of the first, three of the second"


async def test_an_answer_that_comes_out_differently_is_not_patched_together() -> None:
    first, second = Scripted("first", ["Co", *CUT]), Scripted("second", says("Chilly."))
    async with routing(offered(first), offered(second)) as router:
        told = await ask(router)
    assert told.text == "Co"
    assert told.error is not None
    assert told.error.kind is ErrorKind.INTERRUPTED
    assert "says something else" in told.error.message
    assert router.health.failures == {"first": 1}, "the second one has done nothing wrong"


async def test_after_one_that_comes_out_differently_the_next_may_still_go_on() -> None:
    first, second = Scripted("first", ["Co", *CUT]), Scripted("second", says("Chilly."))
    async with routing(offered(first), offered(second), offered(Scripted("third", says("Cold.")))) as router:
        told = await ask(router)
    assert (told.text, told.error) == ("Cold.", None)


async def test_a_sampled_answer_goes_on_where_the_next_one_happens_to_begin_alike() -> None:
    first, second = Scripted("first", ["Co", *CUT]), Scripted("second", says("Cold."))
    async with routing(offered(first), offered(second)) as router:
        told = await ask(router, SAMPLED)
    assert (told.text, told.error) == ("Cold.", None)
    assert told.outcomes == [("first", "interrupted"), ("second", "ok")]


async def test_a_sampled_answer_that_comes_out_differently_stays_an_interruption() -> None:
    first, second = Scripted("first", ["Co", *CUT]), Scripted("second", says("Chilly."))
    async with routing(offered(first), offered(second)) as router:
        told = await ask(router, SAMPLED)
    assert told.text == "Co"
    assert told.error is not None
    assert told.error.kind is ErrorKind.INTERRUPTED


async def test_who_surely_goes_on_is_asked_before_who_only_may() -> None:
    first, second = Scripted("first", ["Co", *CUT]), Scripted("second", says("Chilly."))
    third = Continuing("third", "Cold.")
    async with routing(offered(first), offered(second), offered(third, continues=True, model="m2")) as router:
        told = await ask(router, SAMPLED)
    assert (told.text, told.error) == ("Cold.", None)
    assert second.calls == []


async def test_for_who_waits_for_the_whole_a_broken_answer_is_made_anew() -> None:
    first, second = Scripted("first", ["Co", *CUT]), Scripted("second", says("Chilly."))
    async with (
        routing(offered(first), offered(second, model="m2")) as router,
        router.answer(router.ask(SAMPLED, whole=True)) as answer,
    ):
        events = await answer.more()
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "Chilly."
    assert [attempt.outcome for attempt in answer.route] == ["interrupted", "interrupted", "ok"]
    assert len(first.calls) == 2, "a lost connection is tried once more"


async def test_who_reads_along_keeps_a_broken_answer_from_being_made_anew(autojump_clock: Any) -> None:
    first, second = Scripted("first", ["Co", Pause(0.1), *CUT]), Scripted("second", says("Chilly."))
    told: list[Told] = []

    async def reads(router: Router, *, whole: bool) -> None:
        told.append(await hear(router, router.ask(QUESTION, whole=whole)))

    async with (
        caching() as cache,
        routing(offered(first), offered(second, model="m2"), cache=cache) as router,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(reads, router, whole=False))
        nursery.start_soon(partial(reads, router, whole=True))
    assert len(first.calls) == 1
    assert sorted(one.text for one in told) == ["", "Co"], "no part of an answer for who asked for the whole"
    assert {one.error.kind for one in told if one.error is not None} == {ErrorKind.INTERRUPTED}


async def test_a_rejected_prefix_is_remembered_and_never_shown() -> None:
    first = Scripted("first", ["Co", *CUT])
    second = Scripted("second", fails(ErrorKind.BAD_REQUEST, "final message must be the user's"), says("Cold."))
    async with routing(offered(first), offered(second, continues=True)) as router:
        told = await ask(router)
        again = await ask(router, GenerateRequest.of("And now?", temperature=0.0))
    assert (told.text, told.error) == ("Cold.", None)
    assert [call.prefix for call in second.calls] == ["Co", "", ""], "the same one, by replay; then no prefix any more"
    assert (again.text, again.error) == ("Cold.", None)


async def test_a_rejected_prefix_of_a_sampled_answer_ends_as_the_interruption_that_it_is() -> None:
    first = Scripted("first", ["Co", *CUT])
    second = Scripted("second", fails(ErrorKind.BAD_REQUEST, "final message must be the user's"))
    async with routing(offered(first), offered(second, continues=True)) as router:
        told = await ask(router, SAMPLED)
    assert told.error is not None
    assert told.error.kind is ErrorKind.INTERRUPTED


@pytest.mark.parametrize("said", [["Co"], [ToolCallDelta(0, "id", "f", "{")]])
async def test_with_tools_in_play_a_cut_stream_is_a_clean_error(said: list[Step]) -> None:
    request = replace(QUESTION, tools=({"type": "function", "function": {"name": "f"}},))
    first, second = Scripted("first", [*said, *CUT]), Scripted("second", says("Cold."))
    async with routing(offered(first), offered(second, continues=True)) as router:
        told = await ask(router, request)
    assert told.error is not None
    assert told.error.kind is ErrorKind.INTERRUPTED
    assert "tools" in told.error.message
    assert second.calls == []


async def test_a_caller_that_forbids_fallback_is_not_rescued() -> None:
    first, second = Scripted("first", ["Co", *CUT]), Continuing("second", "Cold.")
    async with routing(offered(first), offered(second, continues=True)) as router:
        told = await ask(router, allow_fallback=False)
    assert told.error is not None
    assert second.calls == []


async def test_a_content_filter_in_mid_stream_is_passed_on_and_not_walked_around() -> None:
    first = Scripted("first", ["Co", *fails(ErrorKind.CONTENT_FILTER, "flagged")])
    second = Continuing("second", "Cold.")
    async with routing(offered(first), offered(second, continues=True)) as router:
        told = await ask(router)
    assert told.error is not None
    assert (told.error.kind, told.error.message) == (ErrorKind.CONTENT_FILTER, "flagged")
    assert second.calls == []


async def test_a_stalled_stream_goes_on_elsewhere_after_the_idle_limit(autojump_clock: trio.testing.MockClock) -> None:
    first, second = Scripted("first", ["Co", Pause(1000)]), Continuing("second", "Cold.")
    async with routing(offered(first), offered(second, continues=True), limits=RoutingLimits(idle_s=5)) as router:
        told = await ask(router)
    assert (told.text, told.took) == ("Cold.", 5)


async def test_a_slow_replay_is_not_a_silent_one(autojump_clock: trio.testing.MockClock) -> None:
    first = Scripted("first", ["Cold", *CUT])
    second = Scripted("second", [step for char in "Cold." for step in (Pause(4), char)] + [STOP])
    async with routing(offered(first), offered(second), limits=RoutingLimits(first_token_s=5, idle_s=5)) as router:
        told = await ask(router)
    assert (told.text, told.took) == ("Cold.", 20)


async def test_thoughts_alone_do_not_bind_the_next_one() -> None:
    first = Scripted("first", [ReasoningDelta("hm"), *CUT])
    async with routing(offered(first), offered(Scripted("second", says("Cold.")), model="m2")) as router:
        told = await ask(router, SAMPLED)
    assert (told.text, told.error) == ("Cold.", None)
    assert told.route[-1].way == "restart"


async def test_every_reader_of_a_rescued_generation_sees_it_once() -> None:
    go_on = trio.Event()

    class Late(Continuing):
        async def _play(self, script: Any) -> Any:
            await go_on.wait()
            async for event in super()._play(script):
                yield event

    first, second = Scripted("first", ["Co", *CUT]), Late("second", "Cold.")
    told: list[Told] = []
    async with caching() as cache, routing(offered(first), offered(second, continues=True), cache=cache) as router:

        async def listen() -> None:
            told.append(await hear(router, router.ask(QUESTION)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
    assert [t.text for t in told] == ["Cold.", "Cold."]
    assert len(first.calls) == len(second.calls) == 1


async def test_a_peer_that_comes_after_the_beginning_can_go_on() -> None:
    first, peer = Scripted("first", ["Co", *CUT]), ScriptedPeer(OTHER.peer_id, says("ld."))
    async with routing(offered(first)) as router:
        listed = router._source.listed  # type: ignore[attr-defined]

        async def arrive() -> None:
            listed.append(offered(peer, continues=True))

        first.scripts = [["Co", Pause(0), *CUT]]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(arrive)
            told = await ask(router)
    assert (told.text, told.error) == ("Cold.", None)
    assert peer.calls[0].prefix == "Co"


@pytest.mark.parametrize("said", [[], ["Co"]], ids=["before", "after"])
async def test_when_the_last_peer_is_lost_one_that_comes_up_a_moment_later_is_asked(
    said: list[Step], autojump_clock: trio.testing.MockClock
) -> None:
    first = ScriptedPeer(OTHER.peer_id, [*said, *CUT])
    second = Continuing("second", "Cold.")
    async with routing(offered(first)) as router, trio.open_nursery() as nursery:

        async def arrive() -> None:
            await trio.sleep(0.3)
            router._source.listed.append(offered(second, continues=True))  # type: ignore[attr-defined]

        nursery.start_soon(arrive)
        told = await ask(router)
    assert (told.text, told.error) == ("Cold.", None)
    assert told.took < 1


async def test_when_nobody_comes_up_the_error_is_prompt(autojump_clock: trio.testing.MockClock) -> None:
    async with routing(offered(ScriptedPeer(OTHER.peer_id, ["Co", *CUT]))) as router:
        told = await ask(router)
    assert told.error is not None
    assert told.took < 0.6


async def test_who_wrote_the_beginning_is_preferred_by_model_for_the_rest() -> None:
    first, other = Scripted("first", ["Co", *CUT]), Continuing("other", "Cold.")
    same = Continuing("same", "Cold.")
    async with routing(
        offered(first), offered(other, model="m2", continues=True), offered(same, continues=True)
    ) as router:
        told = await ask(router)
    assert told.provider == "same"


async def test_a_stream_may_be_rescued_again_and_again() -> None:
    text = "The opposite of hot is cold, as everybody knows. 漢字 🐟"
    chain = [Continuing(f"p{i}", text, 5 if i < 10 else None) for i in range(11)]
    candidates = [offered(provider, continues=True) for provider in chain]
    async with routing(*candidates, limits=RoutingLimits(max_attempts=3)) as router:
        told = await ask(router, SAMPLED)
    assert (told.text, told.error) == (text, None)


@pytest.mark.parametrize("seed", range(40))
async def test_random_deaths_on_the_way_never_cost_a_character(
    seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    dice = random.Random(seed)
    text = "".join(dice.choice("aé漢🐟 \n") for _ in range(dice.randint(1, 60)))
    providers, candidates = [], []
    for i in range(8):
        breaks = [None if i == 7 or dice.random() < 0.3 else dice.randint(0, len(text)) for _ in range(2)]
        provider = Continuing(f"p{i}", text, *breaks)
        providers.append(provider)
        candidates.append(offered(provider, continues=dice.random() < 0.5))
    async with routing(*candidates, limits=RoutingLimits(max_attempts=20)) as router:
        told = await ask(router)
    assert (told.text, told.error) == (text, None)
    assert told.events[-1] == STOP
    assert sum(isinstance(event, Finish) for event in told.events) == 1
    assert all(provider.open == 0 for provider in providers)


@pytest.mark.parametrize("kind", [ErrorKind.BAD_REQUEST, ErrorKind.CONTENT_FILTER])
async def test_a_lying_peer_cannot_refuse_for_everybody(kind: ErrorKind) -> None:
    liar, honest = ScriptedPeer(OTHER.peer_id, fails(kind)), Scripted("honest", says("Cold."))
    async with routing(liar, honest) as router:
        told = await ask(router)
    assert (told.text, told.error) == ("Cold.", None)


async def test_what_a_second_one_refuses_too_is_refused() -> None:
    peer, own = ScriptedPeer(OTHER.peer_id, fails(ErrorKind.BAD_REQUEST)), Scripted("own", fails(ErrorKind.BAD_REQUEST))
    third = Scripted("third", says("Cold."))
    async with routing(peer, own, third) as router:
        told = await ask(router)
    assert told.error is not None
    assert told.error.kind is ErrorKind.BAD_REQUEST
    assert third.calls == []


async def test_a_peers_refusal_is_told_when_nobody_else_can_say(autojump_clock: trio.testing.MockClock) -> None:
    peer, own = ScriptedPeer(OTHER.peer_id, fails(ErrorKind.CONTENT_FILTER, "flagged")), Scripted("own", CUT)
    async with routing(peer, own) as router:
        told = await ask(router)
    assert told.error is not None
    assert told.error.kind is ErrorKind.CONTENT_FILTER


async def test_a_peers_word_on_the_length_does_not_keep_the_request_from_this_node() -> None:
    peer = Candidate(
        provider=ScriptedPeer(OTHER.peer_id, fails(ErrorKind.CONTEXT_LENGTH)),
        name="peer",
        peer=OTHER.peer_id,
        context_length=1_000_000,
    )
    async with routing(peer, offered(Scripted("own", says("Cold.")), context_length=4096)) as router:
        told = await ask(router)
    assert (told.text, told.error) == ("Cold.", None)
