"""The client: answers of every framing, connections kept and replaced, and failures that never look like an end."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest
import trio
from shoal.protocols.http.client import BadResponse, Client, ConnectFailed, ConnectionLost
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.limits import ClientLimits
from shoal.protocols.http.response import ResponseParser
from shoal.protocols.http.url import parse_url

from .http_fakes import OK, PATIENCE_S, receive_request, running_client, scripted_server, serving, tls_contexts, url_of

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


# -- answers ---------------------------------------------------------------------------------------------------


async def test_a_request_arrives_as_it_was_given_and_its_answer_is_read() -> None:
    async def tell(exchange: Exchange) -> None:
        names = [name for name, _ in exchange.headers]
        await exchange.respond(418, exchange.body * 2, [("x-names", " ".join(names)), ("x-target", exchange.query)])

    async with (
        serving(tell) as server,
        running_client() as client,
        client.request("POST", url_of(server, "/a?b=%20"), headers=[("x-a", "1")], body=b"hi") as response,
    ):
        assert response.status == 418
        assert response.header("x-names") == "host x-a user-agent content-length"
        assert response.header("x-target") == "b=%20"
        assert await response.read(100) == b"hihi"


async def test_a_stream_is_given_as_it_comes() -> None:
    go_on = trio.Event()

    async def stream(exchange: Exchange) -> None:
        async with exchange.stream(200) as send:
            await send(b"one")
            await go_on.wait()
            await send(b"two")

    async with (
        serving(stream) as server,
        running_client() as client,
        client.request("GET", url_of(server)) as response,
    ):
        chunks = []
        with trio.fail_after(PATIENCE_S):
            async for chunk in response:
                chunks.append(chunk)
                go_on.set()
    assert chunks == [b"one", b"two"]


ANSWERS = {
    "sized": (OK, b"ok"),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "chunked": (CHUNKED + b"1\r\no\r\n1;x=y\r\nk\r\n0\r\nA: b\r\n\r\n", b"ok"),
    "until close": (b"HTTP/1.1 200 OK\r\n\r\nok", b"ok"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nok", b"ok"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b""),
    "after interim answers": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK, b"ok"),
    "with more behind it": (OK + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad", b"ok"),
    "with noise behind it": (OK + b"noise", b"ok"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_answers_of_every_framing_are_read_however_they_are_cut(name: str, size: int) -> None:
    wire, expected = ANSWERS[name]

    async def converse(stream: trio.SocketStream, number: int) -> None:
        await receive_request(stream)
        for start in range(0, len(wire), size):
            await stream.send_all(wire[start : start + size])
            await trio.testing.wait_all_tasks_blocked()

    async with scripted_server(converse) as url, running_client() as client, client.request("GET", url) as response:
        assert await response.read(100) == expected


@pytest.mark.parametrize("name", ANSWERS)
def test_a_cut_answer_never_looks_whole(name: str) -> None:
    wire, _ = ANSWERS[name]
    end = len(wire) if "behind" not in name else len(OK)
    head = wire.rindex(b"\r\n\r\n", 0, wire.index(b"ok") if b"ok" in wire else None) + 4
    for length in range(end):
        parser = ResponseParser("GET", ClientLimits())
        parser.feed(wire[:length])
        if name in ("until close", "HTTP/1.0") and length >= head:
            continue  # nothing in such an answer says where it ends
        with pytest.raises(ConnectionLost):
            parser.feed_end()


async def test_head_has_no_body_whatever_its_length_says() -> None:
    async with serving() as server, running_client() as client, client.request("HEAD", url_of(server)) as response:
        assert response.header("content-length") == "8"
        assert await response.read(10) == b""


async def test_an_answer_longer_than_the_reader_wants_is_an_error() -> None:
    async def large(exchange: Exchange) -> None:
        await exchange.respond(200, b"x" * 1000)

    async with (
        serving(large) as server,
        running_client() as client,
        client.request("GET", url_of(server)) as response,
    ):
        with pytest.raises(BadResponse, match="longer than 999 bytes"):
            await response.read(999)


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 4000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"y" * 70_000,
    ],
)
async def test_what_is_no_proper_answer_is_refused(wire: bytes) -> None:
    async def converse(stream: trio.SocketStream, number: int) -> None:
        await receive_request(stream)
        await stream.send_all(wire)
        await trio.sleep_forever()

    async with scripted_server(converse) as url, running_client() as client:
        with trio.fail_after(PATIENCE_S), pytest.raises(BadResponse):
            async with client.request("GET", url) as response:
                await response.read(100)
        assert client.idle_connections == 0


async def test_an_answer_to_a_long_request_is_read_though_the_server_took_only_its_head() -> None:
    async def converse(stream: trio.SocketStream, number: int) -> None:
        await receive_request(stream)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await stream.send_eof()
        while await stream.receive_some():
            pass

    async with (
        scripted_server(converse) as url,
        running_client() as client,
        client.request("POST", url, body=bytes(5_000_000)) as response,
    ):
        assert (response.status, await response.read(10)) == (413, b"no")


# -- connections -----------------------------------------------------------------------------------------------


async def test_a_connection_is_used_again_and_by_one_request_at_a_time() -> None:
    async with serving() as server, running_client() as client:
        for _ in range(3):
            async with client.request("GET", url_of(server)) as response:
                await response.read(100)
        assert (server.connections, client.idle_connections) == (1, 1)
        async with client.request("GET", url_of(server)) as one, client.request("GET", url_of(server)) as two:
            await one.read(100)
            await two.read(100)
        assert (server.connections, client.idle_connections) == (2, 2)


async def test_a_whole_answer_that_nobody_read_leaves_its_connection_in_order() -> None:
    async with serving() as server, running_client() as client:
        async with client.request("GET", url_of(server)):
            pass
        assert client.idle_connections == 1


async def test_leaving_an_answer_early_closes_its_connection_and_stops_the_work() -> None:
    stopped = trio.Event()

    async def endless(exchange: Exchange) -> None:
        try:
            async with exchange.stream(200) as send:
                await send(b"x")
                await trio.sleep_forever()
        finally:
            stopped.set()

    async with serving(endless) as server, running_client() as client:
        async with client.request("GET", url_of(server)) as response:
            assert await anext(response) == b"x"
        assert client.idle_connections == 0
        with trio.fail_after(PATIENCE_S):
            await stopped.wait()


async def test_a_caller_that_is_cancelled_leaves_no_connection() -> None:
    async def silent(exchange: Exchange) -> None:
        await trio.sleep_forever()

    async with serving(silent) as server, running_client() as client:
        with trio.move_on_after(0.05) as scope:
            async with client.request("GET", url_of(server)):
                pass
        assert scope.cancelled_caught
        assert client.idle_connections == 0


@pytest.mark.parametrize("notice", ["before", "after"])
async def test_a_kept_connection_that_died_is_replaced_once(notice: str) -> None:
    async def converse(stream: trio.SocketStream, number: int) -> None:
        await receive_request(stream)
        await stream.send_all(OK)
        if number == 0:
            if notice == "after":
                await receive_request(stream)  # takes the second request and closes without a word
        else:
            await stream.receive_some()

    async with scripted_server(converse) as url, running_client() as client:
        for _ in range(2):
            async with client.request("POST", url, body=b"x") as response:
                assert await response.read(10) == b"ok"
            await trio.testing.wait_all_tasks_blocked()


async def test_a_new_connection_that_dies_is_not_replaced() -> None:
    connections = 0

    async def converse(stream: trio.SocketStream, number: int) -> None:
        nonlocal connections
        connections += 1
        await receive_request(stream)
        if number == 0:
            await stream.send_all(OK)
            await receive_request(stream)

    async with scripted_server(converse) as url, running_client() as client:
        async with client.request("GET", url) as response:
            await response.read(10)
        with pytest.raises(ConnectionLost, match="before its answer"):
            async with client.request("GET", url):
                pass
    assert connections == 2


async def test_a_request_is_not_repeated_once_a_byte_of_its_answer_came() -> None:
    async def converse(stream: trio.SocketStream, number: int) -> None:
        assert number == 0
        await receive_request(stream)
        await stream.send_all(OK)
        await receive_request(stream)
        await stream.send_all(b"HTTP/1.1 2")

    async with scripted_server(converse) as url, running_client() as client:
        async with client.request("GET", url) as response:
            await response.read(10)
        with pytest.raises(ConnectionLost, match="in the middle of"):
            async with client.request("GET", url):
                pass


async def test_connections_are_closed_when_unused_for_long(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as server, running_client(limits=ClientLimits(idle_s=20)) as client:
        async with client.request("GET", url_of(server)) as response:
            await response.read(100)
        await trio.sleep(19)
        assert client.idle_connections == 1
        await trio.sleep(7)
        assert client.idle_connections == 0


async def test_only_so_many_connections_are_kept_for_an_origin_and_none_at_the_end() -> None:
    async with serving() as server:
        async with running_client(limits=ClientLimits(max_idle_per_origin=2)) as client:
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(4):
                    await stack.enter_async_context(client.request("GET", url_of(server)))
            assert client.idle_connections == 2
        assert client.idle_connections == 0


async def test_no_connection_is_an_error_that_says_to_whom_and_why() -> None:
    async with serving() as server:
        url = url_of(server)
    async with running_client() as client:
        with pytest.raises(ConnectFailed, match=r"^http://127\.0\.0\.1:\d+: .*[Cc]onnection refused"):
            async with client.request("GET", url):
                pass


async def test_a_silent_tls_server_is_given_up_in_time(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async def converse(stream: trio.SocketStream, number: int) -> None:
        await trio.sleep_forever()

    _, context = tls_contexts(tmp_path)
    async with scripted_server(converse) as url, running_client(ssl_context=context) as client:
        before = trio.current_time()
        with pytest.raises(ConnectFailed, match="in time"):
            async with client.request("GET", url.replace("http:", "https:")):
                pass
        assert trio.current_time() - before == pytest.approx(ClientLimits().tls_timeout_s, abs=0.1)


# -- TLS -------------------------------------------------------------------------------------------------------


async def test_https_works_with_a_trusted_certificate_and_keeps_the_connection(tmp_path: Path) -> None:
    tls, context = tls_contexts(tmp_path)
    async with serving(tls=tls) as server, running_client(ssl_context=context) as client:
        for _ in range(3):
            async with client.request("POST", url_of(server, scheme="https"), body=b"hi") as response:
                assert await response.read(100) == b"POST /  hi"
        assert server.connections == 1


async def test_a_certificate_that_is_not_trusted_is_refused(tmp_path: Path) -> None:
    tls, _ = tls_contexts(tmp_path)
    async with serving(tls=tls) as server, running_client() as client:
        with pytest.raises(ConnectFailed, match="certificate is not trusted"):
            async with client.request("GET", url_of(server, scheme="https")):
                pass


async def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    tls, context = tls_contexts(tmp_path, "other.example")
    async with serving(tls=tls) as server, running_client(ssl_context=context) as client:
        with pytest.raises(ConnectFailed, match="certificate is not trusted"):
            async with client.request("GET", f"https://localhost:{server.addresses[0][1]}/"):
                pass


async def test_a_tls_answer_without_declared_end_is_whole_only_with_tls_goodbye(tmp_path: Path) -> None:
    tls, context = tls_contexts(tmp_path)

    async def converse(stream: trio.SocketStream, number: int) -> None:
        secure = trio.SSLStream(stream, tls, server_side=True)
        await secure.receive_some()
        await secure.send_all(b"HTTP/1.1 200 OK\r\n\r\nok")
        if number == 0:
            await secure.aclose()
        else:
            await stream.aclose()

    async with scripted_server(converse) as url, running_client(ssl_context=context) as client:
        url = url.replace("http:", "https:")
        async with client.request("GET", url) as response:
            assert await response.read(10) == b"ok"
        with pytest.raises(ConnectionLost):
            async with client.request("GET", url) as response:
                await response.read(10)


async def test_an_http_1_0_client_reads_a_tls_stream_to_its_goodbye(tmp_path: Path) -> None:
    async def stream(exchange: Exchange) -> None:
        async with exchange.stream(200) as send:
            await send(b"one")

    tls, context = tls_contexts(tmp_path)
    async with serving(stream, tls=tls) as server:
        secure = await trio.open_ssl_over_tcp_stream(*server.addresses[0], ssl_context=context)
        await secure.send_all(b"GET / HTTP/1.0\r\n\r\n")
        seen = b""
        while data := await secure.receive_some():
            seen += data
        assert seen.endswith(b"\r\n\r\none")
        await secure.aclose()
        with trio.fail_after(PATIENCE_S):
            while server.connections:
                await trio.lowlevel.checkpoint()


# -- what cannot be sent ---------------------------------------------------------------------------------------


def test_urls_give_origin_and_target() -> None:
    assert parse_url("http://Example.org?q") == parse_url("http://example.org:80/?q")
    assert parse_url("https://[::1]:8443/a#fragment").target == "/a"
    assert parse_url("https://[::1]:8443/").origin.authority == "[::1]:8443"
    assert parse_url("http://bücher.example/").origin.host == "xn--bcher-kva.example"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/",
        "a.example/b",
        "http://",
        "http://a:x/",
        "http://u:secret@a/",
        "http://a/b c",
        "http://a/ä",
        "http://[::1/",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


async def test_a_header_or_method_that_would_break_the_request_is_refused() -> None:
    client = Client(environ={})
    for method, header in (("GET", ("x-a", "b\r\nc: d")), ("GET", ("x a", "b")), ("GET / HTTP/1.1\r\n", ("a", "b"))):
        with pytest.raises(ValueError):
            async with client.request(method, "http://127.0.0.1:1/", headers=[header]):
                pass


def test_the_system_decides_whom_to_trust() -> None:
    context = Client(environ={})._trust()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


async def test_a_request_that_was_severed_before_it_began_is_never_sent() -> None:
    async with serving() as server, running_client() as client:
        async with client.request("GET", url_of(server)) as response:
            await response.read(1000)
        assert client.idle_connections == 1
        call = client.request("GET", url_of(server))
        call.sever()
        with pytest.raises(ConnectionLost, match="before it was sent"):
            await call.__aenter__()
        assert client.idle_connections == 1
