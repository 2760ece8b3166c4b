"""Calls over a session: answers, items, errors, cancelling, large bodies, credit and look-ups."""

from __future__ import annotations

import random

import pytest
import trio
from shoal.protocols.session import CallError, SessionLimits, SessionLost

from .fakes_session import TestService, session_pair


async def test_a_call_is_answered():
    async with session_pair() as (alice, bob):
        assert await alice.request("echo", {"text": "hi"}) == {"text": "hi"}
        assert await bob.request("echo", [1, 2.5, None, b"\x00", "ü"]) == [1, 2.5, None, b"\x00", "ü"]
        assert (alice.calls_in_flight, bob.calls_in_flight) == (0, 0)


async def test_items_come_in_order_then_the_result():
    async with session_pair() as (alice, _), alice.call("count", 1000) as call:
        assert [item async for item in call] == list(range(1000))
        assert call.accepted == {"n": 1000}
        assert call.result == "done"


async def test_many_calls_share_the_session_both_ways():
    async def ask(session, number):
        async with session.call("count", number) as call:
            assert [item async for item in call] == list(range(number))

    async with session_pair() as (alice, bob), trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(ask, alice, number)
            nursery.start_soon(ask, bob, number)


async def test_an_error_comes_with_code_message_and_data():
    async with session_pair() as (alice, _):
        with pytest.raises(CallError) as caught:
            await alice.request("fail")
        assert (caught.value.code, caught.value.message, caught.value.data) == (
            "overloaded", "come back later", {"retry_after": 3},
        )  # fmt: skip


async def test_a_crashing_handler_harms_nobody_and_its_text_stays_here(caplog):
    async with session_pair() as (alice, _):
        with pytest.raises(CallError) as caught:
            await alice.request("crash")
        assert caught.value.code == "internal"
        assert "secret" not in str(caught.value)
        assert await alice.request("echo", 1) == 1
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


async def test_leaving_a_call_cancels_it_at_the_peer():
    service = TestService()
    async with session_pair(service=service) as (alice, bob):
        async with alice.call("wait") as call:
            assert await anext(call) == "first"
        with trio.fail_after(1):
            await service.cancelled.wait()
            while bob.calls_in_flight:
                await trio.lowlevel.checkpoint()
        assert await alice.request("echo", 1) == 1


async def test_a_call_can_be_cancelled_inside_a_cancelled_scope():
    service = TestService()
    async with session_pair(service=service) as (alice, _):
        with trio.CancelScope() as scope:
            async with alice.call("wait") as call:
                await anext(call)
                scope.cancel()
                await anext(call)
        with trio.fail_after(1):
            await service.cancelled.wait()


async def test_a_thousand_cancels_leave_nothing_behind(autojump_clock):

    rng = random.Random(7)

    async def ask(session):
        with trio.move_on_after(rng.random() * 0.03):
            async with session.call("wait") as call:
                async for _ in call:
                    pass

    async with session_pair() as (alice, bob):
        for _ in range(10):
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(ask, alice)
        assert await alice.request("echo", "alive") == "alive"
        assert (alice.calls_in_flight, bob.calls_in_flight) == (0, 0)


async def test_the_first_item_leaves_at_once_and_later_ones_wait_for_company(autojump_clock):
    class Slow(TestService):
        async def on_call(self, call, method, params):
            for number in range(params):
                await call.send(number)
                await trio.sleep(0.004)

    async with session_pair(service=Slow()) as (alice, bob), alice.call("go", 50) as call:
        start, came = trio.current_time(), []
        async for _ in call:
            came.append(trio.current_time() - start)
        assert came[0] == 0
        for number, at in enumerate(came):
            assert at <= number * 0.004 + 0.021
        assert bob._outbox.writes < 20  # 0.2 s of items


async def test_a_lone_item_on_a_quiet_line_leaves_at_once(autojump_clock):
    class Slow(TestService):
        async def on_call(self, call, method, params):
            for _ in range(5):
                await trio.sleep(0.1)
                await call.send(trio.current_time())

    async with session_pair(service=Slow()) as (alice, _), alice.call("go") as call:
        async for sent in call:
            assert trio.current_time() == sent


