"""A faithful OpenAI-compatible upstream on loopback, with every way to fail that was seen or is documented.

In a test:      async with FakeUpstream() as upstream: ... upstream.url("s429ra") ...
As a process:   python tests/providers/fake_upstream.py --port 0        prints {"port": 40123}

The scenario is in the path: http://127.0.0.1:PORT/s/SCENARIO/v1/chat/completions; without /s/ it is "ok". Traits join
with "+": /s/words200+slow5/v1. A path with /api/v1 gets OpenRouter's manners in its errors.
  ok              the reply, in one write           each            every event in a write of its own
  slow, slowN     80 (N) ms before each token       wordsN          the reply is N words
  s400 ... s529   that status, for GET, too         listed          (with a status) GET works, chats do not
                                                    s429ra s429date Retry-After: in seconds, as a date
  s402busy        OpenRouter's transient 402        s400ctx s400filter s400model s400echo   a 400 and its reason
  hang            accepted, never answered          hold            2 tokens, the rest after release()
  stall           2 tokens, then silence            cut, reset      2 tokens, then the connection ends (FIN, RST)
  drop            the connection ends unanswered    garbage         an answer that is not HTTP
  err200 errsse   an error inside a 200             errmid          2 tokens, then an error event
  flaky2          two 429s, then ok                 empty           a finish without text
  length filter   the other ways to finish          json            answers whole though asked to stream
  nofinish nodone an end without finish, or [DONE]  malformed       2 tokens, then a broken event
  or              OpenRouter's comments and cost    reasoning       thoughts before the text
  toolcall        a tool call in pieces             notools         (with toolcall) finishes with "stop"
  vllm ollama llamacpp   also that server's own paths, at the root and below /s/SCENARIO/
  loading         (llamacpp) 503 from /health       busyN           (vllm, llamacpp) N requests wait there
  keyspent        (/key) nothing of the key's limit is left    nokey404 nokeyjson   (/key) a 404, or no JSON
  sayskey         (with a status or err200) the error repeats the key that came
  dies            the connection ends after a token that the body's checksum decides
  shred           (with each) the stream in pieces of 1 to 61 bytes, whatever they hold
  shell           calls the shell that is offered, and tells what that says
  repeats         the reply is the last user text itself
  noprefill       a 400 for a final assistant message, which all others go on with (restarts: start again)
A model whose name contains "missing" is a 404. The reply is "ECHO<the last user text>", one word per token.
It is fast, because benchmarks subtract it: no HTTP library, one write for an answer.
"""

from __future__ import annotations

import argparse
import contextlib
import email.utils
import json
import socket
import struct
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import msgspec
import trio

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.providers.fake_answers import (  # as a script it has no package to be relative to
    FOREVER,
    End,
    Hold,
    Recorded,
    Step,
    Traits,
    embedded,
    encode,
    error_body,
    looked_up,
    own_path,
    provider_error,
    refusal_with_key,
    script,
    whole,
)

_decode = msgspec.json.Decoder().decode


class _LeftError(Exception):
    """The client closed its connection."""


