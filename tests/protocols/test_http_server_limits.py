"""The limits of the server: how long a client may take, and how many there may be."""

from __future__ import annotations

import contextlib

import pytest
import trio
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.limits import Limits

from .http_fakes import GET, Work, raw_client, serving

QUICK = Limits(head_timeout_s=4, body_timeout_s=6, idle_timeout_s=8, write_timeout_s=3)


@pytest.mark.parametrize(
    ("sent", "seconds", "status"),
    [(b"GET / HT", 4, 408), (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf", 6, 408), (b"", 8, None)],
)
async def test_a_client_that_takes_too_long_is_told_and_let_go(
    sent: bytes, seconds: float, status: int | None, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(limits=QUICK) as server, raw_client(server) as client:
        if sent:
            await client.send(sent)
        before = trio.current_time()
        answer = await client.to_end()
        assert seconds <= trio.current_time() - before <= seconds + 1
    assert (answer == b"") if status is None else answer.startswith(b"HTTP/1.1 %d" % status)


async def test_a_head_that_drips_gets_no_more_time_than_one_that_stalls(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving(limits=QUICK) as server, raw_client(server) as client:
        before = trio.current_time()
        with contextlib.suppress(trio.BrokenResourceError):
            while trio.current_time() - before < 60:
                await client.send(b"G")
                await trio.sleep(0.5)
        assert trio.current_time() - before <= 6


async def test_a_request_that_is_worked_on_has_no_idle_limit(autojump_clock: trio.testing.MockClock) -> None:
    async def slow(exchange: Exchange) -> None:
        await trio.sleep(1000)
        await exchange.respond(200, b"at last")

    async with serving(slow, limits=QUICK) as server, raw_client(server) as client:
        await client.send(GET)
        with trio.fail_after(2000):
            assert (await client.stream.receive_some()).endswith(b"at last")


async def test_the_idle_time_begins_again_after_each_request(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(limits=QUICK) as server, raw_client(server) as client:
        for _ in range(4):
            await trio.sleep(6)
            await client.send(GET)
            assert (await client.answer())[0] == 200


async def test_a_client_that_does_not_read_is_cut_off_and_its_work_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ended = trio.Event()

    async def endless(exchange: Exchange) -> None:
        try:
            async with exchange.stream(200) as send:
                while True:
                    await send(b"x" * 50_000)
        finally:
            ended.set()

    async with serving(endless, limits=QUICK) as server, raw_client(server) as client:
        before = trio.current_time()
        await client.send(GET)
        await ended.wait()
        assert 3 <= trio.current_time() - before <= 4.5


async def test_a_client_that_reads_slowly_but_reads_is_served(autojump_clock: trio.testing.MockClock) -> None:
    size = 20_000_000

    async def large(exchange: Exchange) -> None:
        await exchange.respond(200, bytes(size))

    async with serving(large, limits=QUICK) as server, raw_client(server) as client:
        await client.send(GET)
        before, received = trio.current_time(), 0
        while received < size:
            data = await client.stream.receive_some(1_000_000)
            assert data, received
            received += len(data)
            await trio.sleep(1)
        assert trio.current_time() - before > QUICK.write_timeout_s * 3


# -- room for connections --------------------------------------------------------------------------------------


async def test_the_connection_that_waits_longest_makes_room_for_a_new_one() -> None:
    two = Limits(max_connections=2)
    async with serving(limits=two) as server, raw_client(server) as first, raw_client(server) as second:
        for client in (first, second, first):
            await client.send(GET)
            assert (await client.answer())[0] == 200
        async with raw_client(server) as third:
            await third.send(GET)
            assert (await third.answer())[0] == 200
        assert await second.to_end() == b""
        await first.send(GET)
        assert (await first.answer())[0] == 200


async def test_when_every_connection_is_at_work_a_new_one_is_refused() -> None:
    work = Work()
    async with serving(work, limits=Limits(max_connections=1)) as server, raw_client(server) as first:
        await first.send(GET)
        await work.started.wait()
        async with raw_client(server) as second:
            assert (await second.to_end()).startswith(b"HTTP/1.1 503 ")
        work.let_go.set()
        assert (await first.answer())[2] == b"done"


async def test_many_slow_connections_do_not_stop_a_fast_one() -> None:
    async with serving(limits=Limits(max_connections=50)) as server:
        slow = []
        for _ in range(200):
            stream = await trio.open_tcp_stream(*server.addresses[0])
            await stream.send_all(b"GET / HT")
            slow.append(stream)
        async with raw_client(server) as fast:
            await fast.send(GET)
            assert (await fast.answer())[0] == 200
        assert server.connections <= 51
        for stream in slow:
            stream.socket.close()


async def test_a_connection_serves_no_more_requests_than_the_limit() -> None:
    async with serving(limits=Limits(max_requests_per_connection=2)) as server, raw_client(server) as client:
        await client.send(GET * 3)
        assert "connection" not in (await client.answer())[1]
        assert (await client.answer())[1]["connection"] == "close"
        assert await client.to_end() == b""
