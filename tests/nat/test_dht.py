"""The DHT for nodes that cannot be dialled: their records name relays, and whoever finds one comes by the relay."""

from __future__ import annotations

from typing import Any

import pytest

from tests.nat.lab import PORT, PUBLIC, Lab
from tests.nat.people import EVERYWHERE, ask, config, get, peer_of, until, until_knows, until_placed

pytestmark = pytest.mark.nat

# Neighbours are those that are named, and nothing is heard of anybody else: what is found is found in the DHT.
NO_GOSSIP = "neighbours = 0\nheard_adverts = 0"
SOON = "\n[dht]\nannounce_every_s = 0.5\nrefresh_s = 2\nfind_ms = 5000\n"


async def test_a_model_behind_another_nat_is_found_through_the_relay_and_asked(lab: Lab) -> None:
    lab.up("sym", "sym")
    async with lab.upstream("nodeb") as upstream:
        listen = ("--listen", f"/ip4/{PUBLIC['relay']}/tcp/{PORT}")
        with (
            await lab.node("relay", *listen, config=config(swarm=NO_GOSSIP, relay="serve = true") + SOON) as relay,
            await lab.node(
                "nodeb",
                *EVERYWHERE,
                "--join",
                relay.invite,
                config=config(upstream.url("each"), swarm=NO_GOSSIP) + SOON,
            ) as b,
            await lab.node("nodea", *EVERYWHERE, "--join", relay.invite, config=config(swarm=NO_GOSSIP) + SOON) as a,
        ):
            await until_placed(b, relay)
            await until_knows(a, relay)

            async def announced() -> Any:
                return (await get(b, "/shoal/v1/status"))["dht"]["swarm"]["announced"]["models"]

            await until(announced, 15, "b's model is announced")
            assert not (await peer_of(a, b)).get("connected")
            answer = await ask(a, "one two three")
            assert (answer.text, answer.error) == ("ECHO<one two three>", "")
            assert (await peer_of(a, b))["via"] == "relayed"
            assert (await get(a, "/shoal/v1/status"))["dht"]["swarm"]["found"]["model"] == 1
