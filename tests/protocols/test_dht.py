"""The DHT over real connections: what is announced is found from afar, and what is abused is refused."""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio
from shoal.protocols.p2p import kad_server
from shoal.protocols.p2p.dht import Dht
from shoal.protocols.p2p.errors import StreamLost
from shoal.protocols.p2p.incoming import Incoming
from shoal.protocols.p2p.kad_message import (
    ADD_PROVIDER,
    FIND_NODE,
    GET_PROVIDERS,
    GET_VALUE,
    PUT_VALUE,
    Entry,
    Message,
    decode,
    frame,
)
from shoal.protocols.p2p.kad_server import DhtLimits
from shoal.protocols.p2p.kad_statement import Statement, node_key, peer_bytes, seal
from shoal.protocols.peer_id import Identity

from .fakes_dht import KEY, PROTOCOL, DhtNode, a_line, connected, nodes


async def asked(node: DhtNode, of: DhtNode, *messages: Message | bytes) -> list[Message]:
    """What another node answers to messages that this one sends as they are."""
    stream = await node.host.open_stream(of.id, PROTOCOL)
    incoming, answers = Incoming(stream, 3), []
    try:
        for message in messages:
            await stream.write(message if isinstance(message, bytes) else frame(message))
            with trio.fail_after(5):
                size = await incoming.size()
                if size is None:
                    raise StreamLost("closed")
                answers.append(decode(await incoming.take(size)))
    finally:
        await stream.close()
    return answers


def provider(identity: Identity, key: bytes = KEY, **changes: Any) -> bytes:
    facts = {"swarm": "test", "peer": identity.peer_id, "key": key, "created": time.time(), "ttl_s": 600.0}
    return seal(identity, Statement(**(facts | changes)))


def announcement(node: DhtNode, key: bytes = KEY, sealed: bytes = b"", **changes: Any) -> Message:
    sealed = sealed or provider(node.identity, key, **changes)
    return Message(ADD_PROVIDER, key, providers=(Entry(peer_bytes(node.id), statement=sealed),))


# -- finding ---------------------------------------------------------------------------------------------------------


async def test_a_provider_at_the_other_end_of_a_line_is_found_with_its_addresses() -> None:
    async with a_line(6) as line:
        asker, giver = line[0], line[-1]
        for node in line:
            await node.dht.refresh()
        assert await giver.dht.provide([(KEY, 600.0)]) == {KEY}
        assert await asker.providers() == {giver.id: tuple(giver.host.addresses())}


async def test_a_search_that_has_enough_dials_nobody_else() -> None:
    async with a_line(4) as line:
        assert await line[3].dht.provide([(KEY, 600.0)]) == {KEY}  # to the one it knows
        await line[1].dht.find_providers(KEY, lambda peer, at: True)
        assert connected(line[1], line) == [0, 2]
        await line[1].dht.find_providers(KEY, lambda peer, at: None)
        assert connected(line[1], line) == [0, 2, 3]  # there might have been more


async def test_what_was_withdrawn_is_found_no_more() -> None:
    async with a_line(3) as line:
        await line[2].dht.provide([(KEY, 600.0)])
        assert list(await line[0].providers()) == [line[2].id]
        assert await line[2].dht.provide([(KEY, 0.0)]) == {KEY}
        assert await line[0].providers() == {}


async def test_a_key_that_nobody_provides_is_found_nowhere_in_good_time() -> None:
    async with a_line(4) as line:
        with trio.fail_after(5):
            assert await line[0].providers() == {}


async def test_a_provider_is_told_once_although_many_hold_its_record() -> None:
    async with nodes(5) as some:
        for one in some:
            for other in some:
                if one is not other:
                    await one.knows(other)
        assert await some[0].dht.provide([(KEY, 600.0)]) == {KEY}
        told: list[object] = []
        await some[4].dht.find_providers(KEY, lambda peer, at: told.append(peer))
        assert told == [some[0].id]


async def test_a_node_that_has_moved_is_located_by_its_own_record() -> None:
    async with a_line(4) as line:
        assert await line[3].dht.publish_self(600.0) == 1
        assert await line[0].dht.locate(line[3].id) == tuple(line[3].host.addresses())
        assert await line[0].dht.locate(line[1].id) == ()


async def test_the_dead_are_passed_over_and_forgotten() -> None:
    async with a_line(3) as line:
        async with DhtNode().running() as dead:
            await line[1].knows(dead)
        await line[2].dht.provide([(KEY, 600.0)])
        line[0].dht.meet(Identity.generate().peer_id, ("/ip4/127.0.0.1/tcp/1",))
        with trio.fail_after(8):
            assert list(await line[0].providers()) == [line[2].id]
        assert len(line[0].dht.table) <= 4


