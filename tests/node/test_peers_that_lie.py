"""Peers that are slow, or that say in their adverts what is not so: each costs a moment, once, and no answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from shoal.node.routing.candidates import NodeCandidates
from shoal.node.routing.router import Router
from shoal.node.swarm.advert import AdvertContent, Load, OfferedModel, SharedProvider
from shoal.node.swarm.load import NOTE, Digest
from shoal.providers.base import ErrorKind, Finish, GenerateRequest, ModelInfo

from .fakes_router import ME, Shelf, Told, ask
from .fakes_swarm import FakeNode, refused, swarm_of, until

Clock = trio.testing.MockClock
HONEST: Sequence[Any] = ("Co", 0.1, "ld.", Finish("stop", "tiny"))
QUESTIONS = 12


def claiming(*models: str, tps: float = 50.0, context: int = 2048) -> AdvertContent:
    return AdvertContent(
        models=tuple(OfferedModel("fake", ModelInfo(m, context_length=context, decode_tps=tps)) for m in models),
        providers=(SharedProvider("fake", default_model=models[0], max_concurrent=1_000_000),),
        hardware={"gpu": "a very large one"},
        version="0.1.0",
        load=Load(running=0, cpu=0.0),
    )


@asynccontextmanager
async def asker(
    *, model: str = "tiny", lie: AdvertContent | None = None
) -> AsyncGenerator[tuple[Router, list[FakeNode]]]:
    """A router without a provider of its own and two peers, of which the first lies."""
    async with swarm_of(3) as (me, liar, honest):
        for node in (liar, honest):
            node.words, node.content = HONEST, claiming(model)
        liar.content = lie or claiming(model)
        for node in (liar, honest):
            node.swarm.changed()

        def told() -> bool:
            offered = [p.peer for p in me.swarm.candidates_for(model)]
            return {liar.id, honest.id} <= set(offered)

        await until(told)
        router = Router(NodeCandidates(Shelf(), me.swarm), signer=ME)
        async with router.running():
            yield router, [liar, honest]


async def questions(router: Router, model: str = "tiny", count: int = QUESTIONS) -> list[Told]:
    return [await ask(router, GenerateRequest.of(f"Question {n}", model=model, temperature=0.7)) for n in range(count)]


async def test_a_peer_that_claims_a_model_it_cannot_serve_is_asked_once(autojump_clock: Clock) -> None:
    async with asker() as (router, (liar, honest)):
        liar.words = (refused(ErrorKind.UNAVAILABLE),)
        told = await questions(router)
    assert {t.text for t in told} == {"Cold."}
    assert len(liar.asked) <= 1
    assert len(honest.asked) == QUESTIONS


@pytest.mark.parametrize("slow", [3.0, 20.0], ids=["slow", "very slow"])
async def test_a_peer_that_claims_a_great_speed_and_no_load_is_left_when_it_is_slow(
    autojump_clock: Clock, slow: float
) -> None:
    async with asker(lie=claiming("tiny", tps=1e9, context=1_000_000)) as (router, (liar, honest)):
        liar.words = ("Co", slow, "ld.", Finish("stop", "tiny"))
        session = liar.swarm._links.sessions()[0]

        async def boast() -> None:
            while True:
                session.send_note(NOTE, Digest(running=0, cpu=0.0).encode())
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(boast)
            told = await questions(router)
            nursery.cancel_scope.cancel()
    assert {t.text for t in told} == {"Cold."}
    peers = [t.peer for t in told]
    known = max(peers.index(node.id) for node in (liar, honest) if node.id in peers)
    assert set(peers[known + 1 :]) <= {honest.id}, "once both were measured, what is claimed does not count"


async def test_a_peer_that_promises_a_long_context_and_has_a_short_one_refuses_for_itself_alone(
    autojump_clock: Clock,
) -> None:
    async with asker(lie=claiming("tiny", context=1_000_000)) as (router, (liar, honest)):
        liar.words = (refused(ErrorKind.CONTEXT_LENGTH),)
        honest.content = claiming("tiny", context=2_000_000)
        honest.swarm.changed()
        await trio.sleep(1)
        told = await questions(router)
    assert {t.text for t in told} == {"Cold."}


@pytest.mark.parametrize("kind", [ErrorKind.BAD_REQUEST, ErrorKind.CONTENT_FILTER])
async def test_a_peer_that_refuses_everything_cannot_refuse_for_the_others(
    autojump_clock: Clock, kind: ErrorKind
) -> None:
    async with asker() as (router, (liar, _)):
        liar.words = (refused(kind),)
        told = await questions(router)
    assert {t.text for t in told} == {"Cold."}


@pytest.mark.parametrize(
    "words",
    [("Co",), ("Co", "ld.", 3600), (3600,), ({"no": "event"},), ("Co", ["f"])],
    ids=["no end", "stalls at its end", "silent", "nonsense", "a broken end"],
)
async def test_a_peer_that_begins_and_does_not_end_costs_no_answer(autojump_clock: Clock, words: Sequence[Any]) -> None:
    async with asker() as (router, (liar, honest)):
        liar.words = words
        told = await questions(router, count=3)
        # At this temperature another text may come: what matters is that it is whole, or a clean error.
        outcomes = Counter("whole" if t.error is None else str(t.error.kind) for t in told)
    assert outcomes["whole"] >= 2
    assert all("Cold.".startswith(t.text) for t in told)
    assert len(honest.asked) >= 2
