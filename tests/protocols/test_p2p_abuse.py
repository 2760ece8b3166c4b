"""Strangers that send nonsense, too much or nothing: each loses its own connection, and nobody else notices."""

from __future__ import annotations

import contextlib
import logging
import struct
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from libp2p.stream_muxer.yamux import yamux
from shoal.protocols.p2p import negotiation, remedies
from shoal.protocols.p2p.errors import StreamLost
from shoal.protocols.p2p.host import Host
from shoal.protocols.p2p.limits import HostLimits
from shoal.protocols.p2p.negotiation import encode_line
from shoal.protocols.p2p.stream import P2pStream

from .fakes_p2p import ECHO, a_host, echoes

GREETING, NOISE = encode_line("/multistream/1.0.0"), encode_line("/noise")
IMPATIENT = HostLimits(handshake_s=0.3)


@contextlib.asynccontextmanager
async def a_host_with_a_friend(limits: HostLimits = IMPATIENT) -> AsyncIterator[Host]:
    """The host under attack, with one honest stream that must be untouched when the test is over."""
    host, friend = a_host(limits=limits), a_host()
    async with host.running(), friend.running():
        await friend.connect(host.peer_id, host.addresses())
        steady = await friend.open_stream(host.peer_id, ECHO)
        yield host
        with trio.fail_after(3):
            await steady.write(b"untouched")
            assert await steady.read() == b"untouched"
            assert await echoes(friend, host.peer_id)
        await steady.close()


def port_of(host: Host) -> int:
    return int(host.addresses()[0].split("/")[4])


async def closed_by_the_other_side(stream: trio.SocketStream, limit_s: float = 3.0) -> bool:
    with trio.move_on_after(limit_s):
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
        return True
    return False


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n", id="http"),
        pytest.param(bytes(range(256)) * 64, id="bytes"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), id="tls"),
        pytest.param(b"", id="silence"),
        pytest.param(GREETING, id="half a negotiation"),
        pytest.param(GREETING + NOISE, id="half a handshake"),
        pytest.param(GREETING + NOISE + b"\xff\xff" + bytes(65535), id="an oversized handshake message"),
        pytest.param(GREETING + NOISE + b"\x00\x20" + bytes(32), id="a zero key"),
        pytest.param(b"\xff\xff\xff\xff\x7f" + bytes(100_000), id="an oversized negotiation message"),
        pytest.param(b"\xff" * 30, id="an endless varint"),
    ],
)
async def test_garbage_ends_that_connection_and_says_nothing_aloud(
    sent: bytes, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    async with a_host_with_a_friend() as host:
        stranger = await trio.open_tcp_stream("127.0.0.1", port_of(host))
        async with stranger:
            with contextlib.suppress(trio.BrokenResourceError):
                await stranger.send_all(sent)
            assert await closed_by_the_other_side(stranger)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not host._running()._handshakes
        assert host._running()._inbound.total() == 1  # the friend
    assert [record.message for record in caplog.records] == []
    assert capfd.readouterr().err == ""


async def test_strangers_that_only_connect_are_limited() -> None:
    limits = HostLimits(handshake_s=5, handshakes_per_address=8, connections_per_address=32)
    async with a_host_with_a_friend(limits) as host, contextlib.AsyncExitStack() as stack:
        strangers = [
            await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port_of(host))) for _ in range(12)
        ]
        turned_away = 0
        for stranger in strangers:
            turned_away += await closed_by_the_other_side(stranger, 0.1)
        assert turned_away == 4
        assert host._running().refused == 4


async def test_connections_of_one_address_are_limited() -> None:
    async with (
        a_host_with_a_friend(HostLimits(connections_per_address=3)) as host,
        contextlib.AsyncExitStack() as stack,
    ):
        guests = [a_host() for _ in range(4)]
        for guest in guests:
            await stack.enter_async_context(guest.running())
            with contextlib.suppress(Exception):
                await guest.connect(host.peer_id, host.addresses())
        assert len(host.connected()) == 3


# -- peers that finished the handshake and misbehave then -----------------------------------------------------------


def frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, kind, flags, stream_id, length) + body


@contextlib.asynccontextmanager
async def an_attacker(host: Host) -> AsyncIterator[tuple[Host, P2pStream]]:
    attacker = a_host()
    async with attacker.running():
        await attacker.connect(host.peer_id, host.addresses())
        yield attacker, await attacker.open_stream(host.peer_id, ECHO)