async def test_a_connection_that_only_a_search_needed_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.protocols.p2p import dht

    monkeypatch.setattr(dht, "TIDY_S", 0.05)
    monkeypatch.setattr(dht, "IDLE_CONNECTION_S", 0.1)
    async with a_line(3, keeps=lambda peer: False) as line:
        await line[0].dht.refresh()
        assert connected(line[0], line) == [1, 2]
        with trio.fail_after(5):
            while connected(line[0], line) != [1]:  # the line's own connections were not the search's
                await trio.sleep(0.02)


async def test_a_peer_that_takes_no_part_is_asked_once_and_then_left_alone() -> None:
    async with a_line(2) as (one, other), DhtNode(serve=False).running() as silent:
        await one.knows(silent)
        await other.dht.provide([(KEY, 600.0)])
        for _ in range(3):
            one.dht.meet(silent.id, silent.host.addresses())
            assert list(await one.providers()) == [other.id]
        assert silent.id not in one.dht.table
        assert one.dht.counters.asked <= 5


async def test_questions_of_one_node_share_a_stream() -> None:
    async with a_line(2) as (one, other):
        for _ in range(5):
            await one.dht.refresh()
        assert other.dht.counters.served == 5
        assert len(one.dht._idle) == 1


async def test_after_a_move_nothing_of_the_old_swarm_is_left_or_answered() -> None:
    async with a_line(2) as (one, other):
        await other.dht.provide([(KEY, 600.0)])
        one.dht.move("/shoal/else/kad/1.0.0", "else")
        assert await one.providers() == {}
        with pytest.raises(StreamLost):
            await asked(other, one, Message(FIND_NODE, KEY))


# -- abuse -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda me, victim: provider(victim), id="another's"),
        pytest.param(lambda me, victim: provider(me, peer=victim.peer_id), id="signed for another"),
        pytest.param(lambda me, victim: provider(me, swarm="elsewhere"), id="of another swarm"),
        pytest.param(lambda me, victim: provider(me, b"another key"), id="for another key"),
        pytest.param(lambda me, victim: provider(me, created=time.time() + 3600), id="from the future"),
        pytest.param(lambda me, victim: provider(me, created=time.time() - 3600), id="expired"),
        pytest.param(lambda me, victim: b"", id="none"),
        pytest.param(lambda me, victim: b"\xff" * 300, id="noise"),
    ],
)
async def test_a_provider_record_is_taken_from_the_provider_alone(forge: Any) -> None:
    victim = Identity.generate()
    async with a_line(2) as (attacker, node):
        record = Entry(peer_bytes(victim.peer_id), statement=forge(attacker.identity, victim))
        (answer,) = await asked(attacker, node, Message(ADD_PROVIDER, KEY, providers=(record,)))
        assert answer == Message(ADD_PROVIDER, b"")
        assert len(node.dht.records) == 0
        assert node.dht.counters.refused.total() == 1


async def test_a_node_that_invents_providers_is_not_believed() -> None:
    victim = Identity.generate()
    async with a_line(2) as (node, liar):
        forged = seal(liar.identity, Statement(swarm="test", peer=victim.peer_id, key=KEY, created=0.0, ttl_s=1e9))
        lie = Message(
            GET_PROVIDERS,
            KEY,
            providers=(Entry(peer_bytes(victim.peer_id), (b"\x04\x7f\x00\x00\x01\x06\x12\x22",), forged),) * 3,
        )
        assert liar.dht._server is not None
        liar.dht._server._answer = lambda peer, message: lie  # type: ignore[method-assign]
        assert await node.providers() == {}
        assert node.dht.counters.refused.total() == 3


async def test_names_and_addresses_that_are_none_harm_nobody() -> None:
    async with a_line(2) as (node, liar):
        stranger = peer_bytes(Identity.generate().peer_id)
        names = (b"x", b"\x00" * 38, stranger[:-1], b"\x12\x20" + b"h" * 32, peer_bytes(node.id), stranger)
        ports = (b"\x04\x7f\x00\x00\x01\x06\x00\x01", b"\xff" * 40, b"", b"\x04\x00\x00\x00\x00\x06\x00\x01")
        lie = Message(FIND_NODE, KEY, closer=tuple(Entry(name, ports) for name in names))
        assert liar.dht._server is not None
        liar.dht._server._answer = lambda peer, message: lie  # type: ignore[method-assign]
        with trio.fail_after(10):
            assert await node.dht.refresh() == 1
            assert await node.providers() == {}
            assert await node.dht.find_peer(node.id) == ()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(frame(Message(PUT_VALUE, b"/pk/anything", b"v")), id="foreign namespace"),
        pytest.param(frame(Message(PUT_VALUE, b"plain", b"v")), id="no namespace"),
        pytest.param(frame(Message(ADD_PROVIDER, KEY)), id="no provider"),
        pytest.param(frame(Message(ADD_PROVIDER, KEY, providers=(Entry(b"a"), Entry(b"b")))), id="two providers"),
        pytest.param(frame(Message(GET_PROVIDERS, b"")), id="no key"),
        pytest.param(b"\x81\x80\x04" + b"x" * 100, id="oversized"),
        pytest.param(b"\xff\xff\xff\xff\xff\xff\x01", id="length bomb"),
        pytest.param(b"\x05\xff\xff\xff\xff\xff", id="noise"),
    ],
)
async def test_who_breaks_the_rules_is_cut_off_and_others_notice_nothing(sent: bytes) -> None:
    async with a_line(3) as (attacker, node, friend):
        await friend.dht.refresh()
        with pytest.raises(StreamLost):
            await asked(attacker, node, sent)
        with trio.fail_after(5):
            while node.host.is_connected(attacker.id):
                await trio.sleep(0.01)
        assert node.dht.counters.violations == 1
        assert await asked(friend, node, Message(FIND_NODE, KEY))


