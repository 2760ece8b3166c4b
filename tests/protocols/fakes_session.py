"""In-memory byte streams and a small service for tests of the session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from shoal.protocols.framing import GOAWAY, FrameParser, frame
from shoal.protocols.peer_id import Identity
from shoal.protocols.session import CallError, Hello, IncomingCall, Session, SessionLimits

ALICE, BOB = Identity.from_seed(b"\x01" * 32).peer_id, Identity.from_seed(b"\x02" * 32).peer_id
HELLOS = {peer: Hello(swarm="test", peer=peer, agent="shoal/test") for peer in (ALICE, BOB)}


class MemoryStream:
    """The byte-stream contract over a trio memory stream; `frozen` keeps reads from ever coming back."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.was_reset = False
        self.written: list[bytes] = []
        self.write_gate = trio.Event()
        self.write_gate.set()

    async def read(self, n: int) -> bytes:
        try:
            return bytes(await self._stream.receive_some(n))
        except trio.BrokenResourceError:
            return b""

    async def write(self, data: bytes) -> None:
        await self.write_gate.wait()
        self.written.append(data)
        await self._stream.send_all(data)

    async def close_write(self) -> None:
        await self._stream.send_eof()

    async def reset(self) -> None:
        self.was_reset = True
        await self._stream.aclose()


def stream_pair() -> tuple[MemoryStream, MemoryStream]:
    left, right = trio.testing.memory_stream_pair()
    return MemoryStream(left), MemoryStream(right)


class TestService:
    """Methods: echo (params back), count (n items), sink, wait (for ever, says when cancelled), fail, crash."""

    __test__ = False

    def __init__(self) -> None:
        self.adverts: list[Any] = []
        self.notes: list[tuple[str, Any]] = []
        self.started = trio.Event()
        self.cancelled = trio.Event()
        self.sent = 0

    async def on_call(self, call: IncomingCall, method: str, params: Any) -> Any:
        self.started.set()
        if method == "echo":
            return params
        if method == "echo_item":
            await call.send(params)
            return None
        if method == "count":
            await call.accept({"n": params})
            for number in range(params):
                await call.send(number)
            return "done"
        if method == "flood":
            while True:
                await call.send(b"x" * 1024)
                self.sent += 1
        if method == "wait":
            await call.send("first")
            try:
                await trio.sleep_forever()
            finally:
                self.cancelled.set()
        if method == "fail":
            raise CallError("overloaded", "come back later", {"retry_after": 3})
        if method == "crash":
            raise RuntimeError("the secret prompt")
        raise CallError("unknown_method")

    def on_hello(self, session: Session, hello: Hello) -> None:
        pass

    def on_advert(self, session: Session, body: Any) -> None:
        self.adverts.append(body)

    def on_note(self, session: Session, name: str, data: Any) -> None:
        self.notes.append((name, data))

    async def on_lookup(self, session: Session, body: Any) -> Any:
        if body == "never":
            await trio.sleep_forever()
        if isinstance(body, int):
            return b"b" * body
        return {"found": body}


@asynccontextmanager
async def session_pair(
    *, limits: SessionLimits | None = None, service: Any = None, initiator_service: Any = None
) -> AsyncIterator[tuple[Session, Session]]:
    """Alice's session (she dialled) and Bob's, both running."""
    left, right = stream_pair()
    alice = Session(
        left, initiator_service or TestService(), local=HELLOS[ALICE], remote_peer=BOB, initiator=True, limits=limits
    )
    bob = Session(right, service or TestService(), local=HELLOS[BOB], remote_peer=ALICE, initiator=False, limits=limits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.run)
        await nursery.start(bob.run)
        with trio.fail_after(5):
            while alice.remote_hello is None:
                await trio.lowlevel.checkpoint()
        yield alice, bob
        nursery.cancel_scope.cancel()


class RawPeer:
    """A peer that says whatever a test wants; it speaks frames, and garbage."""

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream
        self._parser = FrameParser()
        self._frames: list[tuple[int, int, Any]] = []

    async def say(self, kind: int, call_id: int = 0, body: Any = None) -> None:
        await self.stream.write(frame(kind, call_id, body))

    async def hear(self, *kinds: int) -> tuple[int, int, Any]:
        """The next frame (of one of `kinds`). EOFError at the end of the stream."""
        while True:
            while self._frames:
                found = self._frames.pop(0)
                if not kinds or found[0] in kinds:
                    return found
            data = await self.stream.read(65536)
            if not data:
                raise EOFError
            self._frames += [entry[:3] for entry in self._parser.feed(data)]


@asynccontextmanager
async def raw_pair(
    *, limits: SessionLimits | None = None, service: Any = None, greet: bool = True
) -> AsyncIterator[tuple[RawPeer, Session]]:
    """A raw Alice, who dialled, and Bob's session."""
    left, right = stream_pair()
    bob = Session(right, service or TestService(), local=HELLOS[BOB], remote_peer=ALICE, initiator=False, limits=limits)
    peer = RawPeer(left)

    async def run() -> None:
        try:
            await bob.run()
        except Exception:  # `lost` tells
            assert bob.lost is not None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        if greet:
            await peer.say(0, 0, HELLOS[ALICE])
            await peer.hear(0)
        yield peer, bob
        nursery.cancel_scope.cancel()


async def dropped(peer: RawPeer) -> str:
    """The reason of the goaway, once the stream has ended after it."""
    _, _, reason = await peer.hear(GOAWAY)
    with pytest.raises(EOFError):
        await peer.hear(GOAWAY)
    return str(reason)


async def lost(session: Session) -> str:
    with trio.fail_after(100):
        while session.lost is None:
            await trio.sleep(0.1)
    return str(session.lost)
