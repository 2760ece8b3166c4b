"""From the relay to a direct connection, where the NATs of both sides allow it: real daemons, in namespaces."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import pytest
import trio

from tests.nat.lab import Lab, LabNode
from tests.nat.people import EVERYWHERE, Stream, a_relay, ask, config, get, peer_of, until, until_knows, until_placed

pytestmark = pytest.mark.nat

PRIVATE = f'key = "{"ab" * 32}"\n'
DIRECT_WITHIN_S = 5.0
LONG_S = float(os.environ.get("SHOAL_NAT_LONG_S", "12"))  # of an answer that outlives the move; 75 passes libp2p's cut


class Pair(NamedTuple):
    a: LabNode
    b: LabNode
    relay: LabNode


@asynccontextmanager
async def pair(lab: Lab, manner: str = "each", *, swarm: str = "", nat: str = "") -> AsyncIterator[Pair]:
    """Two nodes and the relay that both have joined; b answers."""
    async with lab.upstream("nodeb") as upstream, AsyncExitStack() as stack:
        relay = stack.enter_context(await a_relay(lab, swarm=swarm))
        more = f"\n[nat]\n{nat}"
        shared = config(upstream.url(manner), swarm=swarm) + more
        b = stack.enter_context(await lab.node("nodeb", *EVERYWHERE, "--join", relay.invite, config=shared))
        asking = config(swarm=swarm) + more
        a = stack.enter_context(await lab.node("nodea", *EVERYWHERE, "--join", relay.invite, config=asking))
        yield Pair(a, b, relay)


async def seconds_until_direct(node: LabNode, other: LabNode) -> float:
    """From the first session between them until it is a direct one."""
    await until_knows(node, other)
    began = time.monotonic()
    await until_knows(node, other, via="direct", within=DIRECT_WITHIN_S)
    return time.monotonic() - began


async def doctor(node: LabNode) -> dict[str, Any]:
    said = json.loads((await node.do(node.shoal, "doctor", "--json", check=False)).stdout)
    return {finding["name"]: finding for finding in said["findings"]}


@pytest.mark.parametrize(
    ("kinds", "swarm"),
    [
        (("cone", "cone"), ""),
        (("cone", "cone"), PRIVATE),
        (("open", "cone"), ""),
        (("cone", "open"), ""),
        (("full", "cone"), ""),
        (("sym", "open"), ""),
    ],
    ids=["cone-cone", "cone-cone in a private swarm", "open-cone", "cone-open", "full-cone", "sym-open"],
)
async def test_where_a_port_can_be_foretold_the_nodes_go_direct(lab: Lab, kinds: tuple[str, str], swarm: str) -> None:
    lab.up(*kinds)
    async with pair(lab, swarm=swarm) as (a, b, relay):
        took_s = await seconds_until_direct(a, b)
        print(f"direct after {took_s:.2f} s")  # a figure for who runs it with -s
        await until_knows(b, a, via="direct", within=DIRECT_WITHIN_S)
        answer = await ask(a, "one two three")
        assert (answer.text, answer.error) == ("ECHO<one two three>", "")
        relay.kill()
        began = time.monotonic()
        answer = await ask(a, "four five six")
        assert (answer.text, answer.error) == ("ECHO<four five six>", ""), "the relay's death costs nothing"
        assert answer.times[0] - began < 1.4, "no silence was waited for, which takes 1.5 s"
        assert (await peer_of(a, b))["via"] == "direct"


@pytest.mark.parametrize("kinds", [("cone", "sym"), ("sym", "cone"), ("sym", "sym")], ids="-".join)
async def test_where_a_nat_changes_ports_they_stay_on_the_relay_and_know_why(lab: Lab, kinds: tuple[str, str]) -> None:
    lab.up(*kinds)
    async with pair(lab) as (a, b, relay):
        await until_placed(b, relay)
        await until_knows(a, b, via="relayed")

        async def said() -> str:
            return str((await peer_of(a, b)).get("via_note"))

        assert "changes ports" in await until(said, 10, "the reason is told")
        for text in ("one two three", "four five six"):
            answer = await ask(a, text)
            assert (answer.text, answer.error) == (f"ECHO<{text}>", "")
        assert (await peer_of(a, b))["via"] == "relayed"
        tries = (await get(a, "/shoal/v1/status"))["swarm"]["reachability"]
        assert (tries["punched"], tries["punched_in_vain"]) == (0, 0), "nobody has dialled in vain"
        found = await doctor(a)
        assert "through a relay" in found["direct"]["text"]
        assert ("symmetric" in found["NAT"]["text"]) == (kinds[0] == "sym")


async def test_an_answer_in_progress_on_the_relay_goes_on_there_while_new_ones_go_direct(lab: Lab) -> None:
    lab.up("cone", "cone")
    words = int(LONG_S / 0.1)
    async with pair(lab, f"words{words}+slow100", nat="punch_again_s = 10\npunch_tries = 1\n") as (a, b, relay):
        lab.cut("ab")  # no hole can be punched yet
        await until_placed(b, relay)
        await until_knows(a, b, via="relayed")
        async with trio.open_nursery() as nursery:
            stream = Stream(a, "a long story")
            nursery.start_soon(stream.run)
            with trio.fail_after(10):
                while not stream.times:
                    await trio.sleep(0.05)
            lab.heal()
            await until_knows(a, b, via="direct", within=30)
            moved = time.monotonic()
            assert stream.times[-1] - stream.times[0] < LONG_S, "it is still being told"
        assert stream.error == ""
        assert len(stream.text.split()) == words
        assert stream.times[-1] > moved
        assert stream.gap < 1.0

        async def only_direct() -> bool:
            return (await get(relay, "/shoal/v1/status"))["swarm"]["relays"]["serves"]["circuits"] == 0

        await until(only_direct, 30, "the relayed connection is closed once it is idle")
        assert (await peer_of(a, b))["via"] == "direct"


async def test_a_direct_line_that_is_cut_silently_gives_way_to_the_relay_and_comes_back(lab: Lab) -> None:
    lab.up("cone", "cone")
    async with pair(lab) as (a, b, _relay):
        await until_knows(a, b, via="direct")
        lab.cut("ab")
        answer = await ask(a, "one two three")
        assert (answer.text, answer.error) == ("ECHO<one two three>", "")
        assert answer.times[0] - answer.began < 4.0, "1.5 s of silence, and a new connection"
        await until_knows(a, b, via="relayed")
        lab.heal()
        # Tries that were made while the line was cut are made again 30 s later (punching.AGAIN_SOON_S).
        await until_knows(a, b, via="direct", within=45)
        assert (await ask(a, "four five six")).text == "ECHO<four five six>"


async def test_the_owner_can_forbid_punching(lab: Lab) -> None:
    lab.up("cone", "cone")
    async with pair(lab, nat="punch = false\n") as (a, b, relay):
        await until_placed(b, relay)
        await until_knows(a, b, via="relayed")
        await trio.sleep(DIRECT_WITHIN_S)  # the time in which it would have happened
        assert (await peer_of(a, b))["via"] == "relayed"
        assert (await ask(a, "one two three")).text == "ECHO<one two three>"
