"""Forwarding: a request goes to a peer, its answer comes back, and failures are told as what they are."""

from __future__ import annotations

import json

import pytest
import trio
from msgspec.structs import replace
from shoal.node.rpc.chat_request import read_call
from shoal.providers.base import (
    Embed,
    ErrorKind,
    Finish,
    GenerateRequest,
    ImagePart,
    ImageUrl,
    Message,
    ProviderError,
    TextDelta,
    TextPart,
    ToolCallDelta,
    Usage,
)
from shoal.providers.embedding import pack, text_of

from .fakes_swarm import IDENTITIES, refused, swarm_of

REQUEST = GenerateRequest.of("What is the opposite of hot?", model="tiny", stop=("\n",), seed=7, extra={"min_p": 0.1})


async def ask(node, request=REQUEST, **how):
    (provider,) = node.swarm.candidates_for(None)
    options = {"deadline_s": 60.0, "hops": 0, "seen": frozenset(), **how}
    async with provider.generate_for(request, **options) as answer:
        return [event async for event in answer], answer.result


async def failure(node, *args, **how) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await ask(node, *args, **how)
    return caught.value


async def test_a_peer_answers_with_its_events_and_its_signed_end(autojump_clock):
    async with swarm_of(2) as (one, two):
        two.words = ("Co", "ld", ToolCallDelta(0, "id", "f", "{}"), Usage(9, 2, 1, 0, 0.5), Finish("stop", "tiny"))
        events, result = await ask(one)
        assert events == [
            TextDelta("Co"), TextDelta("ld"), ToolCallDelta(0, "id", "f", "{}"), Usage(9, 2, 1, 0, 0.5),
            Finish("stop", "tiny"),
        ]  # fmt: skip
        assert result == {"provider": "fake", "model": "tiny", "record": b"signed"}


async def test_a_peers_vectors_come_in_one_piece_or_not_at_all(autojump_clock):
    request = GenerateRequest(messages=(), model="tiny", embed=Embed(("one", "two")))
    text = text_of([pack([1.0, 0.5]), pack([2.0, 0.5])])
    async with swarm_of(2) as (one, two):
        two.words = (text[:20], text[20:], Usage(2, 0), Finish("stop", "tiny"))
        events, result = await ask(one, request)
        assert events == [TextDelta(text), Usage(2, 0), Finish("stop", "tiny")]
        assert result["record"] == b"signed"
        two.words = ("Cold.", Finish("stop", "tiny"))
        assert (await failure(one, request)).kind == ErrorKind.UPSTREAM
        two.words = (text[:20], refused(ErrorKind.UPSTREAM))
        assert (await failure(one, request)).kind == ErrorKind.UPSTREAM


async def test_the_request_arrives_whole_with_its_budget(autojump_clock):
    parts = (TextPart("What is this?"), ImagePart(ImageUrl("data:image/png;base64," + "A" * 200_000)))
    request = replace(REQUEST, messages=(Message("system", "Be brief."), Message("user", parts)), tools=({"x": 1},))
    async with swarm_of(2) as (one, two):
        seen = frozenset({IDENTITIES[5].peer_id})
        await ask(one, request, deadline_s=12.5, hops=1, seen=seen)
        ((asked, peer, deadline_s, hops, path),) = two.asked
        assert asked == request
        assert (peer, deadline_s, hops) == (one.id, 12.5, 1)
        assert set(path) == {*seen, one.id}


async def test_without_a_budget_there_is_a_default_and_no_further_hop(autojump_clock):
    async with swarm_of(2) as (one, two):
        (provider,) = one.swarm.candidates_for(None)
        async with provider.generate(REQUEST) as answer:
            assert isinstance([event async for event in answer][-1], Finish)
        assert two.asked[0][2:4] == (300.0, 0)
        async with provider.generate_for(REQUEST, deadline_s=float("inf"), hops=0, seen=()) as answer:
            await anext(answer)


