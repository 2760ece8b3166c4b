"""10,000 connections that send a byte now and then, and one client in a hurry: `python -m benchmarks.slow_connections`.

The server is the HTTP layer alone, in a process of its own; the slow ones each hold a request's head open. What is
measured is the fast client's latency without them and with them, and what they cost the server in memory and CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import resource
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

from benchmarks.loader import quantile
from benchmarks.table import show

SERVER = """
import resource, trio
from functools import partial
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.limits import Limits
from shoal.protocols.http.server import serve
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
async def handler(exchange: Exchange) -> None:
    await exchange.respond(200, b"ok")
async def main() -> None:
    async with trio.open_nursery() as nursery:
        limits = Limits(head_timeout_s=600, max_connections=40_000)
        server = await nursery.start(partial(serve, handler, ("127.0.0.1", 0), limits=limits))
        print(server.addresses[0][1], flush=True)
trio.run(main)
"""
ASK = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def hurry(port: int, seconds: float, meanwhile: Callable[[], None]) -> list[float]:
    """Latencies of one keep-alive client, in seconds, sorted. meanwhile: called between two requests."""
    found: list[float] = []
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = time.monotonic() + seconds
        while (start := time.monotonic()) < end:
            connection.sendall(ASK)
            while not connection.recv(65536).endswith(b"ok"):
                pass
            found.append(time.monotonic() - start)
            meanwhile()
            time.sleep(0.001)
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(options.connections, hard - 100)
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        process = psutil.Process(server.pid)
        alone, memory = hurry(port, options.seconds, lambda: None), process.memory_info().rss
        selector, slow = selectors.DefaultSelector(), list[socket.socket]()
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port), timeout=30)
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX: ")
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ)
            slow.append(connection)
        grown = process.memory_info().rss - memory
        times = process.cpu_times()
        before = times.user + times.system
        turns = itertools.cycle(slow)

        def dribble() -> None:
            """A byte more of a header from one of the slow ones, so that each sends one every few seconds."""
            with contextlib.suppress(OSError):
                next(turns).send(b"x")

        crowded = hurry(port, options.seconds, dribble)
        closed = len(selector.select(0))
        times = process.cpu_times()
        rows = [
            (0, len(alone), f"{quantile(alone, 0.5) * 1e3:.2f}", f"{quantile(alone, 0.99) * 1e3:.1f}", "", 0),
            (
                count,
                len(crowded),
                f"{quantile(crowded, 0.5) * 1e3:.2f}",
                f"{quantile(crowded, 0.99) * 1e3:.1f}",
                f"{grown / count / 1024:.1f}",
                closed,
            ),
        ]
        head = ("slow connections", "asked", "p50 ms", "p99 ms", "KiB each", "closed")
        show(
            f"A fast client beside slow ones ({times.user + times.system - before:.1f} s of CPU with them)", head, rows
        )
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
