"""Run-time patches of py-libp2p 0.8.1 (TCP + Noise + Yamux). `apply()` once, before the first host is made.

What belongs here: changes of the library's own classes, each with the fault that it mends. Remedies that need no patch
(dialling, handlers, shutdown) are in `host.py` and `network.py`. On the wire only the number of WINDOW_UPDATE and PING
frames changes. Another version of the library is refused: check each patch against its source, run
tests/protocols/test_p2p_*.py and `make interop`, then move SUPPORTED.

| patch | fault in 0.8.1 | test |
|---|---|---|
| locks | trio.Lock always yields to the scheduler, ~25 epoll calls a request; these only wait when contended | - |
| frame | a cancelled write spends the Noise nonce and so destroys the whole connection | test_p2p_stream |
| credit | a WINDOW_UPDATE for every read, of twice what was read; a cancelled read loses bytes | test_p2p_stream |
| noise | two recv a message and one send per 64 KiB; one recv now takes many messages | - |
| window | receive windows grow to 16 MiB a stream, and bytes beyond the window are only logged | test_p2p_abuse |
| keepalive | a silent peer (SIGSTOP, a cut cable) is never noticed | test_p2p_host |
| negotiation | the length of a multistream message is not bounded, even before the handshake | test_p2p_abuse |
| contained | an exception in a connection's tasks ends the host and everything around it | test_p2p_abuse |
| address | the remote address of an IPv6 connection is unknown | test_p2p_host |
| logging | warnings and tracebacks about peers' faults on stderr, some through the root logger | test_p2p_abuse |
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import trio

SUPPORTED = "0.8.1"
SEND_LIMIT_S = 10.0  # for one frame; a cancelled write waits that long, then the connection is given up
RECV_BYTES = 256 * 1024
MAX_WINDOW_BYTES = 1024 * 1024  # per stream; a peer at 100 ms still gets 10 MiB/s
MAX_BUFFERED_BYTES = 16 * 1024 * 1024  # unread, over all streams of a connection
MAX_NEGOTIATION_BYTES = 8 * 1024  # one multistream-select message
KEEPALIVE_INTERVAL_S = 15.0
KEEPALIVE_LIMIT_S = 5.0  # a peer that owes a pong for so long is dead

library_log = logging.getLogger("shoal.p2p.libp2p")
log = logging.getLogger("shoal.p2p")


class UnsupportedLibp2pError(RuntimeError):
    pass


class Lock:
    """Like trio.Lock a cancellation point, but it yields to the scheduler only when it is held."""

    def __init__(self) -> None:
        self._held = False
        self._lot = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()  # without it a tight write loop could not be cancelled
        if self._held:
            await self._lot.park()  # __aexit__ passes ownership on: _held stays True
        self._held = True

    async def __aexit__(self, *exc: object) -> None:
        if self._lot:
            self._lot.unpark()
        else:
            self._held = False


class _WriteLock:
    """The one method of the library's read-write lock that it uses."""

    def __init__(self) -> None:
        self._lock = Lock()

    def write_lock(self) -> Lock:
        return self._lock


class BufferOverrun(trio.TooSlowError):
    """Yamux ends a connection on TooSlowError only; everything else in that place it logs and goes on out of step."""


class _OneLine(logging.Handler):
    """Hands the library's records on as one line at debug level: a peer's fault is not our warning."""

    def emit(self, record: logging.LogRecord) -> None:
        if library_log.isEnabledFor(logging.DEBUG):
            text = record.getMessage().partition("\n")[0]
            library_log.debug("%s: %s", record.name.removeprefix("libp2p."), text[:300])


def _replace(cls: Any, **makers: Callable[[], Any]) -> None:
    init = cls.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        init(self, *args, **kwargs)
        for name, make in makers.items():
            if not hasattr(self, name):
                raise UnsupportedLibp2pError(f"{cls.__name__} has no {name} any more")
            setattr(self, name, make())

    cls.__init__ = __init__


async def _write_frame(self: Any, data: bytes) -> None:  # Yamux
    # All or nothing: the stream's credit is already taken, and encrypting spends the Noise nonce.
    with trio.CancelScope(shield=True, deadline=trio.current_time() + SEND_LIMIT_S) as scope:
        async with self._write_lock:
            await self.secured_conn.write(data)
    if scope.cancelled_caught:
        from libp2p.io.exceptions import ConnectionClosedError

        await self.secured_conn.close()
        raise ConnectionClosedError("the peer takes no data", transport="tcp")


async def _release_credit(self: Any, *, bytes_read: int = 0) -> None:  # YamuxStream
    buffered = len(self.conn.stream_buffers.get(self.stream_id, b""))
    used = self.target_recv_window - (self.recv_window + buffered)
    if used >= self.target_recv_window // 2:
        delta = self._grow_to_delta(buffered) + self._apply_autotune_epoch(buffered)
        with trio.CancelScope(shield=True):  # the bytes read are already off the buffer
            await self.send_window_update(delta)


async def _keepalive(self: Any) -> None:  # Yamux, in place of _measure_rtt_loop
    from libp2p.stream_muxer.yamux.yamux import FLAG_SYN, TYPE_PING, YAMUX_HEADER_FORMAT

    from . import sockets

    await trio.sleep(0.5)  # let the connection settle, as the library does
    while not self.event_shutting_down.is_set():
        self._ping_id += 1
        self._ping_event = trio.Event()
        try:
            await self._write_frame(struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_PING, FLAG_SYN, 0, self._ping_id))
        except Exception:  # whatever broke the connection, its reader finds it too
            return
        self._ping_sent_time = trio.current_time()
        with trio.move_on_after(KEEPALIVE_LIMIT_S) as scope:
            await self._ping_event.wait()
        if scope.cancelled_caught:
            log.debug("a peer is silent for %.0f s: closing its connection", KEEPALIVE_LIMIT_S)
            sockets.let_go(self)
            await self.secured_conn.close()  # the reader now sees the end and cleans up
            return
        with trio.move_on_after(KEEPALIVE_INTERVAL_S):
            await self.event_shutting_down.wait()


