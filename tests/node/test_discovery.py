"""What a node announces in its swarm's DHT and when, and whom it connects to for what was found there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from shoal.node.swarm import discovery
from shoal.node.swarm.discovery import Discovery, DiscoveryLimits, answer_key, model_key, protocol_of
from shoal.protocols.peer_id import PeerId

from .fakes_swarm import IDENTITIES, FakeNetwork, FakeNode, until

LIMITS = DiscoveryLimits(announce_every_s=10.0, announce_batch=3, announced_answers=5, answer_ttl_s=600, model_ttl_s=60)
REQUESTS = [bytes([n]) * 32 for n in range(9)]
CID = b"\x01\x71\x12\x20" + REQUESTS[0]


class FakeDht:
    """records: key -> providers with addresses. told: what was announced, in order."""

    def __init__(self) -> None:
        self.records: dict[bytes, list[tuple[PeerId, tuple[str, ...]]]] = {}
        self.told: list[tuple[float, bytes, float]] = []
        self.met: dict[PeerId, tuple[str, ...]] = {}
        self.located: dict[PeerId, tuple[str, ...]] = {}
        self.searches = self.refreshed = 0
        self.moves: list[str] = []
        self.refuses = False
        self.after = 0.0

    def meet(self, peer: PeerId, told: Sequence[str] = ()) -> None:
        self.met[peer] = tuple(told)

    def release(self, peer: PeerId) -> None:
        pass

    def move(self, protocol: str, swarm: str) -> None:
        self.moves.append(protocol)
        self.met.clear()

    async def find_providers(self, key: bytes, found: Callable[[PeerId, tuple[str, ...]], object]) -> None:
        self.searches += 1
        await trio.sleep(self.after)
        for peer, at in self.records.get(key, ()):
            if found(peer, at) is True:
                return

    async def locate(self, peer: PeerId) -> tuple[str, ...]:
        return self.located.get(peer, ())

    async def refresh(self, key: bytes | None = None) -> int:
        self.refreshed += 1
        return 0

    async def provide(self, keys: Sequence[tuple[bytes, float]]) -> set[bytes]:
        self.told += [(trio.current_time(), key, ttl_s) for key, ttl_s in keys]
        return set() if self.refuses else {key for key, _ in keys}

    async def publish_self(self, ttl_s: float) -> int:
        return 1

    def known(self) -> list[PeerId]:
        return list(self.met)

    def stats(self) -> dict[str, object]:
        return {}


class Seat:
    """One node of a swarm in memory, with a DHT that says what the test wants."""

    def __init__(self, node: FakeNode) -> None:
        self.node, self.dht = node, FakeDht()
        self.models: list[str] = []
        self.stored: list[bytes] = []
        self.evicted: set[bytes] = set()
        self.discovery = Discovery(
            self.dht,
            node.swarm,
            LIMITS,
            private=None,
            models=lambda: self.models,
            answers=self._answers,
            still=self._still,
        )
        node.swarm._on_change = self.discovery.peers_changed

    async def _answers(self, limit: int) -> list[bytes]:
        return self.stored[:limit]

    async def _still(self, requests: Sequence[bytes]) -> set[bytes]:
        return set(requests) - self.evicted


@asynccontextmanager
async def a_row(count: int, *, hearing: bool = False) -> Any:
    """Nodes that know their neighbours alone: the first is the one that is looked at."""
    network = FakeNetwork()
    async with AsyncExitStack() as stack:
        nodes = []
        for number in range(count):
            node = FakeNode(network, number, neighbours=0, heard=1024 if hearing else 0)
            nodes.append(await stack.enter_async_context(node.running()))
            if number:
                await node.swarm.join(nodes[-2].swarm.invite())
        seat = Seat(nodes[0])
        seat.discovery.peers_changed()
        yield seat, nodes


async def test_a_model_of_a_stranger_becomes_a_candidate(autojump_clock: trio.testing.MockClock) -> None:
    async with a_row(3) as (seat, nodes):
        far = nodes[2]
        seat.dht.records[model_key("test", "tiny")] = [(far.id, tuple(far.host.addresses()))]
        assert not nodes[0].sees(far)
        assert await seat.discovery.find_model("tiny", 1.5)
        assert far.id in [provider.peer for provider in nodes[0].swarm.candidates_for("tiny")]


async def test_a_provider_that_does_not_offer_it_after_all_is_no_find(autojump_clock: trio.testing.MockClock) -> None:
    async with a_row(3) as (seat, nodes):
        far = nodes[2]
        seat.dht.records[model_key("test", "huge")] = [(far.id, tuple(far.host.addresses()))]
        assert not await seat.discovery.find_model("huge", 1.5)
        assert not await seat.discovery.find_model("huge", 1.5)
        assert seat.dht.searches == 1, "what was not found is not searched for again at once"
        await trio.sleep(discovery.MISSED_S)
        await seat.discovery.find_model("huge", 1.5)
        assert seat.dht.searches == 2


async def test_an_answer_of_a_stranger_is_asked_for_over_a_new_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_row(3) as (seat, nodes):
        far = nodes[2]
        far.blocks[CID] = b"block"
        seat.dht.records[answer_key(CID)] = [(far.id, tuple(far.host.addresses()))]
        assert await seat.discovery.find_answers(CID, 1.0) == [b"block"]
        assert nodes[0].swarm.is_connected(far.id)
        assert seat.discovery.found == {"model": 0, "answer": 1}


async def test_who_has_moved_is_found_by_its_own_record(autojump_clock: trio.testing.MockClock) -> None:
    async with a_row(3) as (seat, nodes):
        far = nodes[2]
        far.blocks[CID] = b"block"
        seat.dht.records[answer_key(CID)] = [(far.id, (f"/ip4/192.0.2.9/tcp/1/p2p/{far.id}",))]
        seat.dht.located[far.id] = tuple(far.host.addresses())
        assert await seat.discovery.find_answers(CID, 10.0) == [b"block"]


async def test_a_search_takes_no_longer_than_it_may(autojump_clock: trio.testing.MockClock) -> None:
    async with a_row(2) as (seat, _):
        seat.dht.after = 60
        began = trio.current_time()
        assert await seat.discovery.find_answers(CID, 0.05) == []
        assert trio.current_time() - began == pytest.approx(0.05)


async def test_only_a_few_of_many_providers_are_connected_to(autojump_clock: trio.testing.MockClock) -> None:
    async with a_row(2) as (seat, nodes):
        crowd = [(PeerId(f"12D3KooW{n:044d}"), ()) for n in range(100)]
        seat.dht.records[answer_key(CID)] = crowd
        await seat.discovery.find_answers(CID, 1.0)
        assert len(nodes[0].swarm._links.peers) <= 1 + discovery.MAX_FOUND


def silent(node: FakeNode, *peers: PeerId) -> list[PeerId]:
    """From now on nobody answers this node's dials of these peers; whom it has dialled of them."""
    connect, dialled = node.host.connect, list[PeerId]()

    async def hang(peer_id: PeerId, addrs: Sequence[str]) -> None:
        if peer_id not in peers:
            await connect(peer_id, addrs)
            return
        dialled.append(peer_id)
        await trio.sleep_forever()

    node.host.connect = hang
    return dialled


