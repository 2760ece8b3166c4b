"""Nodes that find each other on the local network; here the network is loopback, where multicast works, too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio
from shoal.protocols.p2p.mdns import Mdns, tag_of
from shoal.protocols.peer_id import Identity

ME, YOU = (Identity.from_seed(bytes([n]) * 32).peer_id for n in (1, 2))


def node(peer, found, *, swarm="home", key=None, port=4642, interfaces=("127.0.0.1",), host="127.0.0.1"):
    return Mdns(
        peer,
        tag_of(swarm, key),
        addresses=lambda: [f"/ip4/{host}/tcp/{port}/p2p/{peer}"],
        found=lambda other, addrs: found.append((other, addrs)),
        interfaces=interfaces,
    )


async def test_two_nodes_of_a_swarm_find_each_other_and_a_third_of_another_does_not():
    found = {name: [] for name in ("me", "you", "stranger")}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node(ME, found["me"]).run)
        nursery.start_soon(node(YOU, found["you"], port=4643).run)
        nursery.start_soon(node(YOU, found["stranger"], swarm="away", port=4644).run)
        with trio.fail_after(20):
            while not (found["me"] and found["you"]):
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert found["me"][0] == (YOU, [f"/ip4/127.0.0.1/tcp/4643/p2p/{YOU}"])
    assert found["you"][0] == (ME, [f"/ip4/127.0.0.1/tcp/4642/p2p/{ME}"])
    assert found["stranger"] == []


async def test_a_node_on_loopback_alone_says_nothing(autojump_clock, monkeypatch):
    quiet = node(ME, [], interfaces=None)
    monkeypatch.setattr(quiet, "_speak", None)  # calling it would fail
    with trio.move_on_after(60):
        await quiet.run()


def test_the_tag_of_a_private_swarm_cannot_be_guessed_from_its_name():
    assert tag_of("home", None) == tag_of("home", None)
    assert len({tag_of("home", None), tag_of("home", b"k" * 32), tag_of("away", None)}) == 3


def answer(**changes):
    properties = {b"v": b"1", b"peer": YOU.encode(), b"tag": tag_of("home", None).encode()}
    fields = {"properties": properties, "port": 4643, "hosts": ["192.0.2.9"]} | changes
    return SimpleNamespace(
        properties=fields["properties"], port=fields["port"], parsed_addresses=lambda: fields["hosts"]
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"properties": {}},
        {"properties": None},
        {"properties": {b"v": b"1", b"peer": b"\xff", b"tag": tag_of("home", None).encode()}},
        {"properties": {b"v": b"1", b"peer": None, b"tag": tag_of("home", None).encode()}},
        {"port": 0},
        {"port": None},
        {"hosts": []},
        {"hosts": ["0.0.0.0"]},
        {"hosts": ["224.0.0.251"]},
        {"hosts": ["::1"]},
    ],
)
def test_an_answer_that_leads_nowhere_is_passed_over(changes):
    found = []
    node(ME, found)._take(answer(**changes))
    assert found == []


def test_an_answer_becomes_addresses_with_the_peers_id():
    found = []
    node(ME, found)._take(answer())
    assert found == [(YOU, [f"/ip4/192.0.2.9/tcp/4643/p2p/{YOU}"])]
