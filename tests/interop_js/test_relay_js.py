"""Circuit relay v2 with js-libp2p in each of its three roles: who calls, who is called, and the relay between."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from shoal.protocols.p2p.host import Host
from shoal.protocols.p2p.relay import Relay
from shoal.protocols.p2p.reservations import Reservations
from shoal.protocols.peer_id import Identity, PeerId

from tests.interop_js.test_session_js import BUILD, NODE_JS
from tests.protocols.fakes_p2p import LOOPBACK

pytestmark = pytest.mark.interop

PING = "/ipfs/ping/1.0.0"


def command(*args: str) -> list[str]:
    assert NODE_JS.exists(), "js-libp2p is missing: run `make interop`"
    script = BUILD / "shoal_relay.mjs"
    script.write_bytes((Path(__file__).parent / "relay.mjs").read_bytes())
    return [str(NODE_JS), str(script), *args]


def a_host(*, listens: bool = True) -> Host:
    return Host(Identity.generate(), [LOOPBACK] if listens else [])


@asynccontextmanager
async def javascript(*args: str) -> AsyncGenerator[dict[str, Any]]:
    """The script in that role, and the first fact that it tells."""
    async with trio.open_nursery() as nursery:
        run = lambda task_status: trio.run_process(  # noqa: E731
            command(*args), stdout=subprocess.PIPE, check=False, task_status=task_status
        )
        process = await nursery.start(run)
        try:
            line = b""
            with trio.fail_after(30):
                while not line.endswith(b"\n"):
                    line += await process.stdout.receive_some()
            yield json.loads(line)
        finally:
            process.kill()
            nursery.cancel_scope.cancel()


async def pings(host: Host, peer: PeerId) -> bool:
    stream = await host.open_stream(peer, PING)
    try:
        await stream.write(bytes(range(32)))
        with trio.fail_after(5):
            got = b""
            while len(got) < 32:
                got += await stream.read()
        return got == bytes(range(32))
    finally:
        await stream.close()


@asynccontextmanager
async def placed(host: Host, relay: PeerId, addresses: list[str]) -> AsyncGenerator[list[str]]:
    """Where `host` can be called behind a relay."""
    reservations = Reservations(host, changed=lambda: None)
    async with trio.open_nursery() as nursery:
        await nursery.start(reservations.run)
        reservations.want([relay])
        await host.connect(relay, addresses)
        with trio.fail_after(10):
            while not reservations.held:
                await trio.sleep(0.05)
        yield reservations.addresses()
        nursery.cancel_scope.cancel()


async def test_a_javascript_node_calls_one_of_ours_through_a_relay_of_ours() -> None:
    middle, ours = a_host(), a_host(listens=False)
    relay = Relay(middle)
    async with middle.running(), ours.running(), placed(ours, middle.peer_id, middle.addresses()) as told:
        done = await trio.to_thread.run_sync(
            lambda: subprocess.run(command("call", told[0]), capture_output=True, text=True, timeout=60)
        )
        assert done.returncode == 0, done.stderr
        connected, ping = map(json.loads, done.stdout.splitlines())
        assert connected["peer"] == ours.peer_id
        assert connected["limits"], "it knows that the connection is limited"
        assert ping["ms"] >= 0
        assert relay.carried > 0


async def test_a_javascript_node_takes_a_place_behind_a_relay_of_ours_and_is_called_there() -> None:
    middle, ours = a_host(), a_host(listens=False)
    relay = Relay(middle)
    async with middle.running(), ours.running(), javascript("behind", middle.addresses()[0]) as told:
        peer = PeerId(told["peer"])
        assert relay.reserved() == [peer]
        assert told["addresses"]
        await ours.connect(peer, [f"{middle.addresses()[0]}/p2p-circuit/p2p/{peer}"])
        assert ours.relay_of(peer) == middle.peer_id
        assert await pings(ours, peer)


async def test_two_of_ours_meet_through_a_javascript_relay() -> None:
    one, two = a_host(listens=False), a_host(listens=False)
    async with (
        one.running(),
        two.running(),
        javascript("serve") as relay,
        placed(two, PeerId(relay["peer"]), relay["addresses"]) as told,
    ):
        await one.connect(two.peer_id, told)
        assert one.relay_of(two.peer_id) == relay["peer"]
        assert await pings(one, two.peer_id)
        assert await pings(two, one.peer_id)
