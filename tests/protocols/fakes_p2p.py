"""Hosts to test with: in this process, and in one of their own."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import AsyncIterator

import trio
from shoal.protocols.p2p.host import Host
from shoal.protocols.p2p.limits import HostLimits
from shoal.protocols.p2p.stream import P2pStream
from shoal.protocols.peer_id import Identity, PeerId

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
ECHO = "/test/echo/1"


async def echo(stream: P2pStream) -> None:
    while data := await stream.read():
        await stream.write(data)


def a_host(*listen: str, limits: HostLimits | None = None) -> Host:
    host = Host(Identity.generate(), listen or [LOOPBACK], limits=limits)
    host.handle(ECHO, echo)
    return host


@contextlib.asynccontextmanager
async def two_hosts(limits: HostLimits | None = None) -> AsyncIterator[tuple[Host, Host]]:
    ours, theirs = a_host(), a_host(limits=limits)
    async with ours.running(), theirs.running():
        yield ours, theirs


@contextlib.asynccontextmanager
async def two_ends() -> AsyncIterator[tuple[P2pStream, P2pStream]]:
    """The two ends of one stream; whoever takes them closes them or leaves it to the hosts."""
    send, receive = trio.open_memory_channel[P2pStream](1)

    async def hold(stream: P2pStream) -> None:
        await send.send(stream)
        await trio.sleep_forever()

    async with two_hosts() as (ours, theirs):
        theirs.handle("/test/hold/1", hold)
        await ours.connect(theirs.peer_id, theirs.addresses())
        near = await ours.open_stream(theirs.peer_id, "/test/hold/1")
        yield near, await receive.receive()


async def echoes(host: Host, peer: PeerId) -> bool:
    stream = await host.open_stream(peer, ECHO)
    try:
        await stream.write(b"still there?")
        return await stream.read() == b"still there?"
    finally:
        await stream.close()


CHILD = """
import json, sys, trio
from shoal.protocols.p2p.host import Host
from shoal.protocols.peer_id import Identity

async def echo(stream):
    while data := await stream.read():
        await stream.write(data)

async def sink(stream):
    while await stream.read():
        pass

async def main():
    host = Host(Identity.generate(), ["/ip4/127.0.0.1/tcp/0"])
    host.handle("/test/echo/1", echo)
    host.handle("/test/sink/1", sink)
    async with host.running():
        print(json.dumps([host.peer_id, host.addresses()]), flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def kill(process: trio.Process) -> None:
    process.kill()  # it may be stopped and so deaf to anything milder


@contextlib.asynccontextmanager
async def a_process() -> AsyncIterator[tuple[PeerId, list[str], trio.Process]]:
    """Another node in a process of its own, to be killed."""
    async with trio.open_nursery() as nursery:
        run = functools.partial(
            trio.run_process,
            [sys.executable, "-c", CHILD],
            stdout=subprocess.PIPE,
            check=False,
            deliver_cancel=kill,
        )
        process = await nursery.start(run)
        try:
            assert process.stdout is not None
            line = b""
            with trio.fail_after(30):
                while not line.endswith(b"\n"):
                    line += await process.stdout.receive_some()
            peer_id, addresses = json.loads(line)
            yield peer_id, addresses, process
        finally:
            nursery.cancel_scope.cancel()
