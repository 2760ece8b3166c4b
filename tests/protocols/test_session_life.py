"""How a session begins, notices that the peer is gone, and ends."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from shoal.protocols import framing
from shoal.protocols.framing import (
    CALL,
    DELTA,
    GOAWAY,
    HELLO,
    PING,
    PONG,
)
from shoal.protocols.session import Hello, ProtocolError, Session, SessionLimits, SessionLost

from .fakes_session import ALICE, BOB, HELLOS, RawPeer, TestService, dropped, lost, raw_pair, session_pair, stream_pair


async def test_both_sides_know_each_other_when_they_run():
    async with session_pair() as (alice, bob):
        assert alice.remote_hello == HELLOS[BOB]
        assert bob.remote_hello == HELLOS[ALICE]
        assert alice.usable
        assert bob.usable


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello(swarm="other", peer=ALICE), "wrong swarm"),
        (Hello(swarm="test", peer=BOB), "another peer"),
        (Hello(swarm="test", peer=ALICE, v=2), "version"),
        ({"swarm": "test"}, "malformed hello"),
        ("hi", "malformed hello"),
    ],
    ids=["swarm", "peer", "version", "incomplete", "no map"],
)
async def test_a_hello_that_does_not_fit_is_refused_with_the_reason(hello, reason):
    async with raw_pair(greet=False) as (peer, bob):
        await peer.say(HELLO, 0, hello)
        with trio.fail_after(2):
            assert reason in await dropped(peer)
        assert isinstance(bob.lost, ProtocolError)


async def test_running_a_session_with_another_swarm_raises_here_and_there():
    left, right = stream_pair()
    alice = Session(left, TestService(), local=Hello(swarm="a", peer=ALICE), remote_peer=BOB, initiator=True)
    bob = Session(right, TestService(), local=Hello(swarm="b", peer=BOB), remote_peer=ALICE, initiator=False)
    errors = []

    async def run(session):
        try:
            await session.run()
        except (ProtocolError, SessionLost) as error:
            errors.append(str(error))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, alice)
            nursery.start_soon(run, bob)
    assert len(errors) == 2
    assert all("wrong swarm" in error for error in errors)


async def test_a_peer_that_says_nothing_is_dropped(autojump_clock):
    async with raw_pair(greet=False) as (_peer, bob):
        assert "hello within 10 s" in await lost(bob)


async def test_the_end_of_the_stream_ends_calls_at_once():
    async with raw_pair() as (peer, bob), bob.call("something") as call:
        await peer.hear(CALL)
        await peer.stream.reset()
        with trio.fail_after(0.5), pytest.raises(SessionLost, match="the stream ended"):
            await anext(call)


async def test_items_that_came_before_the_end_are_not_lost():
    async with raw_pair() as (peer, bob), bob.call("something") as call:
        _, call_id, _ = await peer.hear(CALL)
        await peer.say(DELTA, call_id, "one")
        await peer.stream.reset()
        assert "stream ended" in await lost(bob)
        assert await anext(call) == "one"
        with pytest.raises(SessionLost):
            await anext(call)


async def test_a_peer_that_falls_silent_during_a_call_is_lost_after_three_beats(autojump_clock):
    async with raw_pair() as (_peer, bob):
        await trio.sleep(5)
        start = trio.current_time()
        with pytest.raises(SessionLost, match="silent"):
            await bob.request("something")
        assert trio.current_time() - start == pytest.approx(1.5)


async def test_a_peer_that_falls_silent_while_it_waits_for_our_answer_is_lost_and_the_handler_stopped(autojump_clock):
    service = TestService()
    async with raw_pair(service=service) as (peer, _bob):
        await peer.say(CALL, 1, ["wait", None])
        await service.started.wait()
        start = trio.current_time()
        await service.cancelled.wait()
        assert trio.current_time() - start == pytest.approx(1.5)


async def test_who_hears_much_and_says_nothing_gives_a_sign_of_life_unasked(autojump_clock):
    """The other side's pings may wait behind what is still to be read."""
    async with raw_pair() as (peer, bob), bob.call("something"), trio.open_nursery() as nursery:
        _, call_id, _ = await peer.hear(CALL)

        async def talk() -> None:
            while True:
                await peer.say(DELTA, call_id, "word")
                await trio.sleep(0.1)

        start = trio.current_time()
        nursery.start_soon(talk)
        for _ in range(3):
            await peer.hear(PONG)
        assert trio.current_time() - start == pytest.approx(1.5, abs=0.5)
        nursery.cancel_scope.cancel()


async def test_an_idle_peer_that_falls_silent_is_lost_after_three_long_beats(autojump_clock):
    async with raw_pair() as (_, bob):
        start = trio.current_time()
        assert "silent" in await lost(bob)
        assert trio.current_time() - start == pytest.approx(45, abs=0.2)


async def test_two_idle_peers_stay_together_and_say_little(autojump_clock):
    async with session_pair() as (alice, bob):
        await trio.sleep(600)
        assert alice.lost is bob.lost is None
        assert alice._outbox.frames + bob._outbox.frames < 180  # a ping and a pong every 7.5 s at most


