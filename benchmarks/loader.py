"""A load generator that costs little itself: raw keep-alive HTTP/1.1 over non-blocking sockets, one thread.

Requests are bytes made beforehand; answers are only scanned for their end (Content-Length or the last chunk), so
that on a machine with two cores the second one is enough to saturate a server on the first.
"""

from __future__ import annotations

import selectors
import socket
import time
from typing import NamedTuple


class Load(NamedTuple):
    """latencies: seconds per request, sorted. first: seconds to the first body byte, sorted. wall: seconds in all."""

    latencies: list[float]
    first: list[float]
    wall: float
    cpu: float
    failed: int

    def at(self, share: float) -> float:
        """The latency in seconds that `share` of the requests stayed within."""
        return quantile(self.latencies, share)

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.wall


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def post(path: str, body: bytes, headers: str = "") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{headers}"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def _end_of(answer: bytearray) -> int | None:
    """Where a complete answer ends, or None while it is incomplete."""
    head = answer.find(b"\r\n\r\n")
    if head < 0:
        return None
    lower = bytes(answer[:head]).lower()
    if (at := lower.find(b"content-length:")) >= 0:
        end = head + 4 + int(lower[at + 15 :].split(b"\r\n", 1)[0])
        return end if len(answer) >= end else None
    return len(answer) if answer.endswith(b"0\r\n\r\n") else None


def run(host: str, port: int, requests: list[bytes], *, connections: int, seconds: float) -> Load:
    """Send `requests` round-robin over `connections` for `seconds`, each connection one request at a time."""
    selector = selectors.DefaultSelector()
    latencies: list[float] = []
    first: list[float] = []
    failed = sent = 0
    state: dict[socket.socket, tuple[bytearray, float, bool]] = {}

    def send(connection: socket.socket) -> None:
        nonlocal sent
        connection.setblocking(True)
        connection.sendall(requests[sent % len(requests)])
        connection.setblocking(False)
        sent += 1
        state[connection] = (bytearray(), time.perf_counter(), False)

    for _ in range(connections):
        connection = socket.create_connection((host, port), timeout=10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ)
        send(connection)
    start, cpu = time.perf_counter(), time.process_time()
    end = start + seconds
    open_connections = connections
    while open_connections:
        for key, _ in selector.select(timeout=10):
            sock = key.fileobj
            if not isinstance(sock, socket.socket):
                continue
            answer, began, seen = state[sock]
            data = sock.recv(262144)
            now = time.perf_counter()
            answer += data
            if not seen and b"\r\n\r\n" in answer:
                first.append(now - began)
                state[sock] = (answer, began, True)
            done = _end_of(answer) is not None
            if not data or (done and now >= end):
                failed += not (data and answer.startswith(b"HTTP/1.1 200"))
                if done:
                    latencies.append(now - began)
                selector.unregister(sock)
                sock.close()
                open_connections -= 1
            elif done:
                latencies.append(now - began)
                failed += not answer.startswith(b"HTTP/1.1 200")
                send(sock)
    wall = time.perf_counter() - start
    return Load(sorted(latencies), sorted(first), wall, time.process_time() - cpu, failed)


class Streams(NamedTuple):
    """gaps: seconds between two pieces of one stream, sorted. whole: streams that ended with their end mark.

    events: `data:` lines that came, the end marks included.
    """

    gaps: list[float]
    events: int
    whole: int
    wall: float


def stream(host: str, port: int, request: bytes, *, connections: int) -> Streams:
    """One stream on each of `connections` at once, read to the end."""
    selector = selectors.DefaultSelector()
    gaps: list[float] = []
    events = whole = 0
    last: dict[socket.socket, tuple[float | None, bytes]] = {}
    for _ in range(connections):
        connection = socket.create_connection((host, port), timeout=10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(request)
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ)
        last[connection] = None, b""
    start = time.perf_counter()
    while last:
        ready = selector.select(timeout=10)
        if not ready:
            break
        for key, _ in ready:
            sock = key.fileobj
            if not isinstance(sock, socket.socket):
                continue
            data = sock.recv(262144)
            now = time.perf_counter()
            before, tail = last[sock]
            events += data.count(b"data: ")
            tail = (tail + data)[-64:]
            if before is not None and data:
                gaps.append(now - before)
            last[sock] = now, tail
            if not data or tail.endswith(b"0\r\n\r\n"):
                whole += b"[DONE]" in tail
                selector.unregister(sock)
                sock.close()
                del last[sock]
    return Streams(sorted(gaps), events, whole, time.perf_counter() - start)
