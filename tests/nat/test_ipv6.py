"""IPv6: no NAT is in the way, some nodes have nothing else, and link-local addresses are nobody's business."""

from __future__ import annotations

from typing import Any

import pytest

from tests.nat.lab import PORT, Lab, LabNode
from tests.nat.people import a_relay, ask, config, get, until_knows

pytestmark = pytest.mark.nat

BOTH = ("--listen", f"/ip6/::/tcp/{PORT}")  # takes IPv4, too


async def all_addresses(*nodes: LabNode) -> list[str]:
    """Whatever these nodes say of themselves and were told of others."""
    told: list[str] = []
    for node in nodes:
        status: Any = (await get(node, "/shoal/v1/status"))["swarm"]
        told += status["addresses"]
        for peer in (await get(node, "/shoal/v1/peers"))["peers"]:
            told += peer["addresses"]
    return told


async def test_two_nodes_whom_no_hole_could_be_punched_for_are_direct_by_ipv6(lab: Lab) -> None:
    lab.up("sym", "sym")
    lab.six()
    async with lab.upstream("nodeb") as upstream:
        with (
            await a_relay(lab) as relay,
            await lab.node("nodeb", *BOTH, "--join", relay.invite, config=config(upstream.url("each"))) as b,
            await lab.node("nodea", *BOTH, "--join", relay.invite, config=config()) as a,
        ):
            await until_knows(a, b, via="direct", within=10)
            answer = await ask(a, "one two three")
            assert (answer.text, answer.error) == ("ECHO<one two three>", "")
            told = await all_addresses(relay, a, b)
            assert any(address.startswith("/ip6/2a0e:b::2/") for address in told)
            assert not any("/ip6/fe80" in address for address in told)
            outside = (await get(relay, "/shoal/v1/peers"))["peers"]
            assert not any("/::1/" in at or "/127." in at for peer in outside for at in peer["addresses"])


async def test_a_node_without_ipv4_and_one_with_both_answer_each_other(lab: Lab) -> None:
    lab.up("cone", "cone")
    lab.six()
    lab.nofour("nodea")
    async with lab.upstream("nodeb") as upstream, lab.upstream("nodea") as own:
        with await lab.node("nodeb", *BOTH, config=config(upstream.url("each"))) as b:
            invite = f"/ip6/2a0e:b::2/tcp/{PORT}/p2p/{b.peer_id}"
            mine = config(own.url("each")).replace('models = ["echo"]', 'models = ["mine"]')
            with await lab.node("nodea", *BOTH, "--join", invite, config=mine) as a:
                await until_knows(a, b, via="direct")
                await until_knows(b, a, via="direct")
                assert (await ask(a, "one two three")).text == "ECHO<one two three>"
                told = await all_addresses(a, b)
                assert any(address.startswith("/ip6/2a0e:a::2/") for address in told)
                assert not any("/ip6/fe80" in address or "/ip4/0.0.0.0" in address for address in told)
