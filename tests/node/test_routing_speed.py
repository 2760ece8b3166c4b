"""Which peer is asked first: what was measured, and for an answer that can be kept the one that its key picks."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from shoal.node.routing.candidate import Candidate
from shoal.node.routing.speed import ENOUGH, FORGET_S, Speed
from shoal.protocols.peer_id import Identity
from shoal.providers.base import GenerateRequest

from .fakes_router import QUESTION, Pause, Scripted, ScriptedPeer, ask, caching, routing, says

IDS = [Identity.from_seed(bytes([n]) * 32).peer_id for n in range(1, 6)]
PEERS = [Candidate(provider=ScriptedPeer(peer, says("x")), name=f"peer{i}", peer=peer) for i, peer in enumerate(IDS)]
HERE = Candidate(provider=Scripted("here", says("x")), name="here")
KEY = b"\x01" * 36


def names(found) -> list[str]:  # type: ignore[no-untyped-def]
    return [candidate.name for candidate in found]


def test_nothing_measured_changes_nothing() -> None:
    order = [PEERS[2], HERE, PEERS[0], PEERS[1]]
    assert names(Speed().ranked(order, 0, None)) == names(order)


def test_a_slow_peer_comes_after_the_others_and_is_tried_again_when_that_is_long_ago() -> None:
    speed = Speed()
    speed.answered(PEERS[0], 2.0, 100, 12.0, now=0)
    speed.answered(PEERS[1], 0.1, 100, 2.0, now=0)
    assert names(speed.ranked(PEERS[:3], 1, None)) == ["peer1", "peer2", "peer0"]
    assert names(speed.ranked(PEERS[:3], FORGET_S + 1, None)) == ["peer0", "peer1", "peer2"]


def test_a_peer_that_breaks_off_costs_more_than_it_takes() -> None:
    speed = Speed()
    for peer in PEERS[:2]:
        speed.answered(peer, 0.1, 100, 2.0, now=0)
    for _ in range(4):
        speed.failed(PEERS[0], now=0)
    assert names(speed.ranked(PEERS[:2], 1, None)) == ["peer1", "peer0"]


def test_the_providers_of_this_node_keep_their_place() -> None:
    speed = Speed()
    speed.answered(HERE, 50.0, 2, 100.0, now=0)
    speed.answered(PEERS[0], 2.0, 100, 12.0, now=0)
    speed.answered(PEERS[1], 0.1, 100, 2.0, now=0)
    assert names(speed.ranked([HERE, *PEERS[:2]], 1, None)) == ["here", "peer1", "peer0"]


def test_every_node_picks_the_same_peer_for_a_key_and_keys_spread_over_the_peers() -> None:
    firsts = Counter()
    for n in range(500):
        key = n.to_bytes(36, "big")
        one, other = Speed().ranked(PEERS, 0, key), Speed().ranked(PEERS[::-1], 0, key)
        assert names(one) == names(other)
        firsts[one[0].name] += 1
    assert min(firsts.values()) > 60


def test_without_a_peer_only_the_keys_of_that_peer_move() -> None:
    for n in range(100):
        key = n.to_bytes(36, "big")
        all_of_them = names(Speed().ranked(PEERS, 0, key))
        fewer = names(Speed().ranked([p for p in PEERS if p.name != "peer3"], 0, key))
        assert fewer == [name for name in all_of_them if name != "peer3"]


def test_what_is_slow_for_one_is_known_after_enough_measurements() -> None:
    speed = Speed()
    for n in range(ENOUGH - 1):
        speed.answered(HERE, 0.1 * n, 2, 1.0, now=0)
    assert speed.slow_after(HERE) is None
    speed.answered(HERE, 5.0, 2, 6.0, now=0)
    assert speed.slow_after(HERE) == 5.0


def test_what_is_remembered_is_bounded() -> None:
    speed = Speed(max_entries=10)
    for n in range(100):
        speed.answered(Candidate(provider=HERE.provider, name=f"n{n}"), 0.1, 2, 0.2, now=n)
    assert len(speed._measured) == 10


async def test_in_the_router_the_faster_peer_is_found(autojump_clock: trio.testing.MockClock) -> None:
    slow = ScriptedPeer(IDS[0], [Pause(3), *says("Cold.")])
    fast = ScriptedPeer(IDS[1], says("Cold."))
    async with routing(fast) as router:
        peers = [(await ask(router)).peer]
        # The slow one comes into the swarm; it is asked once, because nothing was measured there.
        router._source.listed.insert(0, Candidate(provider=slow, name=slow.name, peer=slow.peer))  # type: ignore[attr-defined]
        peers += [(await ask(router, GenerateRequest.of(f"Question {n}?"))).peer for n in range(3)]
    assert peers == [IDS[1], IDS[0], IDS[1], IDS[1]]


@pytest.mark.parametrize("order", [1, -1])
async def test_a_cacheable_question_goes_to_the_peer_of_its_key_whatever_the_order(order: int) -> None:
    peers = [ScriptedPeer(peer, says("Cold.")) for peer in IDS]
    async with caching() as cache, routing(*peers[::order], cache=cache) as router:
        told = await ask(router, QUESTION)
        key = cache.key(QUESTION)
        assert key is not None
        assert told.peer == Speed().ranked(PEERS, 0, key.cid)[0].peer
