"""Two nodes behind one NAT, which mostly does not lead back in what one of them sends to its outer address."""

from __future__ import annotations

import pytest

from tests.nat.lab import PORT, Lab
from tests.nat.people import EVERYWHERE, a_relay, ask, config, get, peer_of, until_knows, until_placed

pytestmark = pytest.mark.nat


async def test_they_meet_by_their_inner_addresses_though_they_know_each_other_through_a_relay_alone(lab: Lab) -> None:
    lab.up("sym", "cone")
    async with lab.upstream("nodea") as upstream:
        with (
            await a_relay(lab) as relay,
            await lab.node("nodea", *EVERYWHERE, "--join", relay.invite, config=config(upstream.url("each"))) as a,
            await lab.node("nodea2", *EVERYWHERE, "--join", relay.invite, config=config()) as beside,
        ):
            await until_placed(a, relay)
            await until_knows(beside, a, via="direct", within=5)
            answer = await ask(beside, "one two three")
            assert (answer.text, answer.error) == ("ECHO<one two three>", "")
            told = (await peer_of(beside, a))["addresses"]
            assert any(address.startswith(f"/ip4/10.1.0.2/tcp/{PORT}/") for address in told)
            # And nobody outside is told of loopback, which would be its own.
            for outside in (relay,):
                for peer in (await get(outside, "/shoal/v1/peers"))["peers"]:
                    assert not any("/127." in address or "/::1/" in address for address in peer["addresses"])


async def test_a_forwarded_port_leads_in_from_outside_and_from_inside_where_the_nat_turns_back(lab: Lab) -> None:
    lab.up("hairpin", "cone")
    outer = f"/ip4/11.22.33.1/tcp/{PORT}/p2p/"
    async with lab.upstream("nodea") as upstream:
        with await lab.node("nodea", *EVERYWHERE, config=config(upstream.url("each"))) as a:
            for name in ("nodea2", "nodeb"):
                with await lab.node(name, "--join", outer + a.peer_id, config=config()) as other:
                    await until_knows(other, a, via="direct", within=5)
                    assert (await ask(other, f"from {name}")).text == f"ECHO<from {name}>"


async def test_where_it_does_not_turn_back_the_inner_address_is_used_beside_the_outer_one(lab: Lab) -> None:
    """A node whose port is forwarded tells its outer address first; from inside that leads nowhere."""
    lab.up("open", "cone")
    async with lab.upstream("nodea") as upstream:
        with (
            await a_relay(lab) as relay,
            await a_relay(lab, "relay2", relay) as other,
            await lab.node(
                "nodea",
                *EVERYWHERE,
                "--join",
                relay.invite,
                "--join",
                other.invite,
                config=config(upstream.url("each")),
            ) as a,
        ):
            await until_knows(a, relay)
            await until_knows(a, other)
            with await lab.node("nodea2", *EVERYWHERE, "--join", relay.invite, config=config()) as beside:
                await until_knows(beside, a, via="direct", within=5)
                assert (await ask(beside, "one two three")).text == "ECHO<one two three>"
