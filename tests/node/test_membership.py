"""Which swarm a start belongs to, and what it opens to the world."""

from __future__ import annotations

import pytest
from shoal.node.config import SwarmSection
from shoal.node.membership import decide
from shoal.node.state import P2pState
from shoal.node.swarm.invite import Invite, InviteError
from shoal.protocols.peer_id import Identity

PEER = Identity.from_seed(bytes(32)).peer_id
HERE = f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}"
AWAY = f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}"
KEY = bytes(range(32))


def invite(addr: str = HERE, swarm: str = "home", key: bytes | None = None) -> str:
    return Invite(swarm=swarm, addrs=(addr,), key=key).text


def test_a_lone_node_listens_on_loopback_only() -> None:
    found = decide(SwarmSection())
    assert (found.name, found.key, found.listen, found.opened) == ("shoal", None, ("/ip4/127.0.0.1/tcp/0",), False)


def test_a_swarm_of_this_machine_stays_on_loopback() -> None:
    found = decide(SwarmSection(), joined=[invite(HERE)])
    assert (found.name, found.listen, found.opened) == ("home", ("/ip4/127.0.0.1/tcp/0",), False)


def test_joining_beyond_this_machine_opens_every_interface() -> None:
    found = decide(SwarmSection(), joined=[invite(AWAY)])
    assert (found.listen, found.opened) == (("/ip4/0.0.0.0/tcp/4642",), True)


def test_what_the_owner_set_decides_where_it_listens() -> None:
    section = SwarmSection(listen=("/ip4/10.0.0.1/tcp/7",))
    found = decide(section, joined=[invite(AWAY)])
    assert (found.listen, found.chosen, found.opened) == (section.listen, True, False)


def test_the_port_of_the_last_start_is_taken_again() -> None:
    ports = P2pState(loopback=4321, everywhere=1234)
    assert decide(SwarmSection(), ports=ports).listen == ("/ip4/127.0.0.1/tcp/4321",)
    assert decide(SwarmSection(), joined=[invite(AWAY)], ports=ports).listen == ("/ip4/0.0.0.0/tcp/1234",)


def test_an_invite_brings_name_and_key() -> None:
    found = decide(SwarmSection(), joined=[invite(key=KEY)])
    assert (found.name, found.key) == ("home", KEY)


def test_the_command_line_wins_over_what_was_joined_over_the_configuration() -> None:
    section = SwarmSection(name="configured", peers=(AWAY,))
    assert decide(section).name == "configured"
    assert decide(section, remembered=invite(swarm="remembered")).name == "remembered"
    both = decide(section, joined=[invite(swarm="now")], remembered=invite(swarm="remembered"))
    assert both.name == "now"
    assert any("'configured'" in note and "--forget" in note for note in both.notes)


def test_a_bare_address_is_of_the_configured_swarm() -> None:
    found = decide(SwarmSection(name="mine", key=KEY.hex(), peers=(HERE,)))
    assert (found.name, found.key, len(found.invites)) == ("mine", KEY, 1)


def test_the_configured_key_serves_an_invite_without_one_to_the_same_swarm_only() -> None:
    section = SwarmSection(name="home", key=KEY.hex())
    assert decide(section, joined=[invite(swarm="home")]).key == KEY
    assert decide(section, joined=[invite(swarm="other")]).key is None


def test_invites_to_two_swarms_are_not_mixed() -> None:
    found = decide(SwarmSection(peers=(invite(swarm="b"),)), joined=[invite(swarm="a")])
    assert [i.swarm for i in found.invites] == ["a"]
    assert any("one swarm at a time" in note for note in found.notes)


def test_a_bad_invite_is_refused() -> None:
    with pytest.raises(InviteError):
        decide(SwarmSection(), joined=["shoal1nonsense"])


def test_the_key_is_not_shown() -> None:
    found = decide(SwarmSection(), joined=[invite(key=KEY)])
    assert KEY.hex() not in repr(found)
    assert repr(KEY) not in repr(found)
