"""An answer that comes through a relay, and the end of that line in the middle of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from shoal.node.swarm import resumption
from shoal.node.swarm.resumption import GRACE_S, MAX_KEPT_EVENTS, RESUME
from shoal.protocols.session import CallError
from shoal.providers.base import ErrorKind, Finish, GenerateRequest, ProviderError, TextDelta

from .fakes_swarm import FakeNode, until
from .test_swarm_direct import relayed_pair

REQUEST = GenerateRequest.of("What is the opposite of hot?")
END = Finish("stop", "tiny")


def cut(one: FakeNode, two: FakeNode) -> None:
    """As when the relay between them is gone; the next dial finds another."""
    one.host._network.link(one.id, two.id).cut()


async def told(answer: Any, pause_after: int, then: Any) -> list[Any]:
    """All events of an answer; after so many of them `then` happens."""
    events = []
    async for event in answer:
        events.append(event)
        if len(events) == pause_after:
            then()
    return events


async def test_the_rest_of_the_same_answer_comes_on_another_line(autojump_clock: Any) -> None:
    async with relayed_pair() as (one, two):
        one.words = ("a", "b", 0.3, "c", "d", END)
        (provider,) = two.swarm.candidates_for(None)
        async with provider.generate(REQUEST) as answer:
            events = await told(answer, 2, lambda: cut(one, two))
        assert events == [TextDelta("a"), TextDelta("b"), TextDelta("c"), TextDelta("d"), END]
        assert answer.result["record"] == b"signed"
        assert len(one.asked) == 1, "it was made once"


async def test_an_answer_may_be_taken_up_again_many_times(autojump_clock: Any) -> None:
    async with relayed_pair() as (one, two):
        one.words = (*(word for n in range(5) for word in (f"{n}", 0.5)), END)
        (provider,) = two.swarm.candidates_for(None)
        texts = []
        async with provider.generate(REQUEST) as answer:
            async for event in answer:
                texts.append(event)
                if isinstance(event, TextDelta):
                    cut(one, two)
        assert texts == [*(TextDelta(f"{n}") for n in range(5)), END]
        assert len(one.asked) == 1


async def test_an_answer_whose_end_alone_was_lost_is_whole(autojump_clock: Any) -> None:
    async with relayed_pair() as (one, two):
        one.words = ("a", END, 0.2)
        (provider,) = two.swarm.candidates_for(None)
        async with provider.generate(REQUEST) as answer:
            assert await told(answer, 2, lambda: cut(one, two)) == [TextDelta("a"), END]
        assert answer.result is not None


async def test_what_is_kept_stays_within_its_bytes_and_who_listens_hears_all_of_it(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumption, "MAX_KEPT_BYTES", 20_000)
    async with relayed_pair() as (one, two):
        one.words = (*(word for n in range(100) for word in (f"{n} " + 1000 * "x", 0.01)), END)
        (provider,) = two.swarm.candidates_for(None)
        room = one.swarm._resumption._room
        used = []
        async with provider.generate(REQUEST) as answer:
            async for event in answer:
                used.append(room.used)
                last = event
                if len(used) in (10, 60):  # on time, and with nothing lost, though much was let go before
                    cut(one, two)
        assert (len(used), last) == (101, END)
        assert 10_000 < max(used) < 30_000
        assert len(one.asked) == 1
        await trio.sleep(2 * GRACE_S)
        assert room.used == 0


async def test_an_answer_that_nobody_hears_is_made_no_further_than_there_is_room(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumption, "MAX_KEPT_BYTES", 20_000)
    async with relayed_pair() as (one, two):
        answering, call = one.swarm._resumption, _Deaf()
        with pytest.raises(trio.TooSlowError), trio.fail_after(1):
            await answering.serve(call, "t" * 16, two.id, _said(100 * ["x" * 1000]), 60.0)  # type: ignore[arg-type]
        assert answering._room.used < 25_000
        await trio.sleep(2 * GRACE_S)
        assert answering._room.used == 0
        assert not answering._kept


class _Deaf:
    """A call whose line takes nothing."""

    cancelled_by_peer = False

    async def accept(self, body: Any) -> None:
        await trio.sleep_forever()


@asynccontextmanager
async def _said(words: list[str]) -> AsyncIterator[Any]:
    class Answer:
        provider, model = "tiny", "tiny"

        def result(self) -> Any:
            return None

        async def __aiter__(self) -> AsyncIterator[Any]:
            for word in words:
                yield TextDelta(word)

    yield Answer()


async def test_a_direct_line_that_ends_is_the_end_of_its_answer(autojump_clock: Any) -> None:
    """There the peer itself is gone, and somebody else can go on at once."""
    async with relayed_pair() as (one, two):
        one.host._network.link(one.id, two.id).relayed = False
        two.swarm.went_direct(one.id)
        await until(lambda: not any(view.via == "relayed" for view in two.swarm.peers()))
        one.words = ("a", 0.3, "b", END)
        (provider,) = two.swarm.candidates_for(None)
        began = trio.current_time()
        with pytest.raises(ProviderError) as failed:
            async with provider.generate(REQUEST) as answer:
                await told(answer, 1, lambda: cut(one, two))
        assert failed.value.kind is ErrorKind.INTERRUPTED
        assert trio.current_time() - began < 0.2


async def test_a_peer_that_is_really_gone_is_given_up_as_soon_as_a_dial_fails(autojump_clock: Any) -> None:
    async with relayed_pair() as (one, two):
        one.words = ("a", 30.0, END)
        (provider,) = two.swarm.candidates_for(None)
        began = trio.current_time()
        with pytest.raises(ProviderError) as failed:
            async with provider.generate(REQUEST) as answer:
                await told(answer, 1, one.host.die)
        assert failed.value.kind is ErrorKind.INTERRUPTED
        assert trio.current_time() - began < 1


async def test_a_caller_who_leaves_ends_the_work(autojump_clock: Any) -> None:
    async with relayed_pair() as (one, two):
        one.words = ("a", 30.0, END)
        (provider,) = two.swarm.candidates_for(None)
        began = trio.current_time()
        async with provider.generate(REQUEST) as answer:
            await anext(answer)
        await one.cancelled.wait()
        assert trio.current_time() - began < 0.5


async def test_a_caller_who_leaves_after_taking_it_up_again_ends_the_work_too(autojump_clock: Any) -> None:
    async with relayed_pair() as (one, two):
        one.words = ("a", 0.2, "b", 30.0, END)
        (provider,) = two.swarm.candidates_for(None)
        async with provider.generate(REQUEST) as answer:
            await anext(answer)
            cut(one, two)
            assert await anext(answer) == TextDelta("b")
        began = trio.current_time()
        await one.cancelled.wait()
        assert trio.current_time() - began < 0.5


async def test_work_for_a_caller_who_does_not_come_back_ends_after_a_while(autojump_clock: Any) -> None:
    async with relayed_pair() as (one, two):
        one.words = ("a", 600.0, END)
        (provider,) = two.swarm.candidates_for(None)
        with pytest.raises(ProviderError):
            async with provider.generate(REQUEST) as answer:
                await told(answer, 1, two.host.die)
        began = trio.current_time()
        await one.cancelled.wait()
        assert trio.current_time() - began <= GRACE_S + 1
        await until(lambda: not one.swarm._resumption._kept)


async def test_nobody_gets_an_answer_that_was_made_for_another(autojump_clock: Any) -> None:
    async with relayed_pair() as (one, two):
        one.words = ("a", 30.0, END)
        (provider,) = two.swarm.candidates_for(None)
        async with provider.generate(REQUEST) as answer:
            await anext(answer)
            [(owner, ticket)] = one.swarm._resumption._kept
            assert owner == two.id
            session = one.swarm._links.peers[two.id].session
            assert session is not None
            for params in (
                {"ticket": ticket, "got": 0},  # asked of the node that has made nothing
                {"ticket": "f" * 32, "got": 0},
                {"ticket": ticket, "got": MAX_KEPT_EVENTS},
            ):
                with pytest.raises(CallError, match="gone"):
                    await session.request(RESUME, params)
            for params in ({"ticket": "short", "got": 0}, {"ticket": ticket, "got": -1}, {"ticket": ticket}, None, []):
                with pytest.raises(CallError, match="bad_request"):
                    await session.request(RESUME, params)


async def test_a_listener_that_is_displaced_leaves_the_answer_alone(autojump_clock: Any) -> None:
    """The asker has lost its session before this side has noticed: the old line must not end the work."""
    async with relayed_pair() as (one, two):
        one.words = ("a", 1.0, "b", END)
        (provider,) = two.swarm.candidates_for(None)
        async with provider.generate(REQUEST) as answer:
            assert await anext(answer) == TextDelta("a")
            [(_, ticket)] = one.swarm._resumption._kept
            session = two.swarm._links.peers[one.id].session
            assert session is not None
            events = []
            async with session.call(RESUME, {"ticket": ticket, "got": 0}) as call:
                async for item in call:
                    events.append(item)
            assert events[:2] == [["t", "a"], ["t", "b"]]
            assert len(events) == 3
            with pytest.raises(ProviderError):
                await anext(answer)
        assert not one.cancelled.is_set()
