"""The configuration of NATs, and what people get to see of a node's reachability."""

from __future__ import annotations

import msgspec
import pytest
from shoal.node.commands.checks import Finding
from shoal.node.commands.nat_checks import of_nat
from shoal.node.commands.reachable import in_a_line
from shoal.node.config import NatSection
from shoal.protocols.p2p.nat_limits import NatLimits


def test_every_limit_has_a_key_in_the_configuration_with_the_same_default():
    assert NatSection.__struct_fields__ == NatLimits.__struct_fields__
    assert msgspec.convert(NatSection(), NatLimits, from_attributes=True) == NatLimits()


def report(seen: dict, *, places: int = 0, peers: tuple = (), **relays) -> dict[str, Finding]:
    held = [{"relay": f"12D3KooWrelay{number}"} for number in range(places)]
    swarm = {"up": True, "reachability": seen, "relays": {"places": held, **relays}}
    found = {finding.name: finding for finding in of_nat(swarm, list(peers))}
    assert all(finding.text == finding.text.strip() for finding in found.values())
    return found


SEEN = {"scope": "internet", "ips": ["11.22.33.1"], "port": 4001, "yes": 0, "no": 2, "reach": "private"}


def test_a_cone_nat_without_a_relay_says_what_to_open_and_where_a_relay_comes_from():
    found = report({**SEEN, "nat": "keeps-ports", "why": "no answer within 3 s"})
    assert found["NAT"].state == "ok"
    assert found["NAT"].text == "one that keeps ports (cone); the internet sees this node at 11.22.33.1"
    reach = found["reach"]
    assert (reach.state, reach.text) == (
        "note",
        "others cannot dial this node (0 of 2 asked could; no answer within 3 s), and it has no relay",
    )
    assert "forward TCP port 4001" in reach.remedy
    assert "relay.serve = true" in reach.remedy
    assert "join a swarm with a relay" in reach.remedy


def test_with_relays_a_cone_nat_is_in_order():
    found = report({**SEEN, "nat": "keeps-ports"}, places=2)
    assert found["reach"].state == "ok"
    assert "through 2 relays" in found["reach"].text
    assert found["relays"].text == "2 places are held, at ...relay0, ...relay1"


def test_a_symmetric_nat_is_told_as_one_and_what_would_help():
    found = report({**SEEN, "nat": "changes-ports"}, places=1)
    assert found["NAT"].state == "note"
    assert "symmetric" in found["NAT"].text
    assert "forward TCP port 4001" in found["NAT"].remedy


def test_a_forwarded_port_needs_nothing():
    found = report({**SEEN, "nat": "changes-ports", "reach": "public", "yes": 2, "no": 0})
    assert {finding.state for finding in found.values()} == {"ok"}
    assert found["reach"].text == "others can dial this node at 11.22.33.1:4001 (2 of 2 asked could)"


def test_peers_that_disagree_are_told_of_and_not_smoothed_over():
    found = report({**SEEN, "nat": "keeps-ports", "reach": "unknown", "yes": 1, "no": 1})
    assert found["reach"].text == "peers do not agree whether they can dial this node (1 of 2 asked could)"


@pytest.mark.parametrize(
    ("seen", "peers", "state", "text"),
    [
        ({}, (), "ok", "unknown while no peer is there to ask"),
        ({}, ({"connected": True},), "note", "no peer has said yet how it sees this node"),
        ({"scope": "machine"}, (), "ok", "only peers of this machine were there to ask"),
        (
            {"scope": "network", "ips": ["192.168.1.7"]},
            (),
            "ok",
            "peers of the local network see this node at 192.168.1.7; nobody beyond it was there to ask",
        ),
    ],
)
def test_what_nobody_has_seen_is_not_claimed(seen, peers, state, text):
    found = report(seen, peers=peers)
    assert (found["NAT"].state, found["NAT"].text) == (state, text)
    assert "reach" not in found


def test_peers_on_a_relay_are_counted_with_the_reason():
    peer = {"connected": True, "via": "relayed", "via_note": "the NAT of the peer changes ports"}
    found = report({**SEEN, "nat": "keeps-ports"}, places=1, peers=(peer, {"connected": True, "via": "direct"}))
    assert found["direct"].text == "1 peer is connected through a relay: the NAT of the peer changes ports"


def test_a_relay_without_room_and_relaying_for_others_are_told():
    full = {"problems": {"12D3KooWfull01": "the relay takes no more reservations"}}
    found = report({**SEEN, "nat": "keeps-ports"}, **full, serves={"reservations": 3, "circuits": 1})
    assert found["relays"].text == "no place at ...full01: the relay takes no more reservations"
    assert found["relaying"].text == "for others: 3 places given away, 1 connection now"


@pytest.mark.parametrize(
    ("seen", "places", "line"),
    [
        ({}, 0, "not known"),
        ({**SEEN, "nat": "keeps-ports"}, 2, "not directly, through 2 relays, NAT: one that keeps ports (cone)"),
        ({**SEEN, "nat": "changes-ports"}, 0, "no, NAT: one that changes ports (symmetric)"),
        ({"scope": "network", "reach": "public", "nat": "none"}, 0, "yes from the local network"),
        ({"scope": "internet", "reach": "public", "nat": "none"}, 0, "yes, NAT: none"),
    ],
)
def test_the_status_has_it_in_a_line(seen, places, line):
    assert in_a_line(seen, places) == line
