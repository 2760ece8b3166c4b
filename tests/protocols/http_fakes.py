"""What the HTTP tests share: a served handler, a raw connection to it, scripted servers, a certificate."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from shoal.protocols.http.client import Client
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.server import Server, serve

PATIENCE_S = 10.0  # no test waits longer than this for anything
NO_PROXIES: dict[str, str] = {}
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Work:
    """A handler that works until it is cancelled or let go, and says how that went."""

    def __init__(self, *, streams: bool = False) -> None:
        self.started, self.let_go, self.cancelled = trio.Event(), trio.Event(), trio.Event()
        self._streams = streams

    async def __call__(self, exchange: Exchange) -> None:
        self.started.set()
        try:
            if self._streams:
                async with exchange.stream(200) as send:
                    await send(b"begun")
                    await self.let_go.wait()
            else:
                await self.let_go.wait()
                await exchange.respond(200, b"done")
        except trio.Cancelled:
            self.cancelled.set()
            raise


async def echo(exchange: Exchange) -> None:
    """Answers with what was asked: method, path, query, and the body."""
    text = f"{exchange.method} {exchange.path} {exchange.query} ".encode()
    await exchange.respond(200, text + exchange.body, [("content-type", "text/plain")])


@contextlib.asynccontextmanager
async def serving(handler: Callable[[Exchange], Awaitable[None]] = echo, **options: Any) -> AsyncGenerator[Server]:
    async with trio.open_nursery() as nursery:

        async def start(task_status: Any) -> None:
            await serve(handler, ("127.0.0.1", 0), task_status=task_status, **options)

        server: Server = await nursery.start(start)
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()


def url_of(server: Server, path: str = "/", scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{server.addresses[0][1]}{path}"


class RawClient:
    """A client that sends exactly the bytes it is told."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._seen = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def until(self, mark: bytes) -> bytes:
        """What comes, up to and with `mark`."""
        with trio.fail_after(PATIENCE_S):
            while mark not in self._seen:
                data = await self.stream.receive_some()
                assert data, f"the connection ended before {mark!r}: {self._seen!r}"
                self._seen += data
        head, found, self._seen = self._seen.partition(mark)
        return head + found

    async def to_end(self) -> bytes:
        with trio.fail_after(PATIENCE_S):
            while data := await self.stream.receive_some():
                self._seen += data
        seen, self._seen = self._seen, b""
        return seen

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """One answer with a Content-Length (or none): status, headers, body."""
        head = await self.until(b"\r\n\r\n")
        first, *lines = head.decode().rstrip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers.get("content-length", "0"))
        with trio.fail_after(PATIENCE_S):
            while len(self._seen) < length:
                self._seen += await self.stream.receive_some()
        body, self._seen = self._seen[:length], self._seen[length:]
        return int(first.split()[1]), headers, body


@contextlib.asynccontextmanager
async def raw_client(server: Server) -> AsyncGenerator[RawClient]:
    stream = await trio.open_tcp_stream(*server.addresses[0])
    async with stream:
        yield RawClient(stream)


@contextlib.asynccontextmanager
async def scripted_server(
    conversation: Callable[[trio.SocketStream, int], Awaitable[None]],
) -> AsyncGenerator[str]:
    """A server that answers by script: `conversation` gets each connection and its number from 0. Gives the URL."""
    count = 0

    async def converse(stream: trio.SocketStream) -> None:
        nonlocal count
        number, count = count, count + 1
        with contextlib.suppress(trio.BrokenResourceError):
            await conversation(stream, number)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: trio.serve_tcp(converse, 0, host="127.0.0.1", task_status=task_status)
        )
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        nursery.cancel_scope.cancel()


async def receive_request(stream: trio.SocketStream) -> bytes:
    """The head of a request, and a body that comes with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await stream.receive_some()
        if not piece:
            raise trio.BrokenResourceError("the client left")
        data += piece
    return data


@contextlib.asynccontextmanager
async def running_client(**options: Any) -> AsyncGenerator[Client]:
    client = Client(**{"environ": NO_PROXIES, **options})
    async with client.running():
        yield client


def certificate(folder: Path, host: str = "localhost", *, password: bytes | None = None) -> tuple[Path, Path]:
    """A self-signed certificate for `host` and 127.0.0.1, and its private key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(host), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
    return cert_file, key_file


def tls_contexts(folder: Path, host: str = "localhost") -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate for `host` and 127.0.0.1, and a client's that trusts only it."""
    cert_file, key_file = certificate(folder, host)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert_file, key_file)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cert_file)
    return server, client
