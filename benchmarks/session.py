"""What a session costs: CPU of a call and of a token frame, each side in a process of its own, on loopback.

Once over plain TCP (the session's own cost) and once over libp2p with Noise and Yamux (what nodes use). Figures are
CPU time (`process_time`) of each process, so other work on the machine moves them little; the round trip is wall time.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from shoal.protocols.peer_id import Identity
from shoal.protocols.session import ByteStream, Hello, IncomingCall, Session, SessionLimits

from .table import show

CALLS = 2000
STREAMS, FRAMES_PER_STREAM_S, STREAM_SECONDS = 20, 100, 4.0
TOKEN = ["t", " hello"]
SWARM = "benchmark"


class TcpStream:
    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def read(self, n: int) -> bytes:
        return bytes(await self._stream.receive_some(n))

    async def write(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def close_write(self) -> None:
        await self._stream.send_eof()

    async def reset(self) -> None:
        await self._stream.aclose()


class Server:
    """echo; cpu (seconds so far); tokens [count, interval s]; pace (the same timers, nothing sent); fast [count]."""

    async def on_call(self, call: IncomingCall, method: str, params: Any) -> Any:
        if method == "echo":
            return params
        if method == "cpu":
            return time.process_time()
        if method == "fast":
            for _ in range(params[0]):
                await call.send(TOKEN)
            return None
        start = trio.current_time()
        for number in range(params[0]):
            await trio.sleep_until(start + number * params[1])
            if method == "tokens":
                await call.send(TOKEN)
        return None

    def on_hello(self, session: Session, hello: Hello) -> None: ...
    def on_advert(self, session: Session, body: Any) -> None: ...
    def on_note(self, session: Session, name: str, data: Any) -> None: ...

    async def on_lookup(self, session: Session, body: Any) -> Any: ...


CALLER, SERVER = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2))
PROTOCOL = "/shoal/session/1.0.0"


def _session(stream: ByteStream, *, initiator: bool) -> Session:
    mine, theirs = (CALLER.peer_id, SERVER.peer_id) if initiator else (SERVER.peer_id, CALLER.peer_id)
    hello = Hello(swarm=SWARM, peer=mine)
    limits = SessionLimits(frames_per_s=1e6, frame_burst=1e6)
    return Session(stream, Server(), local=hello, remote_peer=theirs, initiator=initiator, limits=limits)


async def _serve_tcp() -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    print(listener.socket.getsockname()[1], flush=True)
    await _session(TcpStream(await listener.accept()), initiator=False).run()


async def _serve_libp2p() -> None:
    from shoal.protocols.p2p.host import Host

    over = trio.Event()

    async def handle(stream: Any) -> None:
        await _session(stream, initiator=False).run()
        over.set()

    host = Host(SERVER, ["/ip4/127.0.0.1/tcp/0"])
    host.handle(PROTOCOL, handle)
    async with host.running():
        print(host.addresses()[0], flush=True)
        await over.wait()


@asynccontextmanager
async def _stream(transport: str, address: str) -> AsyncIterator[ByteStream]:
    if transport == "tcp":
        yield TcpStream(await trio.open_tcp_stream("127.0.0.1", int(address)))
        return
    from shoal.protocols.p2p.host import Host

    host = Host(CALLER)
    async with host.running():
        await host.connect(SERVER.peer_id, [address])
        yield await host.open_stream(SERVER.peer_id, PROTOCOL)


class Cost:
    """CPU microseconds per operation of this process and of the server."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def of(self, work: Callable[[], Awaitable[None]], operations: int) -> tuple[float, float]:
        there, here = await self._session.request("cpu"), time.process_time()
        await work()
        here = time.process_time() - here
        there = await self._session.request("cpu") - there
        return here / operations * 1e6, there / operations * 1e6


async def _drain(session: Session, method: str, params: Any) -> None:
    async with session.call(method, params) as call:
        async for _ in call:
            pass


async def _at_once(session: Session, count: int, method: str, params: Any) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(_drain, session, method, params)


async def _measure(transport: str, address: str) -> list[list[str]]:
    async with _stream(transport, address) as stream:
        return await _measure_on(_session(stream, initiator=True))


async def _measure_on(session: Session) -> list[list[str]]:
    rows: list[list[str]] = []
    cost = Cost(session)

    def row(name: str, figures: tuple[float, float], note: str = "") -> None:
        rows.append([name, f"{figures[0]:.0f}", f"{figures[1]:.0f}", note])

    async with trio.open_nursery() as nursery:
        await nursery.start(session.run)
        await _drain(session, "fast", [2000])  # warm
        times: list[float] = []

        async def unary() -> None:
            for _ in range(CALLS):
                start = time.perf_counter()
                await session.request("echo", {"text": "hello"})
                times.append(time.perf_counter() - start)

        figures = await cost.of(unary, CALLS)
        times.sort()
        p50, p99 = statistics.median(times) * 1e3, times[int(len(times) * 0.99)] * 1e3
        row("a call, one at a time", figures, f"gate 500; round trip p50 {p50:.2f} ms, p99 {p99:.2f} ms")

        async def sixteen() -> None:
            async def some() -> None:
                for _ in range(CALLS // 16):
                    await session.request("echo", {"text": "hello"})

            async with trio.open_nursery() as callers:
                for _ in range(16):
                    callers.start_soon(some)

        row("a call, 16 at once", await cost.of(sixteen, CALLS))

        count = int(FRAMES_PER_STREAM_S * STREAM_SECONDS)
        total = count * STREAMS
        pacing = await cost.of(lambda: _at_once(session, STREAMS, "pace", [count, 1 / FRAMES_PER_STREAM_S]), total)
        figures = await cost.of(lambda: _at_once(session, STREAMS, "tokens", [count, 1 / FRAMES_PER_STREAM_S]), total)
        net = (figures[0] - pacing[0], figures[1] - pacing[1])
        row(f"a token frame at {STREAMS * FRAMES_PER_STREAM_S}/s", net, "gate 40; the server's timers subtracted")
        row("... with the timers", figures)

        start = time.perf_counter()
        figures = await cost.of(lambda: _at_once(session, 4, "fast", [25_000]), 100_000)
        row("a token frame, flat out", figures, f"{100_000 / (time.perf_counter() - start):,.0f} frames/s")

        body = b"x" * 8_000_000
        figures = await cost.of(lambda: _drain(session, "echo", body), 16)
        row("a MB in parts, there and back", figures)
        nursery.cancel_scope.cancel()
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        trio.run(_serve_tcp if sys.argv[2] == "tcp" else _serve_libp2p)
        return
    for transport, name in (("tcp", "plain TCP"), ("libp2p", "libp2p (Noise, Yamux)")):
        command = [sys.executable, "-m", "benchmarks.session", "--serve", transport]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            try:
                rows = trio.run(_measure, transport, address)
            finally:
                server.terminate()
        show(f"Session over {name}: CPU in us per operation", ["", "here", "peer", ""], rows)


if __name__ == "__main__":
    main()
