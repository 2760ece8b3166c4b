"""`lead` and `join` on a session: who makes an answer, its text so far, and what a stranger gets instead."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from shoal.node.routing.no_answer import NoAnswer
from shoal.node.swarm import joining
from shoal.protocols.peer_id import PeerId
from shoal.protocols.session import CallError, Session
from shoal.providers.base import ErrorKind, Finish, GenerateRequest, ProviderError, TextDelta

from .fakes_swarm import FakeAnswer, FakeNode, swarm_of

KEY = b"\x01\x71\x12\x20" + bytes(32)
UNUSED = GenerateRequest.of("never sent")


class Generations:
    """A router's side of it. words: what is under way (None: nothing), as FakeAnswer's."""

    def __init__(self, leader: PeerId, words: Any = None) -> None:
        self.says, self.words = leader, words
        self.asked: list[Any] = []
        self.left = trio.Event()

    def leader(self, cid: bytes, asker: PeerId, lost: Collection[PeerId] = ()) -> PeerId:
        self.asked.append((cid, asker, tuple(lost)))
        return self.says

    @asynccontextmanager
    async def joined(self, cid: bytes, peer: PeerId, deadline_s: float) -> AsyncGenerator[FakeAnswer]:
        self.asked.append((cid, peer, deadline_s))
        if self.words is None:
            raise NoAnswer(ErrorKind.UNAVAILABLE, "There is no such answer under way here.")
        try:
            yield FakeAnswer(self.words)
        finally:
            self.left.set()


def attach(node: FakeNode, generations: Generations | None) -> None:
    node.swarm._generations = generations


def session(one: FakeNode, two: FakeNode) -> Session:
    found = one.swarm.peer(two.id).session
    assert found is not None
    return found


async def test_the_owner_says_who_leads(autojump_clock):
    async with swarm_of(3) as (one, two, three):
        attach(two, generations := Generations(three.id))
        assert await one.swarm.lead(two.id, KEY, {three.id}) == three.id
        assert generations.asked == [(KEY, one.id, (three.id,))]
        assert set(one.swarm.members()) >= {two.id}


async def test_an_owner_without_a_cache_and_a_peer_that_is_away_say_nothing(autojump_clock):
    async with swarm_of(2) as (one, two):
        assert await one.swarm.lead(two.id, KEY, ()) is None
        two.host.die()
        await trio.sleep(1)
        assert await one.swarm.lead(two.id, KEY, ()) is None
        assert one.swarm.joined(two.id, KEY) is None


async def test_who_joins_gets_the_events_and_sends_nothing_but_the_key(autojump_clock):
    async with swarm_of(2) as (one, two):
        attach(two, generations := Generations(two.id, ("Co", 0.5, "ld.", Finish("stop"))))
        provider = one.swarm.joined(two.id, KEY)
        assert provider is not None
        async with provider.generate_for(UNUSED, deadline_s=60.0, hops=1, seen=frozenset()) as answer:
            assert [event async for event in answer] == [TextDelta("Co"), TextDelta("ld."), Finish("stop")]
            assert answer.accepted == {"provider": "fake", "model": "tiny"}
            assert answer.result["record"] == b"signed"
        assert generations.asked == [(KEY, one.id, 60.0)]
        assert two.asked == []


async def test_leaving_is_noticed_over_there(autojump_clock):
    async with swarm_of(2) as (one, two):
        attach(two, generations := Generations(two.id, ("Co", 3600)))
        provider = one.swarm.joined(two.id, KEY)
        assert provider is not None
        async with provider.generate(UNUSED) as answer:
            assert await anext(answer) == TextDelta("Co")
        with trio.fail_after(0.25):
            await generations.left.wait()


async def test_what_is_not_under_way_is_refused_at_once(autojump_clock):
    async with swarm_of(2) as (one, two):
        attach(two, Generations(two.id))
        provider = one.swarm.joined(two.id, KEY)
        assert provider is not None
        with pytest.raises(ProviderError) as caught:
            async with provider.generate(UNUSED) as answer:
                await anext(answer)
        assert caught.value.kind is ErrorKind.UNAVAILABLE


@pytest.mark.parametrize("method", sorted(joining.METHODS))
@pytest.mark.parametrize(
    "params",
    [None, {}, [], {"request": "text"}, {"request": b""}, {"request": bytes(65)}, {"request": KEY, "lost": ["x"] * 9},
     {"request": KEY, "lost": 7, "deadline_ms": -1}],
)  # fmt: skip
async def test_ill_typed_params_are_refused_and_the_session_goes_on(autojump_clock, method, params):
    async with swarm_of(2) as (one, two):
        attach(two, Generations(two.id))
        with pytest.raises(CallError) as caught:
            await session(one, two).request(method, params)
        assert caught.value.code in (ErrorKind.BAD_REQUEST, ErrorKind.UNAVAILABLE)
        assert await one.swarm.lead(two.id, KEY, ()) == two.id


async def test_a_peer_without_the_role_cache_may_neither_ask_nor_join(autojump_clock, monkeypatch):
    async with swarm_of(2) as (one, two):
        attach(two, Generations(two.id, ("Co", Finish("stop"))))
        monkeypatch.setattr(two.swarm.admission, "may", lambda peer, role: role != "cache")
        for method in joining.METHODS:
            with pytest.raises(CallError) as caught:
                await session(one, two).request(method, {"request": KEY, "deadline_ms": 1000})
            assert caught.value.code == "not_allowed"
