"""Load: what is full says so with a time to come back, and no caller takes the room of all others."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from shoal.node.routing.limits import RoutingLimits
from shoal.node.routing.no_answer import NoAnswer
from shoal.node.routing.shares import Shares
from shoal.node.rpc.errors import render
from shoal.providers.base import ErrorKind, Event, GenerateRequest, Provider, ProviderError, Status, TextDelta
from shoal.providers.gate import Gate

from .fakes_router import OTHER, STOP, Scripted, Wait, ask, hear, routing


def test_a_lone_caller_may_have_all_the_room() -> None:
    shares = Shares()
    for _ in range(100):
        assert shares.why_not("local", 100) is None
        shares.take("local")
    assert shares.why_not("local", 100) is not None


def test_who_comes_late_finds_room_and_who_holds_his_share_waits() -> None:
    shares = Shares()
    for _ in range(60):
        shares.take("greedy")
    assert shares.why_not("late", 100) is None
    shares.take("late")
    assert "your share" in str(shares.why_not("greedy", 100))
    assert shares.why_not("late", 100) is None


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=300), st.integers(1, 40))
def test_the_room_is_never_exceeded_and_all_of_it_is_given_back(steps: list[tuple[str, bool]], room: int) -> None:
    shares, held = Shares(), Counter[str]()
    for caller, comes in steps:
        if comes and shares.why_not(caller, room) is None:
            shares.take(caller)
            held[caller] += 1
        elif not comes and held[caller]:
            shares.give_back(caller)
            held[caller] -= 1
        assert shares.taken == sum(held.values()) <= room
    for caller in held.elements():
        shares.give_back(caller)
    assert shares.taken == 0
    assert shares._held == {}


async def test_a_peer_that_floods_the_node_leaves_room_for_this_machine() -> None:
    never = trio.Event()
    provider = Scripted("first", ["x", Wait(never)])
    async with (
        routing(provider, limits=RoutingLimits(max_in_flight=10)) as router,
        trio.open_nursery() as nursery,
    ):
        refused: list[NoAnswer] = []

        async def flood(n: int) -> None:
            try:
                async with router.answer_for_peer(GenerateRequest.of(f"{n}"), OTHER.peer_id, 60) as answer:
                    await answer.more()
                    await trio.sleep_forever()
            except NoAnswer as error:
                refused.append(error)

        async def local(n: int) -> None:
            async with router.answer(router.ask(GenerateRequest.of(f"local {n}"))) as answer:
                await answer.more()
                await trio.sleep_forever()

        for n in range(6):
            nursery.start_soon(flood, n)
        await trio.testing.wait_all_tasks_blocked()
        for n in range(4):
            nursery.start_soon(local, n)
        await trio.testing.wait_all_tasks_blocked()
        for n in range(20):
            nursery.start_soon(flood, 100 + n)
        await trio.testing.wait_all_tasks_blocked()
        assert router.in_flight == 10
        assert len(refused) == 20
        assert {(error.code, error.retry_after) for error in refused} == {("node_full", 1.0)}
        nursery.cancel_scope.cancel()


async def test_tokens_are_parties_and_a_provider_serves_them_in_turn() -> None:
    gate, served, go = Gate("first", running=1, waiting=9), [], trio.Event()

    class Gated(Provider):
        name = "first"

        async def probe(self) -> Status:
            return Status(ready=True, any_model=True)

        @asynccontextmanager
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[AsyncIterator[Event]]:
            async def events() -> AsyncGenerator[Event]:
                await go.wait()
                yield TextDelta("x")
                yield STOP

            async with gate:
                served.append(request.messages[-1].text)
                yield events()

    async def wants(token: str, text: str) -> None:
        await hear(router, router.ask(GenerateRequest.of(text), token=token))

    async with routing(Gated()) as router, trio.open_nursery() as nursery:
        for token, text in [("busy", "b1"), ("busy", "b2"), ("busy", "b3"), ("late", "l1")]:
            nursery.start_soon(wants, token, text)
            await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert served == ["b1", "b2", "l1", "b3"]


async def test_a_full_queue_is_a_429_with_a_time_to_come_back(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate("first", running=1, waiting=0)

    class Gated(Scripted):
        def generate(self, request: GenerateRequest):  # type: ignore[no-untyped-def, override]
            inner = super().generate(request)

            class Inside:
                async def __aenter__(self):  # type: ignore[no-untyped-def]
                    await gate.__aenter__()
                    return await inner.__aenter__()

                async def __aexit__(self, *exc: object):  # type: ignore[no-untyped-def]
                    await gate.__aexit__(None, None, None)
                    return await inner.__aexit__(*exc)

            return Inside()

    never = trio.Event()
    async with (
        routing(Gated("first", ["x", Wait(never), STOP])) as router,
        router.answer(router.ask(GenerateRequest.of("one"))) as answer,
    ):
        await answer.more()
        told = await ask(router, GenerateRequest.of("two"))
    assert told.error is not None
    status, headers, _ = render(told.error)
    assert status == 429
    assert ("retry-after", "1") in headers


@pytest.mark.parametrize("status", [503, 529])
async def test_an_overloaded_upstream_is_not_called_a_full_node(
    status: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with routing(Scripted("first", [ProviderError(ErrorKind.OVERLOADED, "busy", status=status)])) as router:
        told = await ask(router)
    assert told.error is not None
    assert render(told.error)[0] == 503