def _bounded_body(original: Callable[[Any, int], Awaitable[bytes]]) -> Callable[[Any, int], Awaitable[bytes]]:
    async def _read_data_body(self: Any, length: int) -> bytes:  # Yamux
        if length + sum(map(len, self.stream_buffers.values())) > MAX_BUFFERED_BYTES:
            raise BufferOverrun
        return await original(self, length)

    return _read_data_body


def _contained(cls: Any, name: str, end: Callable[[Any], Awaitable[object]]) -> None:
    """Wraps a task of one connection: its exception ends that connection instead of the host."""
    task = getattr(cls, name)

    async def contained(self: Any) -> None:
        try:
            await task(self)
        except Exception as error:
            log.debug("%s.%s ended: %s", cls.__name__, name, type(error).__name__)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                await end(self)

    setattr(cls, name, contained)


def _remote_address(self: Any) -> tuple[str, int] | None:  # TrioTCPStream
    if self._cached_remote_address is None:
        try:
            host, port = self.stream.socket.getpeername()[:2]  # IPv6 gives four values, and 0.8.1 then gives up
        except (OSError, AttributeError):
            return None
        self._cached_remote_address = (host.removeprefix("::ffff:"), port)
    address: tuple[str, int] = self._cached_remote_address
    return address


def _noise_read_writer(base: Any, max_plaintext: int) -> Any:
    class NoiseReadWriter(base):  # type: ignore[misc]
        def __init__(self, conn: Any, noise_state: Any) -> None:
            super().__init__(conn, noise_state)
            self._raw, self._in = conn, bytearray()

        async def write_msg(self, msg: bytes, prefix_encoded: bool = False) -> None:
            out = bytearray()
            for start in range(0, len(msg), max_plaintext):
                sealed = self.encrypt(msg[start : start + max_plaintext])
                out += len(sealed).to_bytes(2, "big") + sealed
            await self._raw.write(bytes(out))

        async def read_msg(self, prefix_encoded: bool = False) -> bytes:
            """The plaintext of every complete message received so far; b"" at the end."""
            buf, plain = self._in, []
            while True:
                pos = 0
                while len(buf) >= pos + 2 and len(buf) >= (end := pos + 2 + (buf[pos] << 8 | buf[pos + 1])):
                    plain.append(self.decrypt(bytes(buf[pos + 2 : end])))
                    pos = end
                del buf[:pos]
                if message := b"".join(plain):
                    return message
                if not (data := await self._raw.read(RECV_BYTES)):
                    return b""
                buf += data

    return NoiseReadWriter


def _quiet() -> None:
    from libp2p.network.connection import swarm_connection

    library = logging.getLogger("libp2p")
    library.handlers[:] = [_OneLine()]  # with none, Python's last resort writes warnings to stderr
    library.propagate = False
    library.setLevel(logging.WARNING)
    swarm_connection.logging = logging.getLogger("libp2p.network.swarm_connection")  # it uses the root logger


def apply() -> None:
    """Patches the library. UnsupportedLibp2pError when it is not the version that the patches were written for."""
    if (found := version("libp2p")) != SUPPORTED:
        raise UnsupportedLibp2pError(
            f"this node needs libp2p {SUPPORTED} but {found} is installed: "
            f"run `pip install libp2p=={SUPPORTED}` in the node's environment"
        )
    from libp2p.io.trio import TrioTCPStream
    from libp2p.network import swarm
    from libp2p.network.connection.swarm_connection import SwarmConn
    from libp2p.network.stream.net_stream import NetStream
    from libp2p.security.noise import io as noise_io
    from libp2p.security.noise import patterns
    from libp2p.stream_muxer.yamux import yamux
    from libp2p.utils import varint

    _quiet()
    if yamux.Yamux._write_frame is _write_frame:
        return  # already applied
    swarm._HAPPY_EYEBALLS_DELAY = 0.0  # the library's own dials (DHT) wait 250 ms otherwise, even for one address
    _replace(yamux.Yamux, streams_lock=Lock, _write_lock=Lock)
    _replace(
        yamux.YamuxStream,
        window_lock=Lock,
        close_lock=Lock,
        rw_lock=_WriteLock,
    )
    _replace(TrioTCPStream, read_lock=Lock, write_lock=Lock)
    _replace(NetStream, _state_lock=Lock)
    TrioTCPStream.get_remote_address = _remote_address
    yamux.MAX_WINDOW_SIZE = MAX_WINDOW_BYTES
    yamux.Yamux._write_frame = _write_frame
    yamux.Yamux._measure_rtt_loop = _keepalive
    yamux.Yamux._read_data_body = _bounded_body(yamux.Yamux._read_data_body)
    yamux.YamuxStream._auto_tune_and_send_window_update = _release_credit
    _contained(yamux.Yamux, "start", lambda conn: conn._cleanup_on_error())
    _contained(SwarmConn, "start", lambda conn: conn.close())
    patterns.NoiseTransportReadWriter = _noise_read_writer(
        noise_io.NoiseTransportReadWriter, noise_io.MAX_PLAINTEXT_LENGTH
    )
    limited = varint.read_varint_prefixed_bytes_limited

    async def read_negotiation(reader: Any) -> bytes:
        message: bytes = await limited(reader, MAX_NEGOTIATION_BYTES)
        return message

    varint.read_varint_prefixed_bytes = read_negotiation  # read_delim looks it up there