@pytest.mark.parametrize("size", [65_000, 65_536, 70_000, 300_000, 3_000_000])
@pytest.mark.parametrize("method", ["echo", "echo_item"])
async def test_large_bodies_pass_in_params_items_and_results(size, method):
    body = bytes(range(256)) * (size // 256)
    async with session_pair() as (alice, bob):
        async with alice.call(method, body) as call:
            items = [item async for item in call]
        assert (items == [body]) if method == "echo_item" else (call.result == body)
        assert alice._calls._room.free == bob._calls._room.free == alice.limits.assembly_bytes


async def test_a_large_body_does_not_hold_up_another_call():
    async with session_pair() as (alice, _), trio.open_nursery() as nursery:
        done = []

        async def large():
            await alice.request("echo", b"x" * 8_000_000)
            done.append("large")

        nursery.start_soon(large)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        for number in range(5):
            await alice.request("echo", number)
            done.append("small")
        assert done == ["small"] * 5


async def test_a_body_over_the_limit_is_refused_before_it_is_sent():
    limits = SessionLimits(max_body_bytes=100_000, assembly_bytes=200_000)
    async with session_pair(limits=limits) as (alice, _):
        with pytest.raises(CallError) as caught:
            await alice.request("echo", b"x" * 100_001)
        assert caught.value.code == "too_large"
        assert await alice.request("echo", 1) == 1


async def test_a_result_over_the_limit_is_an_error_of_that_call_only():
    class Large(TestService):
        async def on_call(self, call, method, params):
            return b"x" * 100_001 if method == "large" else params

    limits = SessionLimits(max_body_bytes=100_000, assembly_bytes=200_000)
    async with session_pair(limits=limits, service=Large()) as (alice, _):
        with pytest.raises(CallError) as caught:
            await alice.request("large")
        assert caught.value.code == "too_large"
        assert await alice.request("echo", 1) == 1


async def test_more_large_bodies_than_there_is_room_for_wait_for_each_other():
    limits = SessionLimits(max_body_bytes=1_000_000, assembly_bytes=1_000_000)

    class Large(TestService):
        async def on_call(self, call, method, params):
            await call.send(b"x" * 900_000)
            return b"y" * 900_000

    async def ask(session):
        async with session.call("large") as call:
            assert [len(item) async for item in call] == [900_000]
            assert len(call.result) == 900_000

    async with session_pair(limits=limits, service=Large()) as (alice, _):
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(ask, alice)
        assert alice._calls._room.free == 1_000_000


async def test_a_reader_who_pauses_stops_the_producer_and_nobody_else():
    service = TestService()
    async with session_pair(service=service) as (alice, _), alice.call("flood") as call:
        await anext(call)
        for _ in range(50):
            assert await alice.request("echo", 1) == 1
        assert service.sent <= 256 + 2
        for _ in range(2000):  # reading again makes it go on
            await anext(call)
        assert service.sent >= 2000


async def test_cancelling_a_call_while_its_params_are_on_their_way_leaves_nothing_behind():
    limits = SessionLimits(max_body_bytes=8_000_000, assembly_bytes=8_000_000)
    async with session_pair(limits=limits) as (alice, bob):
        for _ in range(3):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(alice.request, "echo", b"x" * 7_000_000)
                    while not bob._calls.opening:
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        assert await alice.request("echo", 1) == 1
        assert not bob._calls.opening
        assert bob._calls._room.free == 8_000_000


async def test_a_lookup_is_answered_small_or_large():
    async with session_pair() as (alice, bob):
        assert await alice.lookup([b"cid"], timeout=1) == {"found": [b"cid"]}
        assert await bob.lookup(300_000, timeout=5) == b"b" * 300_000


async def test_a_lookup_has_a_deadline(autojump_clock):
    async with session_pair() as (alice, bob):
        with pytest.raises(trio.TooSlowError):
            await alice.lookup("never", timeout=0.2)
        await alice.ping()
        assert bob._calls._lookups == 0


async def test_one_call_too_many_is_refused_as_busy():
    limits = SessionLimits(max_calls=2)
    async with session_pair(limits=limits) as (alice, _), alice.call("wait") as one, alice.call("wait") as two:
        await anext(one)
        await anext(two)
        with pytest.raises(CallError) as caught:
            await alice.request("echo", 1)
        assert caught.value.code == "busy"
        assert await alice.lookup("still", timeout=1) == {"found": "still"}


async def test_what_msgpack_has_no_form_for_is_an_error_of_that_call():
    class Odd(TestService):
        async def on_call(self, call, method, params):
            return object() if method == "odd" else params

    async with session_pair(service=Odd()) as (alice, _):
        with pytest.raises(CallError, match="internal"):
            await alice.request("odd")
        with pytest.raises(TypeError):
            await alice.request("echo", object())
        assert await alice.request("echo", 1) == 1


async def test_adverts_reach_the_service():
    service = TestService()
    async with session_pair(service=service) as (alice, _):
        alice.send_advert({"models": []})
        await alice.ping()
        assert service.adverts == [{"models": []}]
        with pytest.raises(ValueError, match="65536"):
            alice.send_advert(b"x" * 70_000)


async def test_a_ping_measures_the_way_there_and_back():
    async with session_pair() as (alice, _):
        assert 0 <= await alice.ping() < 1


async def test_calls_after_the_end_say_that_the_session_is_lost():
    async with session_pair() as (alice, bob):
        await bob.goodbye("shutting down")
        with pytest.raises(SessionLost, match="shutting down"):
            await alice.request("echo", 1)
