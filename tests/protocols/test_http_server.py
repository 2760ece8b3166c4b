"""The server as its clients see it: answers in order, errors, and an end that loses nothing."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pytest
import trio
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.limits import Limits
from shoal.protocols.http.message import Header, HttpError
from shoal.protocols.http.server import parse_address, serve

from .http_fakes import GET, PATIENCE_S, Work, echo, raw_client, serving, tls_contexts


def post(body: bytes, *lines: bytes) -> bytes:
    head = [b"POST /p HTTP/1.1", b"Host: a", b"Content-Length: %d" % len(body), *lines, b"", b""]
    return b"\r\n".join(head) + body


# -- answers ---------------------------------------------------------------------------------------------------


async def test_a_request_is_answered_with_length_type_and_date() -> None:
    async with serving() as server, raw_client(server) as client:
        await client.send(post(b"hello"))
        status, headers, body = await client.answer()
    assert (status, body) == (200, b"POST /p  hello")
    assert headers["content-type"] == "text/plain"
    assert headers["date"].endswith(" GMT")
    assert "connection" not in headers


async def test_a_connection_serves_one_request_after_another() -> None:
    async with serving() as server, raw_client(server) as client:
        for number in range(5):
            await client.send(post(b"%d" % number))
            assert (await client.answer())[2] == b"POST /p  %d" % number
        assert server.connections == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def slow_first(exchange: Exchange) -> None:
        if exchange.body == b"0":
            await trio.testing.wait_all_tasks_blocked()
        await echo(exchange)

    async with serving(slow_first) as server, raw_client(server) as client:
        await client.send(b"".join(post(b"%d" % number) for number in range(20)))
        answers = [(await client.answer())[2] for _ in range(20)]
    assert answers == [b"POST /p  %d" % number for number in range(20)]


async def test_what_is_pipelined_before_a_refusal_is_answered_first() -> None:
    async with serving() as server, raw_client(server) as client:
        await client.send(GET + b"GET / HTTP/1.1\r\nBad : x\r\n\r\n" + GET)
        assert (await client.answer())[0] == 200
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (400, "close")
        assert await client.to_end() == b""


async def test_head_gets_the_head_of_the_answer_and_options_is_an_ordinary_request() -> None:
    async with serving() as server, raw_client(server) as client:
        await client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"content-length: 8" in await client.until(b"\r\n\r\n")
        await client.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.answer())[2] == b"OPTIONS *  "


async def test_a_head_request_for_a_stream_gets_no_body() -> None:
    async def stream(exchange: Exchange) -> None:
        async with exchange.stream(200) as send:
            await send(b"never seen")

    async with serving(stream) as server, raw_client(server) as client:
        await client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
        assert b"chunked" in await client.until(b"\r\n\r\n")
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_an_answer_without_content_has_no_length() -> None:
    async def nothing(exchange: Exchange) -> None:
        await exchange.respond(204, b"dropped")

    async with serving(nothing) as server, raw_client(server) as client:
        await client.send(GET)
        assert b"content-length" not in await client.until(b"\r\n\r\n")
        await client.send(GET)
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")


async def test_a_stream_sends_its_head_with_the_first_piece_and_ends_with_the_last() -> None:
    async def stream(exchange: Exchange) -> None:
        async with exchange.stream(200, [("content-type", "text/event-stream")]) as send:
            assert not exchange.headers_sent
            await send(b"one")
            assert exchange.headers_sent
            await send(b"")
            await send(b"two", last=True)
            assert exchange.answered

    async with serving(stream) as server, raw_client(server) as client:
        await client.send(GET)
        assert b"transfer-encoding: chunked" in await client.until(b"\r\n\r\n")
        assert await client.until(b"0\r\n\r\n") == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        await client.send(GET)
        await client.until(b"0\r\n\r\n")


async def test_an_http_1_0_client_gets_a_stream_that_ends_with_the_connection() -> None:
    async def stream(exchange: Exchange) -> None:
        async with exchange.stream(200) as send:
            await send(b"one")
            await send(b"two")

    async with serving(stream) as server, raw_client(server) as client:
        await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        head, _, body = (await client.to_end()).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert b"connection: close" in head
    assert body == b"onetwo"


async def test_an_http_1_0_client_that_asks_for_it_keeps_its_connection() -> None:
    async with serving() as server, raw_client(server) as client:
        for _ in range(2):
            await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await client.answer())[1]["connection"] == "keep-alive"


async def test_a_client_that_asks_for_it_gets_its_connection_closed() -> None:
    async with serving() as server, raw_client(server) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert b"connection: close" in await client.to_end()


async def test_a_client_that_waits_for_continue_is_told_to_go_on() -> None:
    async with serving() as server, raw_client(server) as client:
        head, _, body = post(b"hello", b"Expect: 100-continue").partition(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(body)
        assert (await client.answer())[2] == b"POST /p  hello"


async def test_a_handler_knows_its_client_and_its_headers() -> None:
    async def tell(exchange: Exchange) -> None:
        await exchange.respond(200, f"{exchange.client[0]} {exchange.header('x-a')} {exchange.header('x-b')}".encode())

    async with serving(tell) as server, raw_client(server) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nX-A: 2\r\n\r\n")
        assert (await client.answer())[2] == b"127.0.0.1 1 None"


# -- errors ----------------------------------------------------------------------------------------------------


def as_json(error: Exception) -> tuple[int, list[Header], bytes]:
    if isinstance(error, HttpError):
        return error.status, [("content-type", "application/json"), *error.headers], b'{"error": true}'
    return 500, [("content-type", "application/json")], b'{"error": "%s"}' % type(error).__name__.encode()


async def test_errors_of_handlers_and_of_the_protocol_are_rendered_by_the_same_hook() -> None:
    async def fail(exchange: Exchange) -> None:
        if exchange.path == "/typed":
            raise HttpError(405, "no", [("allow", "GET")])
        async with trio.open_nursery():
            raise KeyError("a secret")

    async with serving(fail, on_error=as_json) as server, raw_client(server) as client:
        await client.send(b"GET /typed HTTP/1.1\r\nHost: a\r\n\r\n")
        status, headers, body = await client.answer()
        assert (status, headers["allow"], body) == (405, "GET", b'{"error": true}')
        await client.send(GET)
        assert (await client.answer())[::2] == (500, b'{"error": "KeyError"}')
        await client.send(b"nonsense")
        status, headers, body = await client.answer()
        assert (status, headers["content-type"], body) == (400, "application/json", b'{"error": true}')


async def test_a_failing_handler_is_logged_by_kind_and_place_without_its_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(exchange: Exchange) -> None:
        raise KeyError("a secret")

    async with serving(fail) as server, raw_client(server) as client:
        await client.send(GET)
        assert (await client.answer())[::2] == (500, b"the server failed to answer this request")
    assert "KeyError at" in caplog.text
    assert "a secret" not in caplog.text


async def test_a_handler_that_says_nothing_is_a_failure() -> None:
    async def silent(exchange: Exchange) -> None:
        return

    async with serving(silent) as server, raw_client(server) as client:
        await client.send(GET)
        assert (await client.answer())[0] == 500


async def test_a_header_with_a_line_break_never_reaches_the_wire() -> None:
    async def split(exchange: Exchange) -> None:
        await exchange.respond(200, b"", [("x-a", "b\r\nset-cookie: c")])

    async with serving(split) as server, raw_client(server) as client:
        await client.send(GET)
        status, headers, _ = await client.answer()
    assert status == 500
    assert "set-cookie" not in headers


async def test_a_stream_that_fails_is_cut_and_never_looks_whole() -> None:
    async def fail(exchange: Exchange) -> None:
        async with exchange.stream(200) as send:
            await send(b"one")
            raise HttpError(500, "too late")

    async with serving(fail) as server:
        async with raw_client(server) as client:
            await client.send(GET)
            assert (await client.to_end()).endswith(b"3\r\none\r\n")
        async with raw_client(server) as client:
            await client.send(b"GET / HTTP/1.0\r\n\r\n")
            with pytest.raises(trio.BrokenResourceError):
                await client.to_end()


async def test_a_stream_that_fails_before_its_first_piece_is_answered_with_the_error() -> None:
    async def fail(exchange: Exchange) -> None:
        async with exchange.stream(200):
            raise HttpError(503, "not now")

    async with serving(fail) as server, raw_client(server) as client:
        await client.send(GET)
        assert (await client.answer())[::2] == (503, b"not now")


async def test_a_refused_client_reads_why_though_it_still_sends() -> None:
    async with serving(limits=Limits(max_body_bytes=1000)) as server, raw_client(server) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n")
        for _ in range(30):
            await client.send(b"x" * 100_000)
        assert (await client.answer())[0] == 413


# -- a client that leaves --------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("pipelined", [b"", GET * 3])
async def test_a_client_that_leaves_cancels_its_work_at_once(streams: bool, pipelined: bytes) -> None:
    work = Work(streams=streams)
    async with serving(work) as server:
        async with raw_client(server) as client:
            await client.send(GET + pipelined)
            await work.started.wait()
        with trio.fail_after(PATIENCE_S):
            await work.cancelled.wait()


async def test_a_client_that_resets_its_connection_cancels_its_work() -> None:
    work = Work()
    async with serving(work) as server:
        async with raw_client(server) as client:
            await client.send(GET)
            await work.started.wait()
            client.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with trio.fail_after(PATIENCE_S):
            await work.cancelled.wait()


async def test_a_client_that_leaves_stops_no_other() -> None:
    work = Work()
    async with serving(work) as server, raw_client(server) as staying:
        async with raw_client(server) as leaving:
            await leaving.send(GET)
            await work.started.wait()
            await staying.send(GET)
        with trio.fail_after(PATIENCE_S):
            await work.cancelled.wait()
        work.let_go.set()
        assert (await staying.answer())[2] == b"done"


# -- an end that loses nothing ---------------------------------------------------------------------------------


async def test_stopping_closes_idle_connections_and_lets_requests_finish() -> None:
    work = Work()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve, work, ("127.0.0.1", 0))
        async with raw_client(server) as idle, raw_client(server) as busy:
            await busy.send(GET)
            await work.started.wait()
            server.stop(grace_s=math.inf)
            assert await idle.to_end() == b""
            with pytest.raises(OSError):
                await trio.open_tcp_stream(*server.addresses[0])
            work.let_go.set()
            status, headers, body = await busy.answer()
            assert (status, headers["connection"], body) == (200, "close", b"done")
        nursery.cancel_scope.deadline = trio.current_time() + PATIENCE_S
    assert not nursery.cancel_scope.cancelled_caught
    assert server.connections == 0


async def test_stopping_cuts_what_does_not_finish_in_time(autojump_clock: trio.testing.MockClock) -> None:
    work = Work(streams=True)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve, work, ("127.0.0.1", 0))
        async with raw_client(server) as client:
            await client.send(GET)
            await work.started.wait()
            before = trio.current_time()
            server.stop(grace_s=2)
            assert b"begun" in await client.to_end()
            assert trio.current_time() - before == pytest.approx(2, abs=0.01)
    assert work.cancelled.is_set()


async def test_a_server_that_is_cancelled_leaves_nothing_listening() -> None:
    async with serving() as server:
        pass
    with pytest.raises(OSError):
        await trio.open_tcp_stream(*server.addresses[0])


async def test_an_address_in_use_is_an_error_at_the_start() -> None:
    async with serving() as server:
        with pytest.raises(OSError):
            await serve(echo, server.addresses[0])


async def test_plain_http_to_a_server_with_a_certificate_is_told_what_to_speak(tmp_path: Path) -> None:
    context, _ = tls_contexts(tmp_path)
    async with serving(tls=context) as server:
        for data, answer in ((GET, b"speaks HTTPS"), (b"\x00" * 300, b""), (b"\x16\x03\x01\x00\x05hello", b"")):
            stream = await trio.open_tcp_stream(*server.addresses[0])
            with trio.fail_after(PATIENCE_S):
                await stream.send_all(data)
                told = b""
                with contextlib.suppress(trio.BrokenResourceError):
                    while piece := await stream.receive_some(4096):
                        told += piece
            assert told.startswith(b"HTTP/1.1 400 Bad Request\r\n") == bool(answer), told
            assert answer in told
        assert server.connections == 0


async def test_a_server_with_a_certificate_speaks_tls(tmp_path: Path) -> None:
    server_context, client_context = tls_contexts(tmp_path)
    async with serving(tls=server_context) as server:
        stream = await trio.open_ssl_over_tcp_stream(*server.addresses[0], ssl_context=client_context)
        await stream.send_all(GET)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 OK")
        await stream.aclose()


def test_addresses_are_read_with_a_message_that_says_how_to_write_them() -> None:
    assert parse_address("127.0.0.1:8642") == ("127.0.0.1", 8642)
    assert parse_address("[::1]:0") == ("::1", 0)
    for wrong in ("8642", ":8642", "a:", "a:x", "::1:80", "a:99999"):
        with pytest.raises(ValueError, match="write"):
            parse_address(wrong)
