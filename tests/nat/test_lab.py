"""The lab does what it says, before anything is concluded from it."""

from __future__ import annotations

import socket
import subprocess

import pytest

from tests.e2e.fixtures import NO_MODEL
from tests.nat.lab import PORT, RELAY, Lab

pytestmark = pytest.mark.nat


def reaches(lab: Lab, name: str, address: str) -> bool:
    def connect() -> bool:
        try:
            socket.create_connection((address, PORT), timeout=1).close()
        except TimeoutError:
            return False
        return True

    return lab.inside(name, connect)


def listening(lab: Lab, name: str) -> socket.socket:
    return lab.inside(name, socket.create_server, ("0.0.0.0", PORT))


def test_a_node_behind_a_nat_reaches_the_public_net_but_not_the_other_node(lab: Lab) -> None:
    lab.up("cone", "open")
    with listening(lab, "relay"), listening(lab, "nodea"), listening(lab, "nodeb"):
        assert reaches(lab, "nodea", RELAY)
        assert reaches(lab, "nodeb", RELAY)
        assert not reaches(lab, "nodeb", "11.22.33.1")
        assert reaches(lab, "nodea", "11.22.33.2"), "the forwarded port"
        lab.cut("a")
        assert not reaches(lab, "nodea", RELAY)
        lab.heal()
        lab.cut(f"a:{RELAY}")
        assert not reaches(lab, "nodea", RELAY)
        assert reaches(lab, "nodea", "11.22.33.2")
        lab.heal()
        assert reaches(lab, "nodea", RELAY)


async def test_a_real_node_lives_in_a_namespace_and_its_commands_find_it(lab: Lab) -> None:
    lab.up()
    with await lab.node("relay", "--listen", f"/ip4/{RELAY}/tcp/{PORT}", config=NO_MODEL) as node:
        said = await node.do(node.shoal, "status", "--json")
        assert RELAY in said.stdout
        assert f"/ip4/{RELAY}/tcp/{PORT}" in node.facts["addresses"][0]


def test_nothing_is_left_of_a_lab(lab: Lab) -> None:
    lab.up()
    lab.__exit__()
    assert subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout == ""
