"""The RPC's servers: the one on the configured address and, where that is not plain loopback, one for this machine.

Whoever comes by an address beyond loopback needs a token. The commands of this machine (and `import shoal`) come by
loopback, so when the configured address is not that, or speaks TLS, a second server listens on 127.0.0.1 at a port
that the system chooses; rpc.json names it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from pathlib import Path

import trio

from ..protocols.http.limits import Limits
from ..protocols.http.server import Server, serve
from . import addresses
from .commands.exit_codes import ExitCode
from .commands.failures import CommandError
from .config import RpcSection
from .paths import reason
from .rpc.app import Rpc

log = logging.getLogger("shoal.rpc")

Serving = Callable[..., Awaitable[None]]


class Front:
    """url: what people are told. local: host:port for the commands of this machine."""

    def __init__(self, servers: list[Server], ended: list[trio.Event], *, tls: bool) -> None:
        self._servers, self._ended = servers, ended
        host, port = servers[0].addresses[0]
        self.url = f"{'https' if tls else 'http'}://{addresses.join_socket(host, port)}"
        host, port = servers[-1].addresses[0]
        self.local = addresses.join_socket(host, port)

    async def ended(self) -> None:
        """Returns when every server has ended."""
        for event in self._ended:
            await event.wait()

    def stop(self, grace_s: float) -> None:
        """Accept no more, and let requests at hand finish for so many seconds."""
        for server in self._servers:
            server.stop(grace_s)


@contextlib.asynccontextmanager
async def open_front(rpc: Rpc, listener: socket.socket, section: RpcSection) -> AsyncGenerator[Front]:
    """Serve while inside. listener: the configured address, listening; it stays its owner's. Raises CommandError."""
    tls = server_tls(section)
    outside = not addresses.is_loopback(listener.getsockname()[0])
    if outside and tls is None:
        log.warning("the RPC is open to other machines without TLS: tokens and texts can be read on the way")
    shared = set(Limits.__struct_fields__) & set(section.__struct_fields__)
    limits = Limits(**{name: getattr(section, name) for name in shared})
    own = trio.SocketListener(trio.socket.from_stdlib_socket(listener.dup()))
    gate = partial(rpc.gate, outside=outside)
    wanted = [partial(serve, rpc.outside if outside else rpc, [own], tls=tls, gate=gate)]
    if outside or tls is not None:
        wanted.append(partial(serve, rpc, ("127.0.0.1", 0), gate=partial(rpc.gate, outside=False)))
    async with trio.open_nursery() as nursery:
        ended: list[trio.Event] = []
        servers: list[Server] = []
        for each in wanted:
            done = trio.Event()
            serving = partial(_to_its_end, partial(each, limits=limits, on_error=rpc.on_error), done)
            servers.append(await nursery.start(serving))
            ended.append(done)
        yield Front(servers, ended, tls=tls is not None)
        nursery.cancel_scope.cancel()


async def _to_its_end(serving: Serving, done: trio.Event, *, task_status: trio.TaskStatus[Server]) -> None:
    await serving(task_status=task_status)
    done.set()


def server_tls(section: RpcSection) -> ssl.SSLContext | None:
    """The server's TLS as configured; None where there is none. Raises CommandError for files that cannot be used."""
    if section.tls_cert is None:
        return None
    cert = Path(section.tls_cert).expanduser()
    key = Path(section.tls_key).expanduser() if section.tls_key is not None else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # An encrypted key would make OpenSSL ask on the terminal of a daemon: an empty password refuses it instead.
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError:
        message = f"{cert}: is no certificate with its private key; check rpc.tls_cert and rpc.tls_key"
        raise CommandError(message, ExitCode.USAGE) from None
    except OSError as error:
        message = f"{cert}: the certificate or its key cannot be read: {reason(error)}; check rpc.tls_cert"
        raise CommandError(message, ExitCode.USAGE) from None
    return context