class FakeUpstream:
    """An async context manager: a server on loopback while it is open.

    requests: what came, oldest first (`keep=False`: only counted). disconnects: clients that left before their answer.
    """

    def __init__(self, *, port: int = 0, keep: bool = True) -> None:
        self.port = port
        self.requests: list[Recorded] = []
        self.count = self.in_flight = self.disconnects = self.connections = self.open_connections = 0
        self.altered: dict[str, str] = {}
        self._keep = keep
        self._turns: dict[str, int] = {}
        self._changed = trio.Event()
        self._released = trio.Event()
        self._stack = contextlib.AsyncExitStack()

    def url(self, scenario: str = "ok", base: str = "/v1") -> str:
        """The base URL of a scenario."""
        return f"http://127.0.0.1:{self.port}/s/{scenario}{base}"

    @property
    def chats(self) -> list[Recorded]:
        return [r for r in self.requests if r.path.endswith("/chat/completions")]

    @property
    def embeddings(self) -> list[Recorded]:
        return [r for r in self.requests if r.path.endswith("/embeddings")]

    def alter(self, scenario: str, other: str) -> None:
        """From now on, what asks for `scenario` gets `other`."""
        self.altered[scenario] = other

    def release(self) -> None:
        """Answers that are held go on, those of later requests too."""
        self._released.set()

    async def until(self, *, count: int = 0, disconnects: int = 0, idle: bool = False, within: float = 10) -> None:
        """Returns when so many requests came, so many clients left, and (idle) none is in flight."""
        with trio.fail_after(within):
            while self.count < count or self.disconnects < disconnects or (idle and self.in_flight):
                await self._changed.wait()

    async def __aenter__(self) -> FakeUpstream:
        await self._stack.enter_async_context(self._serving())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncGenerator[None]:
        listener = trio.socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await listener.bind(("127.0.0.1", self.port))
        listener.listen(1024)
        self.port = listener.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._accept, listener, nursery)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
                listener.close()

    async def _accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            connection, _ = await listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            nursery.start_soon(_Connection(self, connection).run)

    def _note(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # What a connection tells.

    def began(self, recorded: Recorded) -> None:
        self.count += 1
        self.in_flight += 1
        if self._keep:
            self.requests.append(recorded)
        self._note()

    def ended(self, *, left: bool) -> None:
        self.in_flight -= 1
        self.disconnects += left
        self._note()

    def turn(self, scenario: str) -> int:
        """How many requests of this scenario came before."""
        self._turns[scenario] = self._turns.get(scenario, -1) + 1
        return self._turns[scenario]

    async def held(self) -> None:
        await self._released.wait()


class _Connection:
    """One keep-alive connection, one request at a time."""

    def __init__(self, upstream: FakeUpstream, connection: trio.socket.SocketType) -> None:
        self._upstream, self._socket = upstream, connection
        self._pending = b""

    async def run(self) -> None:
        self._upstream.open_connections += 1
        try:
            await self._serve()
        finally:
            self._upstream.open_connections -= 1

    async def _serve(self) -> None:
        with self._socket, contextlib.suppress(OSError, _LeftError):
            while (request := await self._read()) is not None:
                self._upstream.began(request)
                left = True
                try:
                    goes_on = await self._answer(request)
                    left = False
                except trio.Cancelled:
                    left = False
                    raise
                finally:
                    self._upstream.ended(left=left)
                if not goes_on:
                    return

    async def _read(self) -> Recorded | None:
        while (end := self._pending.find(b"\r\n\r\n")) < 0:
            if not (data := await self._socket.recv(65536)):
                return None
            self._pending += data
        lines = self._pending[:end].decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        total = end + 4 + int(headers.get("content-length", 0))
        while len(self._pending) < total:
            if not (data := await self._socket.recv(65536)):
                return None
            self._pending += data
        raw, self._pending = self._pending[end + 4 : total], self._pending[total:]
        scenario = "ok"
        if path.startswith("/s/"):
            scenario, _, path = path[3:].partition("/")
            path = f"/{path}"
        try:
            body = _decode(raw) if raw else None
        except msgspec.DecodeError:
            body = raw
        return Recorded(scenario, method, path, headers, body)

    async def _answer(self, request: Recorded) -> bool:
        """True when the connection can serve another request."""
        scenario = self._upstream.altered.get(request.scenario, request.scenario)
        traits, path = Traits(scenario), request.path.partition("?")[0].rstrip("/")
        if path == "/_state":
            state = {
                name: getattr(self._upstream, name) for name in ("count", "in_flight", "disconnects", "connections")
            }
            return await self._json(200, state)
        if request.method == "POST" and path.endswith("/chat/completions"):
            return await self._chat(request, traits)
        if request.method == "POST" and path.endswith("/embeddings"):
            return await self._json(200, embedded(request.body))
        if request.method == "GET":
            if (status := traits.status) is not None and "listed" not in traits:
                return await self._error(status, traits, request)
            if (text := own_path(path, traits)) is not None:
                status, body, kind = text
                return await self._json(status, body, kind=kind)
            if path.endswith("/key") and ("nokey404" in traits or "nokeyjson" in traits):
                return await self._json(404 if "nokey404" in traits else 200, b"<html>")
            if (found := looked_up(path, traits)) is not None:
                return await self._json(200, found)
        return await self._json(404, {"error": {"message": f"stub: no route {request.method} {path}"}})

    async def _chat(self, request: Recorded, traits: Traits) -> bool:
        body = request.body if isinstance(request.body, dict) else {}
        if "hang" in traits:
            await self._pause(FOREVER)
        if "drop" in traits:
            return False
        if "garbage" in traits:
            await self._send(b"220 mail.example ESMTP ready\r\n")
            return False
        status = traits.status
        if "flaky2" in traits and self._upstream.turn("flaky2") < 2:
            status = 429
        if "missing" in str(body.get("model")):
            status = 404
        if "noprefill" in traits and (body.get("messages") or [{}])[-1].get("role") == "assistant":
            return await self._error(400, Traits("s400prefill"), request)
        if status is not None:
            return await self._error(status, traits, request)
        if "err200" in traits:
            error = refusal_with_key(request) if "sayskey" in traits else provider_error()
            return await self._json(200, {"id": "gen-x", "choices": [], "error": error})
        if not body.get("stream") or "json" in traits:
            return await self._json(200, whole(body, traits))
        return await self._stream(traits, script(body, traits))

    async def _stream(self, traits: Traits, steps: Iterator[Step]) -> bool:
        extra = b"X-Generation-Id: gen-stub\r\n" if "or" in traits else b""
        out = [
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
            b"Transfer-Encoding: chunked\r\n%b\r\n" % extra
        ]
        spaced = "each" in traits
        for step in steps:
            if isinstance(step, bytes):
                out.append(b"%x\r\n%b\r\n" % (len(step), step))
                if not spaced:
                    continue
            if "shred" in traits:
                await self._shred(b"".join(out))
            else:
                await self._send(b"".join(out))
            out.clear()
            if isinstance(step, float):
                await self._pause(step)
            elif isinstance(step, Hold):
                await self._upstream.held()
            elif isinstance(step, End):
                if step.reset:
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
        out.append(b"0\r\n\r\n")
        await self._send(b"".join(out))
        return True

    async def _error(self, status: int, traits: Traits, request: Recorded) -> bool:
        headers = ""
        if "s429ra" in traits:
            reset = int(time.time() * 1000) + 1000
            headers = f"Retry-After: 1\r\nX-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: {reset}\r\n"
        if "s429date" in traits:
            headers = f"Retry-After: {email.utils.formatdate(time.time() + 30, usegmt=True)}\r\n"
        if "s402busy" in traits:
            headers = "Retry-After: 2\r\n"
        return await self._json(status, error_body(status, traits, request), headers)

    async def _json(self, status: int, value: object, headers: str = "", *, kind: str = "application/json") -> bool:
        body = value if isinstance(value, bytes) else encode(value)
        head = f"HTTP/1.1 {status} Stub\r\nContent-Type: {kind}\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        await self._send(head.encode() + body)
        return True

    async def _send(self, data: bytes) -> None:
        while data:
            data = data[await self._socket.send(data) :]

    async def _shred(self, data: bytes) -> None:
        while data:
            size = 1 + data[0] % 61
            await self._send(data[:size])
            data = data[size:]

    async def _pause(self, seconds: float) -> None:
        """Waits, and notices when the client leaves meanwhile."""
        with trio.move_on_after(seconds):
            data = await self._socket.recv(65536)
            if not data:
                raise _LeftError
            self._pending += data


async def _serve(port: int) -> None:
    async with FakeUpstream(port=port, keep=False) as upstream:
        print(json.dumps({"port": upstream.port}), flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A fake OpenAI-compatible upstream on loopback.")
    parser.add_argument("--port", type=int, default=0)
    with contextlib.suppress(KeyboardInterrupt):
        trio.run(_serve, parser.parse_args().port)
