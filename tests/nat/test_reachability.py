"""Real nodes find out what kind of NAT they are behind and whether others can dial them, and say so."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from tests.e2e.fixtures import NO_MODEL
from tests.nat.lab import PORT, PUBLIC, Lab, LabNode

pytestmark = pytest.mark.nat

KEY = "ab" * 32
LISTEN = ("--listen", f"/ip4/0.0.0.0/tcp/{PORT}")


async def json_of(node: LabNode, *command: str) -> Any:
    return json.loads((await node.do(node.shoal, *command, "--json", check=False)).stdout)


async def seen(node: LabNode, within: float = 15.0) -> dict[str, Any]:
    """The node's reachability, as soon as there is a verdict."""
    with trio.fail_after(within):
        while True:
            found: dict[str, Any] = (await json_of(node, "status"))["swarm"]["reachability"]
            if found.get("reach", "unknown") != "unknown":
                return found
            await trio.sleep(0.2)


async def public(lab: Lab, stack: AsyncExitStack, name: str, config: str = "") -> LabNode:
    listen = ("--listen", f"/ip4/{PUBLIC[name]}/tcp/{PORT}")
    node: LabNode = stack.enter_context(await lab.node(name, *listen, config=NO_MODEL + config))
    return node


PRIVATE = f'[swarm]\nkey = "{KEY}"\n'


@pytest.mark.parametrize(
    ("kind", "nat", "reach", "key"),
    [
        ("cone", "keeps-ports", "private", ""),
        ("full", "keeps-ports", "public", ""),
        ("open", "keeps-ports", "public", ""),
        ("sym", "changes-ports", "private", ""),
        ("cone", "keeps-ports", "private", PRIVATE),
        ("open", "keeps-ports", "public", PRIVATE),
    ],
    ids=["cone", "full", "open", "sym", "cone in a private swarm", "open in a private swarm"],
)
async def test_each_kind_of_nat_is_told_right(lab: Lab, kind: str, nat: str, reach: str, key: str) -> None:
    lab.up(kind, "cone")
    async with AsyncExitStack() as stack:
        first = await public(lab, stack, "relay", key)
        second = await public(lab, stack, "relay2", key)
        peers = [f"{node.facts['addresses'][0]}" for node in (first, second)]
        swarm = (key or "[swarm]\n") + f"peers = {json.dumps(peers)}\n"
        node = stack.enter_context(await lab.node("nodea", *LISTEN, config=NO_MODEL + swarm))
        found = await seen(node)
        assert (found["nat"], found["reach"], found["scope"]) == (nat, reach, "internet")
        assert (found["ips"], found["port"]) == (["11.22.33.1"], PORT)
        told = {finding["name"]: finding for finding in (await json_of(node, "doctor"))["findings"]}
        assert ("symmetric" in told["NAT"]["text"]) == (nat == "changes-ports")
        assert told["reach"]["text"].startswith("others can dial" if reach == "public" else "others cannot dial")
        advertised = any(
            "/ip4/11.22.33.1/" in address for address in (await json_of(node, "status"))["swarm"]["addresses"]
        )
        assert advertised == (reach == "public"), "others are told the address only if it works"


async def test_a_node_whose_router_gets_a_forwarded_port_learns_it_when_it_asks_again(lab: Lab) -> None:
    lab.up("cone", "cone")
    async with AsyncExitStack() as stack:
        relay = await public(lab, stack, "relay")
        swarm = f"[swarm]\npeers = {json.dumps(relay.facts['addresses'])}\n[nat]\nask_again_s = 5\n"
        node = stack.enter_context(await lab.node("nodea", *LISTEN, config=NO_MODEL + swarm))
        assert (await seen(node))["reach"] == "private"
        lab.nat("a", "open")  # its connections break off, and come again
        with trio.fail_after(90):
            while (await seen(node))["reach"] != "public":
                await trio.sleep(1)
