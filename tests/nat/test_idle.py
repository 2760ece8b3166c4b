"""A line on which nothing is said, cut without a word: both ends notice, though no heartbeat is due."""

from __future__ import annotations

import time

import pytest
import trio

from tests.nat.lab import Lab, LabNode
from tests.nat.people import EVERYWHERE, a_relay, config, peer_of, until, until_knows, until_placed

pytestmark = pytest.mark.nat

NOTICED_S = 6.0  # swarm.silent_line_s
LOOKING_S = 1.0  # what the probes' grid of a second and the looking itself take


async def gone(node: LabNode, other: LabNode) -> bool:
    return not (await peer_of(node, other)).get("connected")


async def test_an_idle_line_to_a_relay_that_is_cut_silently_is_noticed_at_both_ends(lab: Lab) -> None:
    lab.up("sym", "sym")
    with (
        await a_relay(lab) as relay,
        await lab.node("nodea", *EVERYWHERE, "--join", relay.invite, config=config()) as a,
    ):
        await until_placed(a, relay)
        await until_knows(relay, a)
        await trio.sleep(3)  # what follows a new connection is over
        began = time.monotonic()
        await trio.to_thread.run_sync(lab.cut, "a")
        noticed: dict[str, float] = {}

        async def watch(node: LabNode, other: LabNode) -> None:
            await until(lambda: gone(node, other), NOTICED_S + LOOKING_S, f"{node.name} notices")
            noticed[node.name] = time.monotonic() - began

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, a, relay)
            nursery.start_soon(watch, relay, a)
        print(f"noticed after {noticed}")
        await trio.to_thread.run_sync(lab.heal)
        await until_knows(a, relay, within=10)
