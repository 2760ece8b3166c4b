"""A peer with a valid key that misbehaves on its session, over real libp2p: it is dropped, and others go on.

What a stranger does before a session is in tests/protocols/test_p2p_abuse.py, each limit of a session by itself in
tests/protocols/test_session_life.py.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from shoal.node.swarm.links import PROTOCOL
from shoal.protocols import framing
from shoal.protocols.framing import CALL, ERROR, GOAWAY, HELLO, PART, PING, encode_body, frame, parts
from shoal.protocols.p2p.errors import StreamLost
from shoal.protocols.p2p.host import Host
from shoal.protocols.session import Hello, SessionLimits
from shoal.providers.base import Finish, GenerateRequest

from tests.node.fakes_swarm import IDENTITIES, FakeNode, until
from tests.node.test_swarm_libp2p import real_node
from tests.protocols.fakes_session import RawPeer

REQUEST = GenerateRequest.of("What is the opposite of hot?")
EVIL = IDENTITIES[7]
LIMITS = SessionLimits(hello_timeout_s=1.0, body_timeout_s=1.0, idle_ping_s=0.5)


@asynccontextmanager
async def under_attack() -> AsyncIterator[tuple[FakeNode, RawPeer]]:
    """A victim in the middle of an answer to a friend, and an attacker's fresh stream to it."""
    async with real_node(0) as victim, real_node(1) as friend:
        victim.swarm._links._limits = LIMITS
        await friend.swarm.join(victim.swarm.invite())
        await until(lambda: friend.sees(victim))
        victim.words = ("a", 0.5, "b", 0.5, "c", Finish("stop", "tiny"))
        attacker = Host(EVIL, [])
        async with attacker.running():
            await attacker.connect(victim.id, victim.host.addresses())
            (provider,) = friend.swarm.candidates_for(None)
            async with provider.generate(REQUEST) as answer:
                await anext(answer)
                session = friend.swarm._links.peers[victim.id].session
                yield victim, RawPeer(await attacker.open_stream(victim.id, PROTOCOL))
                assert len([event async for event in answer]) == 3
                assert friend.swarm._links.peers[victim.id].session is session
        await until(lambda: EVIL.peer_id not in victim.host.connected())


def hello(**changes: Any) -> bytes:
    return frame(HELLO, 0, Hello(**{"swarm": "test", "peer": EVIL.peer_id, "agent": "evil", **changes}))


def generate(call_id: int, **changes: Any) -> bytes:
    params = {"request": REQUEST, "deadline_ms": 1000, "hops": 0, "seen": [EVIL.peer_id], **changes}
    return frame(CALL, call_id, ["generate", params])


async def flood(peer: RawPeer) -> None:
    for _ in range(60):
        await peer.stream.write(frame(PING, 1) * 1000)


async def half_open(peer: RawPeer) -> None:
    """Calls that begin large and never end."""
    for number in range(8):
        body = encode_body(["generate", "x" * 8_000_000])
        await peer.stream.write(next(parts(CALL, 2 * number + 1, body)))


def sends(*pieces: bytes) -> Callable[[RawPeer], Awaitable[None]]:
    async def attack(peer: RawPeer) -> None:
        for piece in pieces:
            await peer.stream.write(piece)

    return attack


@pytest.mark.parametrize(
    ("greeting", "attack", "reason"),
    [
        pytest.param(b"", sends(), "", id="silence"),
        pytest.param(b"\0\0\0\x08\x93", sends(), "", id="half a hello"),
        pytest.param(hello(peer=IDENTITIES[1].peer_id), sends(), "another peer", id="identity spoofing"),
        pytest.param(hello(), sends(hello()), "not known, or not allowed", id="a replayed hello"),
        pytest.param(hello(), sends(generate(1), generate(1)), "not a new one", id="a replayed call"),
        pytest.param(hello(), sends(generate(2)), "not a new one", id="an id of the other side"),
        pytest.param(hello(), sends(struct.pack(">I", 2**31)), "limit", id="a frame bomb"),
        pytest.param(hello(), sends(frame(CALL, 1, ["x", [[]] * 20_000])), "values", id="an array bomb"),
        pytest.param(hello(), sends(frame(framing.DELTA, 2, 1)), "never was", id="an answer that nobody asked for"),
        pytest.param(hello(), sends(frame(framing.CREDIT, 1, -1)), "malformed credit", id="negative credit"),
        pytest.param(hello(), sends(frame(framing.NOTE, 0, ["news", []]) * 200), "notes a second", id="notes"),
        pytest.param(hello(), sends(frame(framing.ADVERT, 0, [b"", b""]) * 50), "adverts a second", id="adverts"),
        pytest.param(hello(), flood, "frames a second", id="a flood of frames"),
        pytest.param(hello(), half_open, "did not come within", id="half-open calls"),
        pytest.param(hello(), sends(frame(PART, 1, [CALL, 1 << 20, b""])), "part", id="an empty part"),
    ],
)
async def test_the_abuser_is_dropped_and_the_others_notice_nothing(
    greeting: bytes, attack: Callable[[RawPeer], Awaitable[None]], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with under_attack() as (victim, peer):
        with trio.fail_after(10):
            try:
                await peer.stream.write(greeting)
                await attack(peer)
                while True:
                    await peer.hear(GOAWAY)
            except (EOFError, StreamLost):
                pass
        await until(lambda: not victim.swarm.is_connected(EVIL.peer_id))
        assert reason in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"seen": [IDENTITIES[0].peer_id]}, id="a loop"),
        pytest.param({"hops": 99}, id="too many hops"),
        pytest.param({"hops": -1}, id="fewer than no hops"),
        pytest.param({"seen": [EVIL.peer_id] * 40}, id="a path without end"),
        pytest.param({"deadline_ms": -5}, id="a deadline in the past"),
        pytest.param({"request": {"messages": "hot?"}}, id="no request"),
    ],
)
async def test_a_lie_about_a_requests_way_is_refused_before_anybody_is_asked(changes: dict[str, Any]) -> None:
    async with under_attack() as (victim, peer):
        await peer.stream.write(hello() + generate(1, **changes))
        with trio.fail_after(5):
            kind, call_id, body = await peer.hear(ERROR, framing.END)
        assert (kind, call_id) == (ERROR, 1)
        assert body[0] in ("unavailable", "bad_request")
        assert len(victim.asked) == 1  # the friend's
        await peer.stream.reset()


async def test_more_calls_than_a_peer_may_have_are_refused_and_cost_nobody_else() -> None:
    async with under_attack() as (victim, peer):
        await peer.stream.write(hello())
        await peer.hear(HELLO)
        for number in range(300):
            await peer.stream.write(generate(2 * number + 1, deadline_ms=60_000))
        with trio.fail_after(10):
            _, _, body = await peer.hear(ERROR)
        assert body[0] == "busy"
        assert len(victim.asked) <= 1 + LIMITS.max_calls
        await peer.stream.reset()
