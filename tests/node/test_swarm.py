"""The swarm of one node: who is a peer, who could answer, and what happens when somebody comes or goes."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import trio
from shoal.node.swarm import links
from shoal.node.swarm.advert import AdvertWriter
from shoal.node.swarm.entrance import JoinFailed
from shoal.node.swarm.invite import Invite
from shoal.node.swarm.peerbook import PeerBook
from shoal.protocols.session import SessionLost
from shoal.providers.base import Finish, GenerateRequest, ProviderError, TextDelta

from .fakes_swarm import IDENTITIES, FakeNetwork, FakeNode, offering, swarm_of, until

REQUEST = GenerateRequest.of("What is the opposite of hot?")


async def test_one_line_joins_a_swarm_and_both_sides_know_what_the_other_offers(autojump_clock):
    async with swarm_of(2) as (one, two):
        (view,) = two.swarm.peers()
        assert view.connected
        assert view.peer == one.id
        assert [model.name for model in view.models] == ["tiny"]
        assert view.providers == ("fake",)
        assert view.hardware == {"cpu": "abacus", "cores": 2}
        assert view.version == "0.1.0"
        assert view.agent.startswith("shoal/")
        assert view.rtt_s is not None
        assert [provider.peer for provider in one.swarm.candidates_for("tiny")] == [two.id]
        assert one.swarm.candidates_for("huge") == []
        assert one.swarm.candidates_for("tiny", exclude={two.id}) == []
        assert one.swarm.is_member(two.id)
        assert not one.swarm.is_member(IDENTITIES[7].peer_id)


async def test_a_node_that_shares_nothing_is_a_peer_but_no_candidate(autojump_clock):
    network = FakeNetwork()
    async with FakeNode(network, 0).running() as one:
        two = FakeNode(network, 1)
        two.content = offering(shared=False)
        async with two.running():
            await two.swarm.join(one.swarm.invite())
            await until(lambda: any(view.version for view in one.swarm.peers()))
            assert one.swarm.candidates_for(None) == []


async def test_a_change_of_what_is_offered_reaches_the_peers_within_two_seconds(autojump_clock):
    async with swarm_of(3) as (one, two, three):
        one.content = offering("tiny", "huge")
        one.swarm.changed()
        await until(lambda: all(node.swarm.candidates_for("huge") for node in (two, three)), within=2)


async def test_many_changes_at_once_are_told_once(autojump_clock):
    async with swarm_of(2) as (one, two):
        await trio.sleep(2)
        before = two.changes
        for number in range(100):
            one.content = offering(f"model-{number}")
            one.swarm.changed()
        await until(lambda: bool(two.swarm.candidates_for("model-99")))
        await trio.sleep(2)
        assert two.changes - before <= 2


async def test_adverts_are_renewed_before_they_expire(autojump_clock):
    async with swarm_of(2) as (one, two):
        for _ in range(20):
            await trio.sleep(60)
            assert one.sees(two)
            assert two.sees(one)


async def test_an_advert_that_is_not_the_peers_own_is_refused_and_counted(autojump_clock, caplog):
    async with swarm_of(2) as (one, two):
        stranger = AdvertWriter(IDENTITIES[5], "test")
        session = two.swarm._links.peers[one.id].session
        session.send_advert(stranger.write(offering("free-gpt")))
        await until(lambda: one.swarm.stats()["adverts_refused"] == {"foreign": 1})
        assert one.swarm.candidates_for("free-gpt") == []
        assert one.sees(two)
    assert "refused" in caplog.text


async def test_a_lost_peer_is_no_candidate_at_once_and_comes_back_by_itself(autojump_clock):
    network = FakeNetwork()
    async with FakeNode(network, 0).running() as one:
        two = FakeNode(network, 1)
        async with two.running():
            await two.swarm.join(one.swarm.invite())
            await until(lambda: one.sees(two))
            two.host.die()
            await until(lambda: not one.sees(two), within=0.1)
            (view,) = one.swarm.peers()
            assert not view.connected
            assert view.problem
        await trio.sleep(30)
        async with FakeNode(network, 1).running() as again:
            await until(lambda: one.sees(again) and again.sees(one), within=8)


async def test_a_silent_peer_is_gone_in_time(autojump_clock):
    async with swarm_of(2) as (one, two):
        two.words = (3600,)
        link = one.host._network.link(one.id, two.id)

        async def ask() -> None:
            async with one.swarm.candidates_for(None)[0].generate(REQUEST) as answer:
                with pytest.raises(ProviderError, match="lost"):
                    await anext(answer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await two.answering.wait()
            link.freeze()
            await until(lambda: not one.sees(two), within=2)


async def test_a_peer_of_another_swarm_stays_outside(autojump_clock, caplog):
    network = FakeNetwork()
    async with FakeNode(network, 0, name="home").running() as one, FakeNode(network, 1, name="away").running() as two:
        (address,) = one.host.addresses()
        with pytest.raises(JoinFailed, match="wrong swarm"):
            await two.swarm.join(address)
        assert not one.sees(two)
        assert not two.swarm.peers()[0].connected
        dials = len(network.dials)
        await trio.sleep(30)
        assert len(network.dials) <= dials + 1  # it does not hammer on the door


async def test_an_invite_to_another_swarm_moves_the_node(autojump_clock):
    network = FakeNetwork()
    async with FakeNode(network, 0, name="old").running() as one, FakeNode(network, 1, name="old").running() as two:
        await two.swarm.join(one.swarm.invite())
        await until(lambda: one.sees(two))
        async with FakeNode(network, 2, name="new").running() as three:
            await two.swarm.join(three.swarm.invite())
            await until(lambda: two.sees(three) and three.sees(two))
            assert two.swarm.name == "new"
            await trio.sleep(100)
            assert not one.sees(two)
            assert not two.sees(one)


async def test_joining_says_why_it_failed(autojump_clock):
    network = FakeNetwork()
    dead = f"/ip4/192.0.2.7/tcp/4642/p2p/{IDENTITIES[6].peer_id}"
    async with FakeNode(network, 0).running() as one:
        with pytest.raises(JoinFailed, match="connection refused"):
            await one.swarm.join(dead)
        with pytest.raises(JoinFailed, match="another machine"):
            await one.swarm.join(one.swarm.invite())
        with pytest.raises(JoinFailed, match="private"):
            await one.swarm.join(Invite(swarm="test", addrs=(dead,), key=b"k" * 32))
        with pytest.raises(ValueError, match="invite begins with"):
            await one.swarm.join("nonsense")


async def test_who_failed_to_join_arrives_when_the_other_side_comes_up(autojump_clock):
    network = FakeNetwork()
    two = FakeNode(network, 1)
    (address,) = two.host.addresses()
    async with FakeNode(network, 0).running() as one:
        with pytest.raises(JoinFailed):
            await one.swarm.join(address)
        async with two.running():
            await until(lambda: one.sees(two), within=10)


async def test_configured_peers_are_dialled_at_the_start(autojump_clock, caplog):
    network = FakeNetwork()
    async with FakeNode(network, 0).running() as one:
        peers = (one.host.addresses()[0], "shoal1broken", Invite(swarm="away", addrs=tuple(one.host.addresses())).text)
        async with FakeNode(network, 1, peers=peers).running() as two:
            await until(lambda: one.sees(two) and two.sees(one))
    assert "typing error" in caplog.text
    assert "'away'" in caplog.text


async def test_peers_are_found_again_after_a_restart(tmp_path):
    network = FakeNetwork()
    async with FakeNode(network, 0).running() as one:
        for joined in (True, False):
            two = FakeNode(network, 1)
            two.book = PeerBook(tmp_path / "peers.db")
            async with two.running():
                if joined:
                    await two.swarm.join(one.swarm.invite())
                await until(lambda two=two: one.sees(two) and two.sees(one))
        assert one.id in {known.peer for known in await remembered(tmp_path / "peers.db")}


async def test_a_peers_advert_opens_no_port(autojump_clock):
    network = FakeNetwork()
    async with FakeNode(network, 0, listen=()).running() as one, FakeNode(network, 1).running() as two:
        await two.host.listen("/ip4/0.0.0.0/tcp/4642")
        await one.swarm.join(two.host.addresses()[0])
        await until(lambda: len(one.swarm.peers()[0].addresses) >= 2)
        await trio.sleep(1)
        assert len(one.host.listening) == 1


async def remembered(path):
    async with PeerBook(path).running() as book:
        return await book.known("test")


async def test_a_node_with_peers_beyond_its_machine_listens_beyond_it(autojump_clock):
    network = FakeNetwork()
    async with FakeNode(network, 0, listen=()).running() as one:
        local, far = (f"/ip4/{ip}/tcp/4642/p2p/{IDENTITIES[6].peer_id}" for ip in ("127.0.0.1", "192.0.2.77"))
        with pytest.raises(JoinFailed):
            await one.swarm.join(local)
        assert len(one.host.listening) == 1
        with pytest.raises(JoinFailed):
            await one.swarm.join(far)
        assert one.host.listening[1:] == ["/ip4/192.0.2.1/tcp/4642"]
        assert "127.0.0.1" not in str(Invite.parse(one.swarm.invite()).addrs)


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0)])
async def test_two_who_dial_each_other_at_once_keep_one_session_and_lose_no_call(autojump_clock, numbers):
    network = FakeNetwork()
    nodes = [FakeNode(network, number) for number in numbers]
    nodes[0].config, nodes[1].config = (
        type(node.config)(peers=tuple(other.host.addresses())) for node, other in zip(nodes, nodes[::-1], strict=True)
    )
    for node in nodes:
        node.words = ("a", 1.0, "b", *node.words)
    failures = []

    async def ask_on(node, other):
        while trio.current_time() < end:
            for provider in node.swarm.candidates_for(None):
                try:
                    async with provider.generate(REQUEST) as answer:
                        assert len([event async for event in answer]) == 6
                except Exception as error:
                    failures.append(error)
            await trio.sleep(0.05)

    end = trio.current_time() + 30
    one, two = nodes
    network.gate = trio.Event()
    async with one.running(), two.running(), trio.open_nursery() as nursery:
        await until(lambda: len(network.dials) == 2)
        network.gate.set()
        await until(lambda: one.sees(two) and two.sees(one))
        both = [node.swarm._links.peers[other.id] for node, other in ((one, two), (two, one))]
        assert [len(peer.sessions) for peer in both] == [2, 2]
        nursery.start_soon(ask_on, one, two)
        nursery.start_soon(ask_on, two, one)
        await trio.sleep(25)
        assert [len(peer.sessions) for peer in both] == [1, 1]
        assert both[0].session.initiator != both[1].session.initiator
    assert failures == []


async def test_a_session_that_only_this_side_believes_in_gives_way(autojump_clock):
    async with swarm_of(2) as (one, two):
        # The line freezes and the other side dials again, as after a lost network; this side has noticed nothing.
        network = one.host._network
        peer = one.swarm._links.peers[two.id]
        old, link = peer.session, network.links.pop(frozenset((one.id, two.id)))
        link.freeze()
        two.swarm._links.peers[one.id].session.close("the network changed")
        await until(lambda: peer.session is not old and one.sees(two), within=4)
        assert await peer.session.ping() >= 0


async def test_a_peer_cannot_have_many_sessions(autojump_clock):
    async with swarm_of(2) as (one, two), trio.open_nursery() as nursery:
        for _ in range(10):
            stream = await two.host.open_stream(one.id, links.PROTOCOL)
            nursery.start_soon(partial(two.swarm._links._live, stream, one.id, initiator=True))
            await trio.sleep(0.01)
            assert len(one.swarm._links.peers[two.id].sessions) <= links.MAX_SESSIONS_PER_PEER
        nursery.cancel_scope.cancel()


async def test_too_many_peers_are_turned_away(autojump_clock, monkeypatch):
    monkeypatch.setattr(links, "MAX_PEERS", 2)
    async with swarm_of(3) as (one, _, _):
        network = one.host._network
        async with FakeNode(network, 4).running() as four:
            with pytest.raises(JoinFailed):
                await four.swarm.join(one.swarm.invite())
        assert sum(view.connected for view in one.swarm.peers()) == 2


async def test_a_lookup_asks_all_peers_and_gives_what_they_have(autojump_clock):
    async with swarm_of(4) as (one, two, three, four):
        two.blocks[b"cid"] = b"block of two"
        three.blocks[b"cid"] = b"block of three"
        assert set(await one.swarm.find(b"cid", 1.0)) == {b"block of two", b"block of three"}
        assert await one.swarm.find(b"other", 1.0) == []
        four.blocks[b"big"] = b"x" * 300_000
        assert await one.swarm.find(b"big", 1.0) == [b"x" * 300_000]
        four.blocks[b"huge"] = b"x" * 600_000
        assert await one.swarm.find(b"huge", 1.0) == []


async def test_a_lookup_does_not_wait_for_a_slow_peer_longer_than_it_may(autojump_clock):
    async with swarm_of(3) as (one, two, three):

        async def slowly(cids):
            await trio.sleep(10)
            return [None]

        two.swarm._find_blocks = slowly
        start = trio.current_time()
        assert await one.swarm.find(b"cid", 0.15) == []
        assert trio.current_time() - start == pytest.approx(0.15)
        three.blocks[b"cid"] = b"block"
        start = trio.current_time()
        assert await one.swarm.find(b"cid", 0.15) == [b"block"]
        assert trio.current_time() - start < 0.05


async def test_a_lookup_alone_in_the_world_finds_nothing_at_once(autojump_clock):
    async with swarm_of(1) as (one,):
        assert await one.swarm.find(b"cid", 1.0) == []
        assert trio.current_time() < 1


@pytest.mark.parametrize("body", [None, [], [b""], ["text"], [b"x" * 65], [b"c"] * 17, 5])
async def test_an_ill_typed_lookup_is_refused(autojump_clock, body):
    async with swarm_of(2) as (one, two):
        session = one.swarm._links.peers[two.id].session
        with pytest.raises(Exception, match="look-up"):
            await session.lookup(body, 1.0)
        assert one.sees(two)


async def test_leaving_tells_the_peers(autojump_clock, caplog):
    caplog.set_level(logging.INFO)
    network = FakeNetwork()
    async with FakeNode(network, 0).running() as one:
        async with FakeNode(network, 1).running() as two:
            await two.swarm.join(one.swarm.invite())
            await until(lambda: one.sees(two))
        await until(lambda: not one.sees(two), within=0.1)
        assert "stopping" in one.swarm.peers()[0].problem


async def test_a_node_that_stops_is_out_of_every_list_at_once_even_of_those_who_only_heard_of_it(autojump_clock):
    network = FakeNetwork()
    async with (
        FakeNode(network, 0, neighbours=0).running() as asker,
        FakeNode(network, 1, neighbours=0).running() as between,
    ):
        await asker.swarm.join(between.swarm.invite())
        async with FakeNode(network, 2, neighbours=0).running() as leaver:
            leaver.content = offering("rare", addresses=tuple(leaver.host.addresses()))
            leaver.words = ("a", 5, "b", Finish("stop", "tiny"))
            await between.swarm.join(leaver.swarm.invite())
            await until(lambda: asker.swarm.candidates_for("rare") and between.swarm.candidates_for("rare"), within=5)
            (provider,) = between.swarm.candidates_for("rare")
            async with trio.open_nursery() as nursery, provider.generate(REQUEST) as answer:
                await anext(answer)
                began = trio.current_time()
                nursery.start_soon(leaver.swarm.drain, 10.0)
                await until(lambda: not between.swarm.candidates_for("rare"), within=0.1)
                assert not any(v.models and v.connected for v in between.swarm.peers() if v.peer == leaver.id)
                await until(lambda: not asker.swarm.candidates_for("rare"), within=2)
                assert trio.current_time() - began < 2
                assert await anext(answer) == TextDelta("b"), "what is under way is finished"
        assert "the node is stopping" in between.swarm.peers()[-1].problem
        async with FakeNode(network, 2, neighbours=0).running() as back:
            back.content = offering("rare", addresses=tuple(back.host.addresses()))
            await between.swarm.join(back.swarm.invite())
            await until(lambda: asker.swarm.candidates_for("rare") and between.swarm.candidates_for("rare"), within=5)


async def test_draining_lets_an_answer_finish_and_takes_no_new_one(autojump_clock):
    async with swarm_of(2) as (one, two):
        two.words = ("a", 2, *two.words)
        (provider,) = one.swarm.candidates_for(None)
        async with provider.generate(REQUEST) as answer, trio.open_nursery() as nursery:
            await anext(answer)
            nursery.start_soon(two.swarm.drain, 10.0)
            await until(lambda: not one.sees(two), within=0.1)
            assert len([event async for event in answer]) == 4
            assert answer.result == {"provider": "fake", "model": "tiny", "record": b"signed"}


async def test_an_error_of_the_block_leaves_as_it_came(autojump_clock):
    with pytest.raises(KeyError):
        async with FakeNode(FakeNetwork(), 0).running():
            raise KeyError("mine")


async def test_a_session_lost_for_good_says_so_to_pings(autojump_clock):
    async with swarm_of(2) as (one, two):
        session = one.swarm._links.peers[two.id].session
        two.host.die()
        with pytest.raises(SessionLost):
            await session.ping()
