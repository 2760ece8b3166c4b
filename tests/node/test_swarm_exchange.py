"""Who joins one node soon knows the others: adverts are passed on, and peers are found through peers."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack

import pytest
import trio
from shoal.node.swarm import gossip, load, recruit
from shoal.node.swarm.advert import AdvertBook, AdvertRefused, AdvertWriter
from shoal.node.swarm.load import Digest, Standing, in_order
from shoal.protocols.session import CallError
from shoal.providers.base import GenerateRequest

from .fakes_swarm import IDENTITIES, FakeNetwork, FakeNode, offering, swarm_of, until

REQUEST = GenerateRequest.of("What is the opposite of hot?")


def all_connected(nodes) -> bool:
    return all(one.sees(two) for one in nodes for two in nodes if one is not two)


async def test_twenty_nodes_that_joined_one_are_soon_all_connected(autojump_clock):
    network = FakeNetwork()
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(FakeNode(network, number).running()) for number in range(20)]
        for node in nodes[1:]:
            await node.swarm.join(nodes[0].swarm.invite())
        await until(lambda: all_connected(nodes), within=10)
        await trio.sleep(20)
        assert all_connected(nodes)
        peers = [peer for node in nodes for peer in node.swarm._links.peers.values()]
        assert all(len(peer.sessions) == 1 for peer in peers)
        dials = len(network.dials)
        await trio.sleep(60)
        assert len(network.dials) == dials


async def test_a_change_reaches_all_of_twenty_within_two_seconds(autojump_clock):
    async with swarm_of(20) as nodes:
        await until(lambda: all_connected(nodes), within=10)
        nodes[7].content = offering("tiny", "huge")
        nodes[7].swarm.changed()
        others = [node for node in nodes if node is not nodes[7]]
        await until(lambda: all(node.swarm.candidates_for("huge") for node in others), within=2)


async def test_a_dead_node_is_out_of_every_route_at_once(autojump_clock):
    async with swarm_of(10) as nodes:
        await until(lambda: all_connected(nodes), within=10)
        nodes[4].host.die()
        rest = [node for node in nodes if node is not nodes[4]]
        await until(lambda: not any(node.sees(nodes[4]) for node in rest), within=2)
        for _ in range(10):
            await trio.sleep(3)
            assert not any(node.sees(nodes[4]) for node in rest)
        assert all_connected(rest)


async def test_an_advert_travels_beyond_the_neighbours_and_its_signer_is_asked(autojump_clock, monkeypatch):
    """One and three know each other through two alone, and are not connected: nobody looks for more than one peer."""
    monkeypatch.setattr("shoal.node.swarm.neighbourhood.whom_to_seek", lambda *args, **how: [])
    network = FakeNetwork()
    async with (
        FakeNode(network, 0).running() as one,
        FakeNode(network, 1).running() as two,
        FakeNode(network, 2).running() as three,
    ):
        three.content = offering("rare")
        await one.swarm.join(two.swarm.invite())
        await three.swarm.join(two.swarm.invite())
        await until(lambda: one.swarm.stats()["known"] == 2)
        assert [view.peer for view in one.swarm.peers()] == [two.id]
        three.content = offering("rare", "rarer")
        three.swarm.changed()
        await until(lambda: bool(one.swarm.candidates_for("rarer")), within=2)
        (provider,) = one.swarm.candidates_for("rarer")
        async with provider.generate(REQUEST) as answer:
            assert len([event async for event in answer]) == 4
        assert three.asked[0][1] == one.id
        assert one.sees(three)
        await trio.sleep(1)
        three.host.die()
        await until(lambda: not one.swarm.candidates_for("rarer"), within=0.5)


async def test_a_node_that_was_only_heard_of_and_is_away_is_given_up_and_no_candidate(autojump_clock):
    async with swarm_of(2) as (one, two):
        ghost = AdvertWriter(IDENTITIES[9], "test")
        address = f"/ip4/127.0.0.1/tcp/9/p2p/{IDENTITIES[9].peer_id}"
        two.swarm._adverts.take_relayed(ghost.write(offering("rare", addresses=(address,))), brought_by=one.id)
        two.swarm._gossip.spread(IDENTITIES[9].peer_id, IDENTITIES[9].peer_id)
        await until(lambda: one.swarm.stats()["known"] == 2)
        await until(lambda: not one.swarm.candidates_for("rare"))
        await trio.sleep(120)
        dials = len(one.host._network.dials)
        await trio.sleep(120)
        assert len(one.host._network.dials) == dials


async def test_loopback_addresses_stay_on_their_machine_whoever_passes_them_on(autojump_clock):
    """`far` is on another machine than the others; `near` says that it listens on loopback alone."""
    network = FakeNetwork()
    async with (
        FakeNode(network, 0, neighbours=0).running() as between,
        FakeNode(network, 1, neighbours=0).running() as near,
        FakeNode(network, 2, neighbours=0).running() as far,
        FakeNode(network, 3, neighbours=0).running() as beside,
    ):
        near.content = offering("rare", addresses=(f"/ip4/127.0.0.1/tcp/9/p2p/{near.id}",))
        far.host.beyond |= {between.id, near.id, beside.id}
        for node in (between, near, beside):
            node.host.beyond.add(far.id)
        for node in (near, far, beside):
            await node.swarm.join(between.swarm.invite())
        await until(lambda: beside.swarm.book().addresses(near.id), within=5)
        await trio.sleep(5)
        assert far.swarm.book().get(near.id) is None
        await far.swarm.join(near.swarm.invite())
        await until(lambda: far.swarm.book().get(near.id), within=5)
        assert far.swarm.book().get(near.id).addresses == ()


async def test_loopback_addresses_from_another_machine_are_not_dialled():
    book = AdvertBook("test")
    writer = AdvertWriter(IDENTITIES[4], "test")
    me = f"/ip4/127.0.0.1/tcp/9/p2p/{IDENTITIES[4].peer_id}"
    there = f"/ip4/192.0.2.4/tcp/9/p2p/{IDENTITIES[4].peer_id}"
    book.take_relayed(writer.write(offering(addresses=(me, there))), brought_by=IDENTITIES[5].peer_id, here=False)
    assert book.addresses(IDENTITIES[4].peer_id) == (there,)
    assert book.wire(IDENTITIES[4].peer_id, here=False) is None
    assert book.wire(IDENTITIES[4].peer_id, here=True) is not None


async def test_what_is_passed_on_is_checked_and_bounded(monkeypatch):
    monkeypatch.setattr("shoal.node.swarm.advert.MAX_RELAYED_BY_ONE", 3)
    monkeypatch.setattr("shoal.node.swarm.advert.MAX_HELD", 5)
    book, relay = AdvertBook("test"), IDENTITIES[0].peer_id
    writers = [AdvertWriter(identity, "test") for identity in IDENTITIES]
    body, signature = writers[1].write(offering())
    with pytest.raises(AdvertRefused, match="forged"):
        book.take_relayed([body[:-1] + b"!", signature], brought_by=relay)
    with pytest.raises(AdvertRefused, match="swarm"):
        AdvertBook("other").take_relayed([body, signature], brought_by=relay)
    with pytest.raises(AdvertRefused, match="oversized"):
        book.take_relayed(writers[1].write(offering(*(f"m{n}" for n in range(400)))), brought_by=relay)
    for writer in writers[1:4]:
        book.take_relayed(writer.write(offering()), brought_by=relay)
    with pytest.raises(AdvertRefused, match="crowded"):
        book.take_relayed(writers[4].write(offering()), brought_by=relay)
    for number in range(4, 9):  # those who speak for themselves take the room of those who were only heard of
        book.take(writers[number].write(offering()), brought_by=IDENTITIES[number].peer_id)
    assert len(book.all()) == 5
    assert all(held.direct for held in book.all())
    with pytest.raises(AdvertRefused, match="crowded"):
        book.take(writers[9].write(offering()), brought_by=IDENTITIES[9].peer_id)


@pytest.mark.parametrize(
    "news", [None, 5, ["x"], [["x", 1]], [[IDENTITIES[0].peer_id, "x"]], [[5, 5]], [[IDENTITIES[0].peer_id, 1]] * 200]
)
async def test_ill_typed_news_is_passed_over(autojump_clock, news):
    async with swarm_of(2) as (one, two):
        one.swarm._links.peers[two.id].session.send_note(gossip.NEWS, news)
        one.swarm._links.peers[two.id].session.send_note("unheard of", news)
        await trio.sleep(2)
        assert one.sees(two)
        assert two.swarm._gossip.pulled == 0


@pytest.mark.parametrize("question", [None, [5], ["x"] * 65])
async def test_an_ill_typed_question_for_adverts_is_refused(autojump_clock, question):
    async with swarm_of(2) as (one, two):
        with pytest.raises(CallError, match="bad_request"):
            await one.swarm._links.peers[two.id].session.request(gossip.ADVERTS, question)


def test_of_a_thousand_nodes_each_has_tens_of_neighbours_and_all_hang_together():
    rng = random.Random(7)
    names = [f"node{n:04}" for n in range(1000)]
    links = {name: set() for name in names}
    for name in names:  # each hears of all in turn, and looks for some
        for other in recruit.whom_to_seek(set(names) - {name} - links[name], len(links[name]), rng):
            links[name].add(other)
            links[other].add(name)
    for name in names:
        for other in recruit.whom_to_dismiss(len(links[name]), sorted(links[name]), rng):
            links[name].discard(other)
            links[other].discard(name)
    assert max(map(len, links.values())) <= recruit.CROWDED
    reached, edge = {names[0]}, {names[0]}
    while edge:
        edge = {other for name in edge for other in links[name]} - reached
        reached |= edge
    assert len(reached) == 1000


def test_a_swarm_of_twenty_is_a_full_mesh():
    names = {f"node{n}" for n in range(20)}
    assert set(recruit.whom_to_seek(names, 1, random.Random(1))) == names
    assert recruit.whom_to_dismiss(19, sorted(names), random.Random(1)) == []


# -- load ---------------------------------------------------------------------------------------------------------


def test_a_digest_is_32_bytes_and_comes_out_as_it_went_in():
    digest = Digest(running=3, queued=70_000, cpu=0.5, memory_free_mib=4096, at_ms=1_800_000_000_123)
    data = digest.encode()
    assert len(data) == load.DIGEST_BYTES
    read = Digest.decode(data)
    assert (read.running, read.queued, read.memory_free_mib, read.at_ms) == (3, 65_535, 4096, 1_800_000_000_123)
    assert read.cpu == pytest.approx(0.5, abs=0.01)
    for nonsense in (None, b"", data[:31], b"\x02" + data[1:], "text"):
        assert Digest.decode(nonsense) is None


def test_the_less_busy_peer_comes_first_while_its_figures_are_fresh():
    rng = random.Random(1)
    busy = Standing(calls=0, digest=Digest(running=9), age_s=1, rtt_s=0.001)
    idle = Standing(calls=0, digest=Digest(running=0), age_s=1, rtt_s=0.2)
    ours = Standing(calls=4, digest=Digest(running=0), age_s=1, rtt_s=0.001)
    assert in_order([(busy, "busy"), (ours, "ours"), (idle, "idle")], rng) == ["idle", "ours", "busy"]


def test_with_stale_figures_not_everyone_chooses_the_same():
    peers = [(Standing(calls=0, digest=Digest(running=n), age_s=60, rtt_s=n / 1000), n) for n in range(10)]
    firsts = {in_order(peers, random.Random(seed))[0] for seed in range(200)}
    assert len(firsts) > 5
    assert 9 not in firsts  # never the worse of two


async def test_peers_in_use_tell_each_other_how_busy_they_are(autojump_clock):
    async with swarm_of(3) as (one, two, three):
        await until(lambda: all_connected((one, two, three)))
        two.content = offering("tiny", load=load_of(5))
        async with one.swarm._links.peers[two.id].provider.generate(REQUEST) as answer:
            async for _ in answer:
                pass
        await until(lambda: one.swarm._links.peers[two.id].load is not None, within=3)
        view = next(view for view in one.swarm.peers() if view.peer == two.id)
        assert view.load["running"] == 5
        assert three.swarm._links.peers[two.id].load is None


def load_of(running):
    from shoal.node.swarm.advert import Load

    return Load(running=running)