async def test_leaving_cancels_the_work_at_the_peer(autojump_clock):
    async with swarm_of(2) as (one, two):
        two.words = ("a", 3600)
        (provider,) = one.swarm.candidates_for(None)
        async with provider.generate(REQUEST) as answer:
            await anext(answer)
        with trio.fail_after(0.25):
            await two.cancelled.wait()


async def test_the_deadline_ends_it_here_and_there(autojump_clock):
    async with swarm_of(2) as (one, two):
        two.words = ("a", 3600)
        start = trio.current_time()
        error = await failure(one, deadline_s=2.0)
        assert error.kind == ErrorKind.DEADLINE
        assert trio.current_time() - start == pytest.approx(2.0, abs=0.1)
        with trio.fail_after(1):
            await two.cancelled.wait()
        assert (await failure(one, deadline_s=0)).kind == ErrorKind.DEADLINE


@pytest.mark.parametrize("kind", list(ErrorKind))
async def test_the_peers_failure_keeps_its_kind(autojump_clock, kind):
    async with swarm_of(2) as (one, two):
        two.words = (refused(kind, retry_after=3.5),)
        error = await failure(one)
        assert error.kind == (kind if kind is not ErrorKind.CANCELLED else ErrorKind.CONNECTION)
        assert error.retry_after == 3.5
        assert "not now" in error.message
        assert error.message.startswith("peer:")


async def test_a_peer_lost_before_text_is_a_connection_failure(autojump_clock):
    async with swarm_of(2) as (one, two), trio.open_nursery() as nursery:
        two.words = (3600,)

        async def die() -> None:
            await two.answering.wait()
            two.host.die()

        nursery.start_soon(die)
        with trio.fail_after(1):
            error = await failure(one)
        assert error.kind == ErrorKind.CONNECTION


async def test_a_peer_lost_after_text_has_interrupted_its_answer(autojump_clock):
    async with swarm_of(2) as (one, two):
        two.words = ("a", 3600)
        (provider,) = one.swarm.candidates_for(None)
        async with provider.generate(REQUEST) as answer:
            assert await anext(answer) == TextDelta("a")
            two.host.die()
            with trio.fail_after(1), pytest.raises(ProviderError, match="was lost while answering") as caught:
                await anext(answer)
        assert caught.value.kind == ErrorKind.INTERRUPTED
        with pytest.raises(ProviderError) as again:
            async with provider.generate(REQUEST):
                pass
        assert again.value.kind == ErrorKind.CONNECTION
        assert not (await provider.probe()).ready


async def test_an_answer_that_does_not_finish_is_a_failure(autojump_clock):
    async with swarm_of(2) as (one, two):
        two.words = ("a",)
        assert (await failure(one)).kind == ErrorKind.INTERRUPTED
        two.words = ()
        assert (await failure(one)).kind == ErrorKind.UPSTREAM


async def test_what_is_no_event_is_a_failure(autojump_clock):
    async with swarm_of(2) as (one, two):
        two.words = (["t", 5], Finish("stop"))
        assert (await failure(one)).kind == ErrorKind.UPSTREAM
        two.words = ("a", ["zz"], Finish("stop"))
        assert (await failure(one)).kind == ErrorKind.INTERRUPTED


async def test_a_fault_in_the_peers_code_is_told_without_its_words(autojump_clock, caplog):
    async with swarm_of(2) as (one, two):
        two.words = 5  # type: ignore[assignment]
        error = await failure(one)
        assert error.kind == ErrorKind.UPSTREAM
        assert "int" not in error.message
        two.words = ("a", Finish("stop"))
        assert (await ask(one))[0] == [TextDelta("a"), Finish("stop")]


async def test_a_request_that_comes_round_is_refused(autojump_clock):
    async with swarm_of(2) as (one, two):
        error = await failure(one, seen={two.id})
        assert error.kind == ErrorKind.UNAVAILABLE
        assert "passed this node" in error.message
        assert two.asked == []


