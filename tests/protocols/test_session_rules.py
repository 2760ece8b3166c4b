"""What a session asks of its peer: order, credit and rates; who breaks a rule is dropped with the reason."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.protocols import framing
from shoal.protocols.framing import (
    ACCEPT,
    ADVERT,
    CALL,
    CANCEL,
    CREDIT,
    DELTA,
    END,
    ERROR,
    FOUND,
    HELLO,
    LOOKUP,
    PART,
    PING,
    PONG,
    frame,
)
from shoal.protocols.session import ProtocolError, SessionLimits

from .fakes_session import ALICE, HELLOS, TestService, dropped, lost, raw_pair, session_pair

BROKEN = {
    "a second hello": [(HELLO, 0, HELLOS[ALICE])],
    "an unknown kind": [(99, 0, None)],
    "an even id from the dialler": [(CALL, 2, ["echo", 1])],
    "an id used twice": [(CALL, 1, ["wait", 1]), (CALL, 1, ["wait", 1])],
    "an id that goes back": [(CALL, 5, ["echo", 1]), (CALL, 3, ["echo", 1])],
    "id nought": [(CALL, 0, ["echo", 1])],
    "a call without a method": [(CALL, 1, "echo")],
    "an answer to nothing": [(END, 2, None)],
    "an item for its own call": [(CALL, 1, ["wait", 1]), (DELTA, 1, "x")],
    "an item for no call": [(DELTA, 4, "x")],
    "an accept for no call": [(ACCEPT, 4, "x")],
    "a found for no look-up": [(FOUND, 4, "x")],
    "an error for no call": [(ERROR, 4, ["a", "b", None])],
    "a cancel for no call": [(CANCEL, 7, None)],
    "credit for no call": [(CREDIT, 7, 5)],
    "text for credit": [(CALL, 1, ["wait", 1]), (CREDIT, 1, "much")],
    "negative credit": [(CALL, 1, ["wait", 1]), (CREDIT, 1, -5)],
    "a part of nothing": [(PART, 1, [DELTA, 100_000, b"x"])],
    "a part for no call": [(PART, 2, [DELTA, 100_000, b"x"])],
    "a malformed part": [(PART, 1, b"x")],
    "parts that change their mind": [(PART, 1, [CALL, 100_000, b"x"]), (PART, 1, [CALL, 100_001, b"x"])],
    "parts that are no msgpack": [(PART, 1, [CALL, 65_537, b"\xc1" * 32_768])] * 2
    + [(PART, 1, [CALL, 65_537, b"\xc1"])],
}


@pytest.mark.parametrize("frames", BROKEN.values(), ids=BROKEN.keys())
async def test_a_peer_that_breaks_the_rules_is_dropped_with_the_reason(frames):
    async with raw_pair() as (peer, bob):
        for entry in frames:
            await peer.say(*entry)
        with trio.fail_after(2):
            assert await dropped(peer)
        assert isinstance(bob.lost, ProtocolError)


async def test_garbage_is_answered_with_goaway_and_the_end():
    async with raw_pair() as (peer, bob):
        await peer.stream.write(b"GET / HTTP/1.1\r\nhost: example.org\r\n\r\n")
        with trio.fail_after(2):
            assert "frame of" in await dropped(peer)
        assert bob.lost is not None


async def test_late_frames_of_a_call_that_is_over_are_dropped():
    async with raw_pair() as (peer, bob):
        await peer.say(CALL, 1, ["echo", 1])
        assert await peer.hear(END) == (END, 1, 1)
        await peer.say(CANCEL, 1)
        await peer.say(CREDIT, 1, 100)
        await peer.say(PART, 1, [CALL, 100_000, b"x"])
        await peer.say(PING, 9)
        assert await peer.hear() == (PONG, 9, None)
        assert bob.lost is None


async def test_late_items_of_a_call_that_was_left_are_dropped():
    async with raw_pair() as (peer, bob):
        async with bob.call("something"):
            _, call_id, _ = await peer.hear(CALL)
        await peer.hear(CANCEL)
        await peer.say(DELTA, call_id, "x")
        await peer.say(END, call_id)
        await peer.say(PING, 9)
        assert await peer.hear() == (PONG, 9, None)


async def test_a_peer_that_overdraws_its_credit_is_dropped():
    async with raw_pair() as (peer, bob), bob.call("give"):
        _, call_id, _ = await peer.hear(CALL)
        await peer.stream.write(frame(DELTA, call_id, b"x" * 1024) * 300)
        assert "credit" in await dropped(peer)
        assert isinstance(bob.lost, ProtocolError)


async def test_a_peer_that_overdraws_its_credit_with_half_open_calls_is_dropped():
    limits = SessionLimits(max_body_bytes=200_000, assembly_bytes=200_000)
    async with raw_pair(limits=limits) as (peer, bob):
        # The second finds no room and is refused; nothing of it is kept.
        await peer.say(PART, 1, [CALL, 150_000, b"x"])
        await peer.say(PART, 3, [CALL, 150_000, b"x"])
        assert (await peer.hear(ERROR))[1:] == (3, ["busy", "too many large bodies on their way; try again", None])
        await peer.say(PART, 3, [CALL, 150_000, b"x"])
        await peer.say(PART, 5, [CALL, 200_001, b"x"])
        assert (await peer.hear(ERROR))[2][0] == "too_large"
        assert bob.lost is None
        assert bob._calls._room.free == 50_000


async def test_a_send_that_was_cancelled_half_way_ends_the_call_with_an_error(autojump_clock):
    class HalfWay(TestService):
        async def on_call(self, call, method, params):
            with trio.move_on_after(0.1):
                await call.send(b"x" * 1_000_000)  # the caller gives no credit for the second quarter
            await call.send("more")

    async with raw_pair(service=HalfWay()) as (peer, _):
        await peer.say(CALL, 1, ["go", None])
        _, call_id, body = await peer.hear(ERROR)
        assert (call_id, body[0]) == (1, "internal")


async def test_a_flood_of_frames_gets_the_peer_dropped(autojump_clock):
    async with raw_pair(limits=SessionLimits(frames_per_s=100, frame_burst=200)) as (peer, bob):
        for _ in range(199):
            await peer.say(PONG, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert bob.lost is None
        await peer.stream.write(frame(PONG, 1) * 5)
        assert "100 frames a second" in await lost(bob)


async def test_a_session_keeps_itself_to_the_rate_that_its_peer_enforces(autojump_clock):
    limits = SessionLimits(frames_per_s=1000, frame_burst=1000)
    async with session_pair(limits=limits) as (alice, _), alice.call("count", 5000) as call:
        start = trio.current_time()
        assert len([item async for item in call]) == 5000
        assert 4 < trio.current_time() - start < 8


async def test_too_many_adverts_get_the_peer_dropped(autojump_clock):
    async with raw_pair() as (peer, bob):
        for number in range(21):
            await peer.say(ADVERT, 0, number)
        assert "adverts" in await lost(bob)


async def test_a_look_up_over_the_limit_is_refused_as_busy():
    async with raw_pair(limits=SessionLimits(max_lookups=1)) as (peer, _):
        await peer.say(LOOKUP, 1, "never")
        await peer.say(LOOKUP, 3, "never")
        assert (await peer.hear(ERROR))[1] == 3
        await peer.say(CALL, 5, ["echo", 1])
        assert await peer.hear(END) == (END, 5, 1)


bodies = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300_000) | st.text(max_size=5) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
likely = st.sampled_from(
    [
        ["echo", 1], ["wait", None], ["count", 3], ["fail", 0], ["crash", 0], ["code", "message", None], 1000,
        [CALL, 70_000, b"x" * 30_000], [DELTA, 70_000, b"x" * 30_000], [END, 90_000, b"x"], [LOOKUP, 70_000, b"x"],
    ]
)  # fmt: skip
any_frames = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 7), likely | bodies), max_size=12)


@given(any_frames)
@settings(max_examples=300, deadline=None)
def test_whatever_a_peer_says_it_breaks_nothing_but_its_own_session(frames):
    async def main() -> None:
        async with raw_pair() as (peer, bob), bob.call("something") as mine:
            await peer.hear(CALL)
            await peer.stream.write(b"".join(frame(*entry) for entry in frames))
            await trio.testing.wait_all_tasks_blocked()
            if bob.lost is None:
                await peer.say(PING, 77)
                while (await peer.hear(PONG))[1] != 77:
                    pass
            else:  # an exception of another type would be a fault of ours
                assert isinstance(bob.lost, ProtocolError) or "the peer left" in str(bob.lost)
                assert mine.done
        assert bob.calls_in_flight == 0
        assert not bob._pings

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("kind", "body", "count", "reason"),
    [
        pytest.param(framing.NOTE, ["x", None], 200, "notes a second", id="a flood of notes"),
        pytest.param(framing.NOTE, "x", 1, "malformed note", id="a malformed note"),
        pytest.param(framing.NOTE, ["x", b"y" * 20_000], 1, "limit", id="a long note"),
        pytest.param(framing.ADVERT, None, 100, "adverts a second", id="a flood of adverts"),
        pytest.param(framing.PING, None, 50_000, "frames a second", id="a flood of frames"),
        pytest.param(framing.NOTE, ["x", [[]] * 10_000], 1, "values", id="a bomb of empty arrays"),
    ],
)
async def test_who_sends_too_much_of_something_is_dropped_with_the_reason(autojump_clock, kind, body, count, reason):
    async with raw_pair() as (peer, bob):
        with pytest.raises((EOFError, trio.BrokenResourceError, trio.ClosedResourceError)):  # noqa: PT012
            for _ in range(0, count, 100):
                await peer.stream.write(framing.frame(kind, 0, body) * min(count, 100))
            while True:
                _, _, said = await peer.hear(framing.GOAWAY)
                assert reason in said
        assert reason in str(bob.lost)


async def test_who_sends_too_many_bytes_is_dropped(autojump_clock):
    limits = SessionLimits(bytes_per_s=1000.0, byte_burst=100_000.0)
    async with raw_pair(limits=limits) as (peer, bob):
        with pytest.raises((EOFError, trio.BrokenResourceError, trio.ClosedResourceError)):  # noqa: PT012
            for _ in range(20):
                await peer.say(framing.PING, 1, b"x" * 10_000)
            while True:
                await peer.hear(framing.GOAWAY)
        assert "bytes a second" in str(bob.lost)


async def test_this_side_keeps_to_the_byte_rate_that_it_asks_of_others(autojump_clock):
    limits = SessionLimits(bytes_per_s=1_000_000.0, byte_burst=500_000.0)
    async with session_pair(limits=limits) as (alice, bob):
        for _ in range(4):
            assert await alice.request("echo", b"x" * 1_000_000) == b"x" * 1_000_000
        assert bob.lost is None
        assert trio.current_time() > 3


async def test_an_array_bomb_in_parts_costs_its_sender_the_session(autojump_clock):
    async with raw_pair() as (peer, bob):
        body = framing.encode_body(["echo", [[]] * 1_000_000])
        with pytest.raises((EOFError, trio.BrokenResourceError, trio.ClosedResourceError)):  # noqa: PT012
            for part in framing.parts(framing.CALL, 1, body):
                await peer.stream.write(part)
                await trio.sleep(0.001)
            while True:
                await peer.hear(framing.GOAWAY)
        assert "values" in str(bob.lost)
