"""The client behind a proxy: plain requests, tunnels, and what is reached directly."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import trio
from shoal.protocols.http.client import ConnectFailed
from shoal.protocols.http.proxy import Proxies
from shoal.protocols.http.url import Origin

from .http_fakes import OK, receive_request, running_client, scripted_server, serving, tls_contexts


async def test_plain_http_goes_to_the_proxy_with_the_whole_url() -> None:
    seen = []

    async def converse(stream: trio.SocketStream, number: int) -> None:
        seen.append(await receive_request(stream))
        await stream.send_all(OK)

    async with scripted_server(converse) as proxy:
        environ = {"HTTP_PROXY": proxy.replace("http://", "http://me:p%40ss@")}
        async with (
            running_client(environ=environ) as client,
            client.request("GET", "http://upstream.test:81/a?b") as response,
        ):
            assert await response.read(10) == b"ok"
    assert seen[0].startswith(b"GET http://upstream.test:81/a?b HTTP/1.1\r\nhost: upstream.test:81\r\n")
    assert b"proxy-authorization: Basic " + base64.b64encode(b"me:p@ss") in seen[0]


async def test_https_goes_through_a_tunnel_that_the_proxy_opens(tmp_path: Path) -> None:
    tls, context = tls_contexts(tmp_path, "upstream.test")
    asked = []

    async with serving(tls=tls) as server:

        async def converse(stream: trio.SocketStream, number: int) -> None:
            asked.append(await receive_request(stream))
            async with await trio.open_tcp_stream(*server.addresses[0]) as onward, trio.open_nursery() as nursery:
                await stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                nursery.start_soon(copy, onward, stream)
                await copy(stream, onward)
                nursery.cancel_scope.cancel()

        async with scripted_server(converse) as proxy:
            environ = {"https_proxy": proxy.replace("http://", "http://me:pass@"), "NO_PROXY": "other.test"}
            async with running_client(ssl_context=context, environ=environ) as client:
                for _ in range(2):
                    async with client.request("POST", "https://upstream.test/a", body=b"hi") as response:
                        assert await response.read(100) == b"POST /a  hi"
    assert len(asked) == 1
    assert asked[0].startswith(b"CONNECT upstream.test:443 HTTP/1.1\r\nhost: upstream.test:443\r\n")
    assert b"proxy-authorization: Basic " in asked[0]


async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    while data := await source.receive_some():
        await sink.send_all(data)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n", "407"),
        (b"", "before its answer"),
        (b"x\r\n", "not HTTP"),
    ],
)
async def test_a_tunnel_that_is_refused_is_an_error_that_names_the_proxy(answer: bytes, why: str) -> None:
    async def converse(stream: trio.SocketStream, number: int) -> None:
        await receive_request(stream)
        if answer:
            await stream.send_all(answer)

    async with scripted_server(converse) as proxy, running_client(environ={"HTTPS_PROXY": proxy}) as client:
        with pytest.raises(ConnectFailed, match=f"{proxy.rstrip('/')} .*{why}"):
            async with client.request("GET", "https://upstream.test/"):
                pass


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("", "localhost", True),
        ("", "127.0.0.9", True),
        ("", "::1", True),
        ("", "example.org", False),
        ("*", "example.org", True),
        ("other.org, example.org", "example.org", True),
        ("example.org", "api.example.org", True),
        (".example.org", "api.example.org", True),
        ("*.example.org", "api.example.org", True),
        ("example.org", "badexample.org", False),
        ("example.org:8080", "example.org", False),
        ("example.org:80", "example.org", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("fd00::/8", "fd12::1", True),
        ("[fd12::1]:80", "fd12::1", True),
    ],
)
def test_no_proxy_names_what_is_reached_directly(no_proxy: str, host: str, direct: bool) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        proxies = Proxies({"all_proxy": "proxy.test:3128", name: no_proxy})
        assert (proxies.for_origin(Origin("http", host, 80)) is None) is direct


def test_proxies_are_read_from_both_cases_and_bad_ones_say_how_to_write_them() -> None:
    proxies = Proxies({"HTTP_PROXY": "a:1", "http_proxy": "http://b:2", "HTTPS_PROXY": "https://user:secret@c"})
    http = proxies.for_origin(Origin("http", "x.test", 80))
    https = proxies.for_origin(Origin("https", "x.test", 443))
    assert http is not None
    assert https is not None
    assert (http.origin, https.origin) == (Origin("http", "b", 2), Origin("https", "c", 443))
    assert "secret" not in repr(https)
    assert Proxies({"HTTP_PROXY": "a:1", "REQUEST_METHOD": "GET"}).for_origin(Origin("http", "x.test", 80)) is None
    for wrong in ("socks5://a:1", "http://:1", "http://a:x"):
        with pytest.raises(ValueError, match="HTTPS_PROXY is not a proxy that can be used; write it as"):
            Proxies({"HTTPS_PROXY": wrong})
