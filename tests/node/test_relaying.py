"""Behind whom a node takes a place, what it tells of it, and who is dialled in short order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from shoal.node import addresses
from shoal.node.config import Config, RelaySection, faults
from shoal.node.swarm.invite import Invite
from shoal.node.swarm.relaying import Offer, Relaying, behind_whom, is_public, relays_in
from shoal.protocols.peer_id import Identity, PeerId

IDS = [Identity.from_seed(bytes([n]) * 32).peer_id for n in range(1, 9)]
ME, R1, R2, R3, B = IDS[:5]


def test_a_node_that_cannot_be_dialled_takes_the_nearest_relays_of_the_internet() -> None:
    offers = [Offer(R1, 0.3, public=True), Offer(R2, 0.1, public=True), Offer(R3, 0.2, public=True)]
    assert behind_whom(offers, 2, reachable=False) == [R2, R3]


def test_it_keeps_the_places_that_it_has() -> None:
    offers = [Offer(R1, 0.3, public=True, held=True), Offer(R2, 0.1, public=True), Offer(R3, 0.2, public=True)]
    assert behind_whom(offers, 2, reachable=False) == [R1, R2]


def test_a_relay_that_has_refused_or_lied_comes_last() -> None:
    offers = [Offer(R1, 0.1, public=True, doubted=True), Offer(R2, 0.9, public=True), Offer(R3, 0.8, public=True)]
    assert behind_whom(offers, 2, reachable=False) == [R3, R2]
    assert behind_whom(offers[:1], 2, reachable=False) == [R1], "better than none"


def test_a_node_that_can_be_dialled_takes_none_but_those_that_its_owner_named() -> None:
    offers = [Offer(R1, 0.1, public=True), Offer(R2, 0.9, named=True)]
    assert behind_whom(offers, 2, reachable=True) == [R2]


def test_a_relay_on_the_own_network_is_used_only_when_it_is_named() -> None:
    assert behind_whom([Offer(R1, 0.1)], 2, reachable=False) == []
    assert behind_whom([Offer(R1, 0.1, named=True)], 2, reachable=False) == [R1]


@given(
    st.lists(
        st.builds(
            Offer,
            peer=st.sampled_from(IDS),
            rtt_s=st.floats(0, 10),
            named=st.booleans(),
            public=st.booleans(),
            held=st.booleans(),
            doubted=st.booleans(),
        ),
        unique_by=lambda offer: offer.peer,
    ),
    st.integers(1, 8),
    st.booleans(),
)
def test_never_more_places_than_wanted_and_the_same_whatever_the_order(
    offers: list[Offer], places: int, reachable: bool
) -> None:
    chosen = behind_whom(offers, places, reachable=reachable)
    assert len(chosen) <= places
    assert chosen == behind_whom(reversed(offers), places, reachable=reachable)
    named = {offer.peer for offer in offers if offer.named}
    assert set(chosen) >= named or len(named) > places or len(chosen) == places


class FakePlaces:
    def __init__(self) -> None:
        self.held: dict[PeerId, Any] = {}
        self.problems: dict[PeerId, str] = {}
        self.wanted: set[PeerId] = set()

    async def run(self) -> None:
        await trio.sleep_forever()

    def want(self, relays: Iterable[PeerId]) -> None:
        self.wanted = set(relays)

    def addresses(self) -> list[str]:
        return [f"/ip4/11.22.33.10/tcp/4001/p2p/{relay}/p2p-circuit/p2p/{ME}" for relay in self.held]


class FakeHost:
    def __init__(self, *own: str) -> None:
        self.own = list(own)

    def addresses(self) -> list[str]:
        return [f"{address}/p2p/{ME}" for address in self.own]

    def public_addresses(self) -> list[str]:
        return self.addresses()

    def remote_ips(self, peer_id: PeerId) -> list[str]:
        return ["11.22.33.10"]


class FakePeer(Struct):
    id: PeerId
    usable: bool = True
    rtt_s: float | None = 0.1


async def looked(relaying: Relaying) -> None:
    relaying.stir()
    await trio.testing.wait_all_tasks_blocked()


async def test_a_relay_that_is_away_for_a_moment_is_still_wanted_and_urgent(autojump_clock: object) -> None:
    places, peer = FakePlaces(), FakePeer(R1)
    relaying = Relaying(FakeHost("/ip4/10.1.0.2/tcp/4001"), places, enabled=True, wanted=2)
    relaying.peers = lambda: [(peer, True)]  # type: ignore[list-item]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relaying.run)
        await looked(relaying)
        assert places.wanted == {R1}
        peer.usable = False
        await looked(relaying)
        assert places.wanted == {R1}
        assert relaying.is_urgent(R1)
        assert not relaying.is_urgent(R2)
        nursery.cancel_scope.cancel()


async def test_a_node_that_others_were_shown_to_reach_gives_its_places_up(autojump_clock: object) -> None:
    places, host = FakePlaces(), FakeHost("/ip4/10.1.0.2/tcp/4001")
    relaying = Relaying(host, places, enabled=True, wanted=2)
    relaying.peers = lambda: [(FakePeer(R1), True)]  # type: ignore[list-item]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relaying.run)
        await looked(relaying)
        assert places.wanted == {R1}
        host.own.insert(0, "/ip4/11.22.33.1/tcp/4001")
        await looked(relaying)
        assert places.wanted == set()
        nursery.cancel_scope.cancel()


async def test_a_public_address_behind_a_firewall_is_no_reason_to_go_without_a_relay(autojump_clock: object) -> None:
    places, found = FakePlaces(), ["unknown"]
    relaying = Relaying(FakeHost("/ip4/11.22.33.1/tcp/4001"), places, enabled=True, wanted=2)
    relaying.peers = lambda: [(FakePeer(R1), True)]  # type: ignore[list-item]
    relaying.reach = lambda: found[0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relaying.run)
        for found[0], wanted in (("unknown", set()), ("private", {R1}), ("public", set())):
            await looked(relaying)
            assert places.wanted == wanted
        nursery.cancel_scope.cancel()


async def test_a_node_whose_owner_wants_no_relays_takes_none(autojump_clock: object) -> None:
    places = FakePlaces()
    relaying = Relaying(FakeHost(), places, enabled=False, wanted=2, named=[R1])
    relaying.peers = lambda: [(FakePeer(R1), True)]  # type: ignore[list-item]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relaying.run)
        await looked(relaying)
        assert places.wanted == set()
        nursery.cancel_scope.cancel()


def test_public_addresses_are_told_first_then_places_then_private_ones() -> None:
    places = FakePlaces()
    places.held = {R1: None}
    relaying = Relaying(FakeHost("/ip4/10.1.0.2/tcp/4001", "/ip4/11.22.33.1/tcp/4001"), places, enabled=True, wanted=1)
    assert [address.partition("/p2p/")[0] for address in relaying.announced()] == [
        "/ip4/11.22.33.1/tcp/4001",
        "/ip4/11.22.33.10/tcp/4001",
        "/ip4/10.1.0.2/tcp/4001",
    ]


def test_an_invite_leads_through_a_relay_and_back() -> None:
    through = f"/ip4/11.22.33.10/tcp/4001/p2p/{R1}/p2p-circuit/p2p/{B}"
    invite = Invite.parse(Invite(swarm="home", addrs=(through, f"/ip4/10.2.0.2/tcp/4001/p2p/{B}")).text)
    assert invite.addrs[0] == through
    assert set(invite.peers) == {B}
    assert relays_in(invite.addrs) == {R1}


@pytest.mark.parametrize(
    "address",
    [
        f"/ip4/11.22.33.10/tcp/4001/p2p/{R1}/p2p-circuit/p2p/{R1}",
        f"/ip4/11.22.33.10/tcp/4001/p2p-circuit/p2p/{B}",
        f"/ip4/11.22.33.10/tcp/4001/p2p/{R1}/p2p-circuit/p2p/{R2}/p2p-circuit/p2p/{B}",
        f"/ip4/11.22.33.10/tcp/4001/p2p/{R1}/p2p-circuit",
        f"/ip4/11.22.33.10/tcp/0/p2p/{R1}/p2p-circuit/p2p/{B}",
        f"/p2p/{R1}/p2p-circuit/p2p/{B}",
    ],
)
def test_an_address_through_a_relay_that_leads_nowhere_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"write it like|port 0|after the port"):
        addresses.check_peer(address)


def test_what_a_relay_of_the_configuration_must_look_like_is_said() -> None:
    good = f"/ip4/192.0.2.7/tcp/4642/p2p/{R1}"
    assert list(faults(Config(relay=RelaySection(relays=(good,))))) == []
    for bad in ("shoal1abc", "/ip4/192.0.2.7/tcp/4642", f"{good}/p2p-circuit/p2p/{R2}"):
        [(key, text)] = list(faults(Config(relay=RelaySection(relays=(bad,)))))
        assert key == "relay.relays[0]"
        assert "write it like" in text


def test_what_belongs_to_the_internet() -> None:
    assert [is_public(host) for host in ("11.22.33.10", "10.0.0.1", "127.0.0.1", "a.example", "localhost", "::1")] == [
        True,
        False,
        False,
        True,
        False,
        False,
    ]