async def test_a_long_quiet_call_is_kept_alive(autojump_clock):
    async with session_pair() as (alice, _), alice.call("wait") as call:
        await anext(call)
        await trio.sleep(60)
        assert alice.lost is None


async def test_a_peer_that_takes_no_data_is_lost(autojump_clock):
    limits = SessionLimits(busy_ping_s=1000, idle_ping_s=1000)
    async with raw_pair(limits=limits) as (_, bob):
        bob._stream.write_gate = trio.Event()
        with pytest.raises(SessionLost, match="took no data"):
            await bob.request("something")


async def test_goodbye_lets_calls_in_flight_finish_and_takes_no_new_ones():
    class Slow(TestService):
        go = trio.Event()

        async def on_call(self, call, method, params):
            await call.send("started")
            await self.go.wait()
            return "whole"

    service = Slow()
    service.go = trio.Event()
    async with session_pair(service=service) as (alice, bob), alice.call("slow") as call:
        assert await anext(call) == "started"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bob.goodbye, "maintenance", 10.0)
            with trio.fail_after(1):
                while alice.leaving is None:
                    await trio.lowlevel.checkpoint()
            with pytest.raises(SessionLost, match="maintenance"):
                await alice.request("echo", 1)
            service.go.set()
            assert await call.finished() == "whole"
        assert "maintenance" in str(bob.lost)


async def test_goodbye_waits_no_longer_than_it_was_told(autojump_clock):
    async with session_pair() as (alice, bob), alice.call("wait") as call:
        await anext(call)
        start = trio.current_time()
        await bob.goodbye("maintenance", 2.0)
        assert trio.current_time() - start == pytest.approx(2.0)
        with pytest.raises(SessionLost, match="maintenance"):
            await anext(call)


async def test_the_peer_has_heard_why_before_the_stream_is_reset(autojump_clock):
    async with raw_pair() as (peer, bob), trio.open_nursery() as nursery:
        nursery.start_soon(bob.goodbye, "revoked")
        assert (await peer.hear(GOAWAY))[2] == "revoked"
        with pytest.raises(EOFError):  # its own side is closed; ours is still open
            await peer.hear(PING)
        assert not bob._stream.was_reset
        await peer.stream.close_write()
        await trio.testing.wait_all_tasks_blocked()
        assert bob._stream.was_reset


async def test_a_peer_that_does_not_end_its_side_is_not_waited_for_long(autojump_clock):
    async with raw_pair() as (_, bob):
        start = trio.current_time()
        await bob.goodbye("maintenance")
        assert trio.current_time() - start == pytest.approx(bob.limits.farewell_s)
        assert bob._stream.was_reset


async def test_whoever_was_told_why_says_so_however_the_stream_ends():
    async with raw_pair() as (peer, bob):
        await peer.say(GOAWAY, 0, "revoked")
        await peer.stream.reset()
        assert await lost(bob) == "the peer left: revoked"


async def test_the_work_for_a_peer_that_is_sent_away_stops_before_it_has_left(autojump_clock):
    service = TestService()
    async with raw_pair(service=service) as (peer, bob), trio.open_nursery() as nursery:
        await peer.say(CALL, 1, ["wait", None])
        await service.started.wait()
        start = trio.current_time()
        nursery.start_soon(bob.goodbye, "revoked")
        await service.cancelled.wait()
        assert trio.current_time() == start


async def test_cancelling_run_ends_everything_and_resets_the_stream():
    left, right = stream_pair()
    service = TestService()
    bob = Session(right, service, local=HELLOS[BOB], remote_peer=ALICE, initiator=False)
    peer = RawPeer(left)
    async with trio.open_nursery() as nursery:
        await peer.say(HELLO, 0, HELLOS[ALICE])
        await nursery.start(bob.run)
        await peer.say(CALL, 1, ["wait", None])
        await service.started.wait()
        nursery.cancel_scope.cancel()
    assert service.cancelled.is_set()
    assert right.was_reset
    assert isinstance(bob.lost, SessionLost)


async def test_a_note_arrives_and_nobody_answers_it(autojump_clock):
    service = TestService()
    async with session_pair(service=service) as (alice, bob):
        alice.send_note("load", b"x" * 32)
        alice.send_note("unheard of", {"a": 1})
        await alice.ping()
        assert service.notes == [("load", b"x" * 32), ("unheard of", {"a": 1})]
        with pytest.raises(ValueError, match="limit"):
            alice.send_note("long", b"x" * 20_000)
        assert bob.lost is None


async def test_a_service_can_turn_a_peer_away_at_its_hello(autojump_clock):
    class Picky(TestService):
        def on_hello(self, session, hello):
            assert hello.papers == {"pass": b"none"}
            raise framing.ProtocolError("not one of us")

    async with raw_pair(service=Picky(), greet=False) as (peer, bob):
        await peer.say(0, 0, {"swarm": "test", "peer": ALICE, "agent": "", "v": 1, "papers": {"pass": b"none"}})
        assert (await peer.hear(framing.GOAWAY))[2] == "not one of us"
        with pytest.raises(EOFError):
            await peer.hear()
        assert bob.remote_hello is None
