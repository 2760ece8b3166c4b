"""CPU that the HTTP layer spends: for a request at 1 and 16 connections, and for each event of a stream.

    python -m benchmarks http

Our server and our client are two processes on loopback, so that each one's CPU is its own. A request is a POST of
1 KiB with the headers that the openai package sends, its answer 1 KiB; a stream is 50 server-sent events of 200 bytes,
each sent by itself (the CPU of the timer between them is in the figure) and parsed by the client. CPU is user + system
time, the least of several rounds, since other work on the machine only adds. "bare trio" is the floor: bytes of the
same length between two trio socket streams, without any HTTP; quote the ratio to it, as times differ between machines.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Awaitable, Callable

import trio
from shoal.protocols.http.client import Client
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.server import serve
from shoal.protocols.http.sse import SseParser, encode_event

from .table import show

BODY = b"x" * 1024
EVENT = encode_event(b"y" * 192)
EVENTS = 50
PACE_S = 0.005  # between the events of a stream, so that none of them shares a packet
ROUNDS = 5
COUNT = 4000  # requests, or events, a round
HEADERS = [
    ("accept", "application/json"),
    ("content-type", "application/json"),
    ("authorization", "Bearer not-a-key"),
    ("x-stainless-lang", "python"),
    ("x-stainless-package-version", "1.60.0"),
    ("x-stainless-os", "Linux"),
    ("x-stainless-arch", "x64"),
    ("x-stainless-runtime", "CPython"),
]
RAW_REQUEST = BODY + b"h" * 330
RAW_ANSWER = BODY + b"h" * 110


async def answer(exchange: Exchange) -> None:
    if exchange.path == "/echo":
        await exchange.respond(200, exchange.body, [("content-type", "application/json")])
        return
    async with exchange.stream(200, [("content-type", "text/event-stream")]) as send:
        for _ in range(EVENTS - 1):
            await send(EVENT)
            await trio.sleep(PACE_S)
        await send(EVENT, last=True)


async def echo_raw(stream: trio.SocketStream) -> None:
    left = len(RAW_REQUEST)
    while data := await stream.receive_some():
        left -= len(data)
        if left == 0:
            left = len(RAW_REQUEST)
            await stream.send_all(RAW_ANSWER)


def run_server(pipe: multiprocessing.connection.Connection) -> None:
    """The server's process: says its ports, then its CPU seconds whenever asked."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve, answer, ("127.0.0.1", 0))
            (raw,) = await nursery.start(functools.partial(trio.serve_tcp, host="127.0.0.1"), echo_raw, 0)
            pipe.send((server.addresses[0][1], raw.socket.getsockname()[1]))
            while True:
                await trio.lowlevel.wait_readable(pipe.fileno())
                if pipe.recv() == "end":
                    nursery.cancel_scope.cancel()
                    return
                pipe.send(time.process_time())

    trio.run(main)


class Bench:
    def __init__(self, pipe: multiprocessing.connection.Connection) -> None:
        self._pipe = pipe
        self.rows: list[tuple[str, int, str, str, str, str]] = []

    def _server_cpu(self) -> float:
        self._pipe.send("cpu")
        cpu: float = self._pipe.recv()
        return cpu

    async def measure(self, name: str, connections: int, units: int, work: Callable[[int], Awaitable[None]]) -> None:
        """`work(n)` does n turns on one connection; a turn is `units` of what is counted."""
        turns = max(1, COUNT // connections // units)
        count = turns * connections * units
        rounds = []
        await work(2)
        for _ in range(ROUNDS):
            server, client, clock = self._server_cpu(), time.process_time(), time.perf_counter()
            async with trio.open_nursery() as nursery:
                for _ in range(connections):
                    nursery.start_soon(work, turns)
            clock = time.perf_counter() - clock
            client, server = time.process_time() - client, self._server_cpu() - server
            rounds.append((server + client, server, client, clock))
        both, server, client, clock = min(rounds)
        us = 1e6 / count
        row = (f"{server * us:.1f}", f"{client * us:.1f}", f"{both * us:.1f}", f"{count / clock:.0f}")
        self.rows.append((name, connections, *row))


async def run_client(port: int, raw_port: int, bench: Bench) -> None:
    client = Client(environ={})

    async def requests(count: int) -> None:
        for _ in range(count):
            async with client.request("POST", f"http://127.0.0.1:{port}/echo", headers=HEADERS, body=BODY) as response:
                await response.read(1 << 20)

    async def streams(count: int) -> None:
        for _ in range(count):
            parser, events = SseParser(), 0
            async with client.request("GET", f"http://127.0.0.1:{port}/stream", headers=HEADERS) as response:
                async for chunk in response:
                    events += len(parser.feed(chunk))
            assert events == EVENTS, events

    async def raw(count: int) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", raw_port) as stream:
            for _ in range(count):
                await stream.send_all(RAW_REQUEST)
                left = len(RAW_ANSWER)
                while left:
                    left -= len(await stream.receive_some())

    async with client.running():
        for connections in (1, 16):
            await bench.measure("bare trio, request", connections, 1, raw)
            await bench.measure("request", connections, 1, requests)
        await bench.measure("streamed event", 16, EVENTS, streams)


def main() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_server, args=(theirs,))
    process.start()
    bench = Bench(ours)
    try:
        port, raw_port = ours.recv()
        trio.run(run_client, port, raw_port, bench)
    finally:
        ours.send("end")
        process.join(5)
    show(
        f"HTTP layer: CPU (user + system) of server and client, least of {ROUNDS} rounds of {COUNT}",
        ("what", "connections", "server us", "client us", "sum us", "per second"),
        bench.rows,
    )


if __name__ == "__main__":
    main()