async def test_a_value_record_of_another_node_is_refused() -> None:
    async with a_line(2) as (attacker, node):
        key = node_key(node.id)
        sealed = seal(
            attacker.identity, Statement(swarm="test", peer=node.id, key=key, created=time.time(), ttl_s=60.0)
        )
        put, got = await asked(attacker, node, Message(PUT_VALUE, key, sealed), Message(GET_VALUE, key))
        assert (put.key, got.value) == (b"", None)


async def test_a_flood_of_records_is_kept_within_its_bounds() -> None:
    limits = DhtLimits(stores_per_minute=20.0, requests_per_s=1000.0, records_per_peer=15)
    async with a_line(2, limits=limits) as (attacker, node):
        flood = [announcement(attacker, b"key %d" % number) for number in range(60)]
        answers = await asked(attacker, node, *flood)
        assert sum(bool(answer.key) for answer in answers) == len(node.dht.records) == 15
        refused = node.dht.counters.refused + node.dht.records.refused
        assert refused["peer_full"] >= 5
        assert refused["rate"] >= 30


async def test_a_flood_of_questions_is_slowed_down_and_then_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kad_server, "PATIENCE_S", 0.3)
    async with a_line(3, limits=DhtLimits(requests_per_s=4.0)) as (attacker, node, friend):
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                with pytest.raises((StreamLost, trio.TooSlowError)):
                    await asked(attacker, node, *[Message(FIND_NODE, b"k")] * 40)

            for _ in range(4):
                nursery.start_soon(flood)
            with trio.fail_after(15):
                assert await asked(friend, node, Message(FIND_NODE, KEY))
        assert not node.host.is_connected(attacker.id)
        assert node.host.is_connected(friend.id)
        assert node.dht.counters.served < 40


async def test_more_streams_than_a_peer_may_have_are_refused() -> None:
    async with a_line(2, limits=DhtLimits(streams_per_peer=2)) as (attacker, node):
        held = [await attacker.host.open_stream(node.id, PROTOCOL) for _ in range(2)]
        for stream in held:
            await stream.write(b"\x05")  # and nothing behind it
        await trio.testing.wait_all_tasks_blocked(0.05)
        with pytest.raises(StreamLost):
            await asked(attacker, node, Message(FIND_NODE, KEY))
        for stream in held:
            await stream.close()


async def test_who_does_not_belong_is_neither_answered_nor_told_of() -> None:
    strangers: set[object] = set()
    async with a_line(3, admits=lambda peer: peer not in strangers) as (one, middle, other):
        await other.dht.provide([(KEY, 600.0)])
        assert list(await one.providers()) == [other.id]
        strangers.add(other.id)
        with pytest.raises(StreamLost):
            await asked(other, middle, Message(FIND_NODE, KEY))
        (answer,) = await asked(one, middle, Message(GET_PROVIDERS, KEY))
        assert (answer.closer, answer.providers) == ((), ())


async def test_a_client_of_an_ipfs_dht_takes_and_gives_bare_records() -> None:
    """Two of them and a server that speaks for Kubo: what one announces the other finds, without a signature."""
    async with DhtNode(signed=False, serve=False).running() as one, DhtNode(signed=False, serve=False).running() as two:
        kept: list[Entry] = []

        async def kubo(stream: Any) -> None:
            incoming = Incoming(stream, 3)
            while (size := await incoming.size()) is not None:
                message = decode(await incoming.take(size))
                if message.kind == ADD_PROVIDER:
                    kept.extend(entry for entry in message.providers if entry.id == peer_bytes(stream.remote))
                else:
                    await stream.write(frame(Message(message.kind, message.key, providers=tuple(kept))))

        async with DhtNode(protocol="/unused").running() as server:
            server.host.handle(PROTOCOL, kubo)
            for node in (one, two):
                await node.host.connect(server.id, server.host.addresses())
                node.dht.meet(server.id, server.host.addresses())
            assert await one.dht.provide([(KEY, 600.0)]) == {KEY}
            with trio.fail_after(5):
                while not kept:
                    await trio.sleep(0.01)
            assert await two.providers() == {one.id: tuple(one.host.addresses())}


def test_the_dht_counts_for_the_status() -> None:
    identity = Identity.generate()
    dht = Dht(DhtNode().host, identity, PROTOCOL)
    assert dht.stats()["peers"] == 0