@pytest.mark.parametrize("hops", [-1, -5])
async def test_a_request_without_hops_left_is_refused(autojump_clock, hops):
    async with swarm_of(2) as (one, two):
        error = await failure(one, hops=hops)
        assert error.kind == ErrorKind.UNAVAILABLE
        assert "too often" in error.message
        assert two.asked == []


@pytest.mark.parametrize(
    "params",
    [
        None,
        [],
        {},
        {"request": {}, "deadline_ms": 1, "hops": 0},
        {"request": {"messages": [{"role": "secret prompt", "content": "x"}]}, "deadline_ms": 1, "hops": 0},
        {"request": {"messages": []}, "deadline_ms": -1, "hops": 0},
        {"request": {"messages": []}, "deadline_ms": 10**12, "hops": 0},
        {"request": {"messages": []}, "deadline_ms": 1, "hops": "1"},
        {"request": {"messages": []}, "deadline_ms": 1, "hops": 0, "seen": ["x"] * 33},
    ],
    ids=str,
)
async def test_ill_typed_params_are_refused_without_repeating_them(autojump_clock, params):
    async with swarm_of(2) as (one, two):
        session = one.swarm._links.peers[two.id].session
        with pytest.raises(Exception, match="ill-typed") as caught:
            await session.request("generate", params)
        assert caught.value.code == "bad_request"
        assert "secret" not in str(caught.value)
        assert two.asked == []


async def test_an_unknown_method_is_refused(autojump_clock):
    async with swarm_of(2) as (one, two):
        with pytest.raises(Exception, match="unknown_method"):
            await one.swarm._links.peers[two.id].session.request("dance")
        assert one.sees(two)


async def test_a_peers_status_is_its_advert(autojump_clock):
    async with swarm_of(2) as (one, two):
        (provider,) = one.swarm.candidates_for(None)
        status = await provider.probe()
        assert status.ready
        assert [model.name for model in status.models] == ["tiny"]
        assert status.models[0].context_length == 2048
        assert status.default_model == "tiny"
        assert provider.name == f"peer:{two.id[-6:]}"


async def test_many_answers_share_the_session(autojump_clock):
    async with swarm_of(2) as (one, two):
        two.words = (*tuple(word for n in range(50) for word in (f"{n} ", 0.01)), Finish("stop"))
        done = []

        async def one_of_many() -> None:
            events, _ = await ask(one)
            done.append("".join(event.text for event in events[:-1]))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(one_of_many)
        assert done == ["".join(f"{n} " for n in range(50))] * 50
        assert len(one.swarm._links.peers[two.id].sessions) == 1


async def test_a_number_that_no_frame_holds_is_the_callers_and_not_the_peers_fault(autojump_clock):
    async with swarm_of(2) as (one, two):
        error = await failure(one, replace(REQUEST, extra={"x": 2**70}))
        assert error.kind == ErrorKind.BAD_REQUEST
        assert "64 bits" in error.message
        await ask(one)
        assert len(two.asked) == 1


async def test_what_is_not_typed_goes_to_the_peer_and_comes_back_from_it(autojump_clock):
    written = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA=="}}], "mood": 1}
    call = read_call(json.dumps({"model": "tiny", "messages": [written], "min_p": 0.1}).encode(), {})
    beside = {"answer": {"system_fingerprint": "fp"}, "message": {"annotations": [{"type": "x"}]}}
    async with swarm_of(2) as (one, two):
        two.words = ("Cold", Finish("stop", "tiny", beside))
        events, _ = await ask(one, call.request)
        assert events == [TextDelta("Cold"), Finish("stop", "tiny", beside)]
        asked = two.asked[0][0]
        assert [message.as_written() for message in asked.messages] == [written]
        assert asked.messages[0].shows
        assert asked.extra == {"min_p": 0.1}
