"""The RPC's servers as a node opens them: tokens from outside, TLS, and a way in for this machine's commands."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
import trio
from shoal.node import addresses
from shoal.node.commands.failures import CommandError
from shoal.node.config import RpcSection
from shoal.node.front import open_front, server_tls
from shoal.node.tokens import TokenBook, Tokens
from shoal.protocols.http.client import Client

from ..protocols.http_fakes import certificate
from .fakes_router import Scripted, says
from .fakes_rpc import door


def listening() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


async def status(url: str, trust: ssl.SSLContext | None = None, token: str = "none") -> int:
    client, key = Client(ssl_context=trust, environ={}), ("authorization", f"Bearer {token}")
    with trio.fail_after(10):
        async with client.running(), client.request("GET", f"{url}/v1/models", headers=[key]) as response:
            await response.read(1 << 20)
            return response.status


async def test_on_loopback_there_is_one_server_and_no_token() -> None:
    async with door(Scripted("first", says("x"))) as rpc:
        with listening() as listener:
            async with open_front(rpc.rpc, listener, RpcSection()) as front:
                assert front.url == f"http://{front.local}"
                assert await status(front.url) == 200


async def test_beyond_loopback_a_token_is_needed_and_this_machine_has_a_way_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(addresses, "is_loopback", lambda host: False)
    book = TokenBook(tmp_path)
    _, secret = book.new("ci")
    async with door(Scripted("first", says("x")), tokens=Tokens(book)) as rpc:
        with listening() as listener:
            async with open_front(rpc.rpc, listener, RpcSection()) as front:
                assert await status(front.url) == 401
                assert await status(front.url, token=secret) == 200
                assert f"http://{front.local}" != front.url
                assert await status(f"http://{front.local}") == 200
                front.stop(1)
                with trio.fail_after(5):
                    await front.ended()
    assert "without TLS" in caplog.text


async def test_who_may_not_ask_is_told_before_a_long_body_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a stranger's gigabytes nor a web page's are taken in; what a token pays for is."""
    monkeypatch.setattr(addresses, "is_loopback", lambda host: False)
    book = TokenBook(tmp_path)
    _, secret = book.new("ci")
    async with door(Scripted("first", says("x")), tokens=Tokens(book)) as rpc:
        with listening() as listener:
            async with open_front(rpc.rpc, listener, RpcSection()) as front:
                outside, local = front.url.removeprefix("http://"), front.local
                good = f"authorization: bearer {secret}\r\n"
                for where, line, told in (
                    (outside, "", b"401 "),
                    (outside, "authorization: bearer shoal_no\r\n", b"401 "),
                    (outside, good + "origin: https://evil.example\r\n", b"403 "),
                    (outside, good, b"100 "),
                    (local, "", b"100 "),
                    (local, "sec-fetch-site: cross-site\r\n", b"403 "),
                ):
                    for expect in (True, False):
                        host, _, port = where.rpartition(":")
                        head = (
                            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {where}\r\n{line}content-length: 30000000\r\n"
                        )
                        head += "expect: 100-continue\r\n\r\n" if expect else "\r\n"
                        stream = await trio.open_tcp_stream(host, int(port))
                        async with stream:
                            await stream.send_all(head.encode())
                            data = b""
                            with trio.move_on_after(5 if expect or told != b"100 " else 0.2):
                                data = await stream.receive_some(4096)
                            assert data.startswith(b"HTTP/1.1 " + told if expect or told != b"100 " else b""), (
                                line,
                                data,
                            )


async def test_with_a_certificate_it_speaks_https(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(cert))
    async with door(Scripted("first", says("x"))) as rpc:
        with listening() as listener:
            section = RpcSection(tls_cert=str(cert), tls_key=str(key))
            async with open_front(rpc.rpc, listener, section) as front:
                assert front.url.startswith("https://127.0.0.1:")
                assert await status(front.url, trust) == 200
                assert await status(f"http://{front.local}") == 200


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_a_certificate_that_cannot_be_used_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "cert.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CommandError, match=r"cert\.pem.*rpc\.tls_cert"):
        server_tls(RpcSection(tls_cert=str(path)))


def test_an_encrypted_key_is_refused_and_asks_nobody(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, password=b"secret")
    with pytest.raises(CommandError, match="private key"):
        server_tls(RpcSection(tls_cert=str(cert), tls_key=str(key)))