async def read_to_the_end(stream: P2pStream) -> None:
    while await stream.read():
        pass


async def is_dropped(attacker: Host, host: Host) -> bool:
    with trio.move_on_after(3):
        while host.peer_id in attacker.connected() or attacker.peer_id in host.connected():
            await trio.sleep(0.01)
        return True
    return False


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(frame(yamux.TYPE_DATA, 0, 1, 0x7FFFFFFF, bytes(1000)), id="an oversized frame"),
        pytest.param(frame(yamux.TYPE_GO_AWAY, 0, 0, 99), id="an unknown farewell"),
    ],
)
async def test_a_frame_bomb_ends_that_connection(frames: bytes) -> None:
    async with a_host_with_a_friend() as host, an_attacker(host) as (attacker, stream):
        await stream._conn._write_frame(frames)
        assert await is_dropped(attacker, host)


async def test_a_broken_cipher_ends_that_connection() -> None:
    async with a_host_with_a_friend() as host, an_attacker(host) as (attacker, stream):
        await stream._conn.secured_conn.conn._raw.write(b"\x00\x20" + bytes(32))  # 32 bytes that nobody sealed
        assert await is_dropped(attacker, host)


async def test_a_peer_that_ignores_its_credit_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remedies, "MAX_BUFFERED_BYTES", 2 * 1024 * 1024)
    async with a_host_with_a_friend() as host:

        async def unread(stream: P2pStream) -> None:
            await trio.sleep_forever()

        host.handle("/test/unread/1", unread)
        async with an_attacker(host) as (attacker, _):
            stream = await attacker.open_stream(host.peer_id, "/test/unread/1")
            with contextlib.suppress(*(StreamLost, remedies.BufferOverrun, Exception)):
                for _ in range(100):
                    await stream._conn._write_frame(
                        frame(yamux.TYPE_DATA, 0, stream._muxed.stream_id, 65000, bytes(65000))
                    )
            assert await is_dropped(attacker, host)


async def test_a_flood_of_streams_costs_the_flooder_its_streams() -> None:
    limits = HostLimits(inbound_streams_per_connection=16)
    async with a_host_with_a_friend(limits) as host, an_attacker(host) as (attacker, _):
        lost = 0
        for _ in range(40):
            try:
                await attacker.open_stream(host.peer_id, ECHO)
            except StreamLost:
                lost += 1
        assert lost >= 40 - 16
        (connection,) = [conn for conn in host._running().get_connections() if len(conn.streams) > 5]
        assert len(connection.streams) <= 16


async def test_a_stream_that_never_negotiates_is_closed() -> None:
    async with a_host_with_a_friend(HostLimits(negotiation_s=1)) as host, an_attacker(host) as (attacker, _):
        (connection,) = attacker._running().get_connections()
        slow = P2pStream(await connection.new_stream(), "", host.peer_id)
        await slow.write(GREETING[:5])
        with trio.fail_after(5), pytest.raises(StreamLost):
            await read_to_the_end(slow)


async def test_a_protocol_name_of_any_length_is_answered_or_refused() -> None:
    async with a_host_with_a_friend() as host, an_attacker(host) as (attacker, _):
        (connection,) = attacker._running().get_connections()
        stream = P2pStream(await connection.new_stream(), "", host.peer_id)
        await stream.write(b"\xff\xff\xff\x7f" + bytes(100_000))
        with trio.fail_after(3), pytest.raises(StreamLost):
            await read_to_the_end(stream)
        with pytest.raises(ValueError, match="too long"):
            negotiation.encode_line("x" * 2000)


async def test_an_exception_in_the_tasks_of_a_connection_ends_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_host_with_a_friend() as host, an_attacker(host) as (attacker, _):

        async def broken(*args: object) -> None:
            raise RuntimeError("a fault of the library")

        (victim,) = [c for c in host._running().get_connections() if str(c.muxed_conn.peer_id) == attacker.peer_id]
        monkeypatch.setattr(victim, "_add_stream", broken)
        with contextlib.suppress(StreamLost):
            await attacker.open_stream(host.peer_id, ECHO)
        assert await is_dropped(attacker, host)
