"""A node as commands see it: a lock, an rpc.json and an HTTP server, whose answers a test writes down."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import trio
from shoal.node import lock, state
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.server import serve
from shoal.protocols.http.sse import encode_event

SHOAL = str(Path(sys.executable).with_name("shoal"))
Handler = Callable[[Exchange], Awaitable[None]]


class FakeNode:
    """`answers`: "METHOD /path" -> JSON, bytes or a handler. `asked`: the requests that came, with their bodies."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, str], bytes]] = []

    async def handle(self, exchange: Exchange) -> None:
        target = f"{exchange.method} {exchange.path}" + (f"?{exchange.query}" if exchange.query else "")
        self.asked.append((target, dict(exchange.headers), exchange.body))
        answer = self.answers.get(target)
        if answer is None:
            error = {"error": {"message": "There is nothing here.", "type": "invalid_request_error"}}
            await exchange.respond(404, json.dumps(error).encode())
        elif callable(answer):
            await answer(exchange)
        else:
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            await exchange.respond(200, body)

    async def shoal(self, *arguments: str, stdin: bytes = b"") -> CompletedProcess[bytes]:
        return await shoal(*arguments, "--data-dir", str(self.data), stdin=stdin)


async def shoal(*arguments: str, stdin: bytes = b"") -> CompletedProcess[bytes]:
    """Run the command; it may fail."""
    with trio.fail_after(20):
        return await trio.run_process(
            [SHOAL, *arguments], stdin=stdin, capture_stdout=True, capture_stderr=True, check=False
        )


@contextlib.asynccontextmanager
async def fake_node(data: Path) -> AsyncIterator[FakeNode]:
    """A node that runs on this data directory."""
    node = FakeNode(data)
    with lock.hold(data):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve, node.handle, ("127.0.0.1", 0))
            host, port = server.addresses[0]
            with state.rpc_announced(data, f"{host}:{port}", "12D3KooWFake", "0"):
                yield node
            nursery.cancel_scope.cancel()


def chunk(text: str = "", **more: Any) -> bytes:
    """A chat.completion.chunk as a server-sent event."""
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": more.pop("finish", None)}
    body = {"object": "chat.completion.chunk", "model": "smollm2", "choices": [choice], **more}
    return encode_event(json.dumps(body).encode())


DONE = encode_event(b"[DONE]")
WHO = [
    ("content-type", "text/event-stream"),
    ("x-shoal-provider", "local_hf"),
    ("x-shoal-peer", "12D3KooWAbcdefUVWXYZ"),
    ("x-shoal-cache", "miss"),
    ("x-shoal-route", "local_hf=ok;5ms"),
]
"""What a streamed answer's head says."""