async def test_a_dead_provider_costs_one_deadline_and_is_left_alone_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_row(2) as (seat, nodes):
        dead = IDENTITIES[20].peer_id
        seat.dht.records[answer_key(CID)] = [(dead, (f"/ip4/192.0.2.9/tcp/1/p2p/{dead}",))]
        seat.dht.located[dead] = (f"/ip4/192.0.2.8/tcp/1/p2p/{dead}",)  # it has moved, and is dead there, too
        dialled = silent(nodes[0], dead)
        began = trio.current_time()
        assert await seat.discovery.find_answers(CID, 60.0) == []
        assert trio.current_time() - began == pytest.approx(discovery.REACH_S)
        began, dialled[:] = trio.current_time(), []
        assert await seat.discovery.find_answers(CID, 60.0) == []
        assert (trio.current_time() - began, dialled) == (0.0, [])


async def test_dead_providers_do_not_keep_a_living_one_from_being_found(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_row(3) as (seat, nodes):
        far, dead = nodes[2], [identity.peer_id for identity in IDENTITIES[20 : 20 + discovery.ASKED + 1]]
        far.blocks[CID] = b"block"
        there = [(peer, (f"/ip4/192.0.2.9/tcp/1/p2p/{peer}",)) for peer in dead]
        seat.dht.records[answer_key(CID)] = [*there, (far.id, tuple(far.host.addresses()))]
        silent(nodes[0], *dead)
        began = trio.current_time()
        assert await seat.discovery.find_answers(CID, 60.0) == [b"block"]
        assert trio.current_time() - began < 1.0


async def test_who_stops_takes_its_announcements_back(autojump_clock: trio.testing.MockClock) -> None:
    async with a_row(2) as (seat, _), announcing(seat):
        seat.models = ["tiny"]
        seat.discovery.answered(REQUESTS[0])
        await trio.sleep(5)
        since = trio.current_time()
        await seat.discovery.withdraw()
        assert set(keys(seat, since)) == {(model_key("test", "tiny"), 0.0), (answer_key(REQUESTS[0]), 0.0)}
        seat.discovery.changed()
        await trio.sleep(200)
        assert len(keys(seat, since)) == 2, "nothing is announced any more"


async def test_who_stops_does_not_wait_for_nodes_that_do_not_answer(autojump_clock: trio.testing.MockClock) -> None:
    async with a_row(2) as (seat, _), announcing(seat):
        seat.models = ["tiny"]
        await trio.sleep(5)

        async def hang(keys: Any) -> set[bytes]:
            await trio.sleep_forever()

        seat.dht.provide = hang
        began = trio.current_time()
        await seat.discovery.withdraw()
        assert trio.current_time() - began == pytest.approx(LIMITS.withdraw_s)


async def test_in_a_small_swarm_where_all_are_connected_nobody_is_asked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_row(2, hearing=True) as (seat, nodes):
        # Nodes with no limit on neighbours hear of everybody, and all that they have heard of are connected.
        nodes[0].swarm._around._wanted = 32
        await until(lambda: nodes[0].sees(nodes[1]))
        assert nodes[0].swarm.knows_everyone()
        assert await seat.discovery.find_answers(CID, 1.0) == []
        assert seat.dht.searches == 0


@asynccontextmanager
async def announcing(seat: Seat) -> Any:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(seat.discovery.run)
        yield
        nursery.cancel_scope.cancel()


def keys(seat: Seat, since: float = 0.0) -> list[tuple[bytes, float]]:
    return [(key, ttl_s) for at, key, ttl_s in seat.dht.told if at >= since]


async def test_models_are_announced_again_before_they_expire_and_taken_back_when_they_go(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_row(2) as (seat, _), announcing(seat):
        seat.models = ["tiny"]
        began = trio.current_time()
        await trio.sleep(100)
        times = [at - began for at, key, ttl_s in seat.dht.told if ttl_s]
        assert 2 <= len(times) <= 4
        assert all(30 <= later - earlier < 60 for earlier, later in itertools.pairwise(times))
        seat.models = []
        seat.discovery.changed()
        since = trio.current_time()
        await trio.sleep(5)
        assert keys(seat, since) == [(model_key("test", "tiny"), 0.0)]


async def test_answers_are_announced_in_batches_the_newest_first_and_not_too_many(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_row(2) as (seat, _):
        seat.stored = REQUESTS[:2]  # of an earlier run
        async with announcing(seat):
            for request in REQUESTS[2:]:
                seat.discovery.answered(request)
            await trio.sleep(4)
            assert [key for key, _ in keys(seat)] == [answer_key(request) for request in reversed(REQUESTS[6:])]
            await trio.sleep(20)
            assert len(keys(seat)) <= LIMITS.announced_answers + 2
            assert {ttl_s for _, ttl_s in keys(seat)} == {600.0}


async def test_what_nobody_took_is_announced_again(autojump_clock: trio.testing.MockClock) -> None:
    async with a_row(2) as (seat, _), announcing(seat):
        seat.dht.refuses = True
        seat.discovery.answered(REQUESTS[0])
        await trio.sleep(5)
        seat.dht.refuses = False
        await trio.sleep(15)
        assert keys(seat) == [(answer_key(REQUESTS[0]), 600.0)] * 2
        assert seat.discovery.stats()["announced"] == {"models": 0, "answers": 1}


async def test_a_forgotten_answer_is_taken_back(autojump_clock: trio.testing.MockClock) -> None:
    async with a_row(2) as (seat, _), announcing(seat):
        seat.discovery.answered(REQUESTS[0])
        await trio.sleep(5)
        assert seat.discovery.forgotten([REQUESTS[0], REQUESTS[1]]) == 1
        since = trio.current_time()
        await trio.sleep(5)
        assert keys(seat, since) == [(answer_key(REQUESTS[0]), 0.0)]
        await trio.sleep(700)
        assert keys(seat, since) == [(answer_key(REQUESTS[0]), 0.0)]


async def test_answers_are_announced_again_before_they_expire_unless_they_were_evicted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_row(2) as (seat, _), announcing(seat):
        seat.discovery.answered(REQUESTS[0])
        seat.discovery.answered(REQUESTS[1])
        await trio.sleep(5)
        since = trio.current_time()
        seat.evicted.add(REQUESTS[1])
        await trio.sleep(330)
        assert sorted(keys(seat, since)) == [(answer_key(REQUESTS[0]), 600.0), (answer_key(REQUESTS[1]), 0.0)]


async def test_who_is_near_is_looked_for_again_soon_after_a_new_neighbour_has_come(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_row(3) as (seat, nodes), announcing(seat):
        await trio.sleep(10)
        assert seat.dht.refreshed == 2  # near this node, and near a random place
        await trio.sleep(100)
        assert seat.dht.refreshed == 2
        await nodes[2].swarm.join(nodes[0].swarm.invite())
        await trio.sleep(5)
        assert seat.dht.refreshed == 4


async def test_a_move_to_another_swarm_takes_nothing_along(autojump_clock: trio.testing.MockClock) -> None:
    async with a_row(2) as (seat, nodes), announcing(seat):
        seat.discovery.answered(REQUESTS[0])
        await trio.sleep(5)
        await nodes[0].swarm.move("elsewhere")
        assert seat.dht.moves == [protocol_of("elsewhere", None)]
        assert seat.discovery.stats()["announced"] == {"models": 0, "answers": 0}


def test_the_names_of_a_dht_and_its_keys_are_those_of_the_protocol_page() -> None:
    assert protocol_of("home", None) == "/shoal/7392a42292e6288e/kad/1.0.0"
    assert protocol_of("home", b"k" * 32) != protocol_of("home", None)
    assert model_key("home", "smollm2").hex() == "12205f9d8e12f8e23dca70b7fe6aeab03c833754a7ddeeb14d2cd80087795cdbe94e"
    assert answer_key(CID) == CID[2:]
    assert answer_key(REQUESTS[0]) == CID[2:]
