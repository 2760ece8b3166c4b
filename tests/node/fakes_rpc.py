"""An RPC over real HTTP on loopback, with scripted providers behind it."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import AsyncGenerator
from typing import Any

import trio
from msgspec import Struct
from shoal.cache.memory import Memory
from shoal.cache.tiers import AnswerCache
from shoal.node.routing.candidates import NodeCandidates
from shoal.node.routing.router import Router
from shoal.node.rpc.access import TokenDesk
from shoal.node.rpc.app import Rpc
from shoal.protocols.http.limits import Limits
from shoal.protocols.http.server import Server, serve
from shoal.providers.base import Provider

from .fakes_router import ME, OTHER, Shelf


class FakeNode:
    """What the daemon would tell."""

    def __init__(self) -> None:
        self.joined: list[str] = []
        self.paused = False
        self.blocks: dict[str, bytes] = {}

    def status(self) -> dict[str, Any]:
        return {"peer": ME.peer_id, "version": "0"}

    def peers(self) -> list[dict[str, Any]]:
        models = [{"name": "m9", "context_length": 2048}, "m8"]
        return [
            {"peer": OTHER.peer_id, "connected": True, "models": models},
            {"peer": "away", "connected": False, "models": ["m0"]},
        ]

    def sharing_view(self) -> dict[str, Any]:
        accounts = {OTHER.peer_id: {"requests": 3, "prompt_tokens": 40, "completion_tokens": 60, "first": 1, "last": 2}}
        return {"paused": self.paused, "paused_until": None, "limits": {}, "tokens_today": {}, "peers": accounts}

    def pause(self, seconds: float | None) -> dict[str, Any]:
        self.paused = True
        return self.sharing_view()

    def resume(self) -> dict[str, Any]:
        self.paused = False
        return self.sharing_view()

    async def join(self, invite: str) -> dict[str, Any]:
        if invite == "bad":
            raise ValueError("that is not an invite")
        self.joined.append(invite)
        return {"swarm": "reef"}

    async def fetch(self, cid: str) -> bytes | None:
        return self.blocks.get(cid)


class Reply(Struct):
    """An HTTP answer, read whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found = self.json
        assert set(found) == {"error"}
        assert set(found["error"]) == {"message", "type", "param", "code"}
        assert self.headers["content-type"] == "application/json"
        error: dict[str, Any] = found["error"]
        return error

    @property
    def events(self) -> list[Any]:
        """The data of each server-sent event; "[DONE]" as text."""
        lines = [line for line in self.body.decode().split("\n\n") if line]
        found = []
        for line in lines:
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                found.append(data if data == "[DONE]" else json.loads(data))
        return found


class Door:
    """The running RPC, and a client that is no more than bytes."""

    def __init__(
        self, server: Server, router: Router, cache: AnswerCache, node: FakeNode, shelf: Shelf, rpc: Rpc
    ) -> None:
        self.server, self.router, self.cache, self.node, self.shelf = server, router, cache, node, shelf
        self.rpc = rpc

    @property
    def port(self) -> int:
        return self.server.addresses[0][1]

    async def open(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    def head(self, method: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
        found = {"host": f"127.0.0.1:{self.port}", "content-type": "application/json", "connection": "close"} | headers
        if body:
            found["content-length"] = str(len(body))
        lines = "".join(f"{k}: {v}\r\n" for k, v in found.items() if v)
        return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body

    async def ask(
        self, method: str, path: str, body: bytes | dict[str, Any] = b"", headers: dict[str, str] | None = None
    ) -> Reply:
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        with trio.fail_after(10):
            async with await self.open() as stream:
                await stream.send_all(self.head(method, path, headers or {}, body))
                data = b""
                while piece := await stream.receive_some(65536):
                    data += piece
        return reply(data)

    async def chat(self, headers: dict[str, str] | None = None, **body: Any) -> Reply:
        body.setdefault("messages", [{"role": "user", "content": "What is the opposite of hot?"}])
        return await self.ask("POST", "/v1/chat/completions", body, headers)


def reply(data: bytes) -> Reply:
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    if headers.get("transfer-encoding") == "chunked":
        rest, body = body, b""
        while True:
            size, _, rest = rest.partition(b"\r\n")
            if not int(size or b"0", 16):
                break
            body += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
    return Reply(int(status.split()[1]), headers, body)


@contextlib.asynccontextmanager
async def door(
    *providers: Provider,
    limits: Limits | None = None,
    hosts: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
    tokens: TokenDesk | None = None,
    outside: bool = False,
    **options: Any,
) -> AsyncGenerator[Door]:
    """A node's RPC that listens on a free port. outside: as if the requests came from another machine."""
    shelf = Shelf(*providers)
    source, node = NodeCandidates(shelf, options.pop("swarm", None)), FakeNode()
    keep_alive_s = options.pop("keep_alive_s", 15.0)
    async with (
        AnswerCache(ME.peer_id, memory=Memory(1 << 20)).running() as cache,
        source.running(),
        trio.open_nursery() as nursery,
    ):
        router = Router(source, cache, signer=ME, **options)
        rpc = Rpc(
            router,
            node=node,
            source=source,
            registry=shelf,
            cache=cache,
            hosts=hosts,
            origins=origins,
            tokens=tokens,
            keep_alive_s=keep_alive_s,
        )
        handler = rpc.outside if outside else rpc
        async with router.running():
            server: Server = await nursery.start(
                functools.partial(serve, handler, ("127.0.0.1", 0), limits=limits, on_error=rpc.on_error)
            )
            yield Door(server, router, cache, node, shelf, rpc)
            nursery.cancel_scope.cancel()
