"""Circuits through a relay: three hosts in one process, or four where one of them does not play fair."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
from libp2p.peer.id import ID
from shoal.protocols.p2p.addresses import parse_dialable
from shoal.protocols.p2p.circuit import binary_of, receive_hop, receive_stop, send
from shoal.protocols.p2p.circuit_message import HOP, STOP, Hop, HopKind, Status, Stop, StopKind
from shoal.protocols.p2p.errors import DialFailed, StreamLost
from shoal.protocols.p2p.host import Host
from shoal.protocols.p2p.relay import Relay, RelayLimits
from shoal.protocols.p2p.reservations import Reservations
from shoal.protocols.p2p.stream import P2pStream
from shoal.protocols.peer_id import Identity, PeerId

from tests.protocols.fakes_p2p import ECHO, LOOPBACK, echo, echoes

KEY = bytes(range(32))


def a_host(*, listens: bool = True, psk: bytes | None = None) -> Host:
    host = Host(Identity.generate(), [LOOPBACK] if listens else [], psk)
    host.handle(ECHO, echo)
    return host


async def ask(host: Host, relay: PeerId, message: Hop) -> Hop:
    """What a relay answers."""
    stream = await host.open_stream(relay, HOP)
    try:
        with trio.fail_after(5):
            await send(stream, message)
            return await receive_hop(stream)
    finally:
        await stream.reset()


async def flood(host: Host, relay: PeerId, answers: list[int | None]) -> None:
    for _ in range(100):
        answers.append((await ask(host, relay, Hop(HopKind.RESERVE))).status)


async def send_for_ever(host: Host, peer: PeerId) -> None:
    stream = await host.open_stream(peer, ECHO)
    while True:
        await stream.write(bytes(20_000))
        await stream.read()


async def reserve(host: Host, relay: Host) -> None:
    await host.connect(relay.peer_id, relay.addresses())
    host.circuits.answer_for(relay.peer_id)
    assert (await ask(host, relay.peer_id, Hop(HopKind.RESERVE))).status == Status.OK


def allowing(allowed: list[bool]) -> Callable[[PeerId], Awaitable[bool]]:
    async def may_reserve(peer: PeerId) -> bool:
        return allowed[0]

    return may_reserve


def through(relay: Host, peer: Host) -> str:
    return f"{relay.addresses()[0]}/p2p-circuit/p2p/{peer.peer_id}"


@contextlib.asynccontextmanager
async def three(
    limits: RelayLimits | None = None, psk: bytes | None = None
) -> AsyncIterator[tuple[Host, Relay, Host, Host]]:
    """(the relay's host, the relay, a caller, a node that listens nowhere and has reserved)."""
    middle, near, far = a_host(psk=psk), a_host(listens=False, psk=psk), a_host(listens=False, psk=psk)
    relay = Relay(middle, limits)
    async with middle.running(), near.running(), far.running():
        await reserve(far, middle)
        yield middle, relay, near, far


@pytest.mark.parametrize("psk", [None, KEY], ids=["open", "private"])
async def test_two_nodes_that_listen_nowhere_talk_through_a_relay(psk: bytes | None) -> None:
    async with three(psk=psk) as (middle, relay, near, far):
        await near.connect(far.peer_id, [through(middle, far)])
        assert await echoes(near, far.peer_id)
        assert await echoes(far, near.peer_id)
        assert (near.via(far.peer_id), far.via(near.peer_id)) == ("relayed", "relayed")
        assert near.via(middle.peer_id) == "direct"
        assert relay.stats()["circuits"] == 1
        assert near.relay_of(far.peer_id) == far.relay_of(near.peer_id) == middle.peer_id


async def test_a_direct_address_is_preferred_and_the_relay_not_asked() -> None:
    async with three() as (middle, relay, near, far):
        await far.listen(LOOPBACK)
        await near.connect(far.peer_id, [through(middle, far), *far.addresses()])
        assert near.via(far.peer_id) == "direct"
        assert relay.stats()["circuits"] == 0


async def test_a_direct_connection_that_comes_later_is_the_one_that_new_streams_take() -> None:
    async with three() as (middle, _relay, near, far):
        await near.connect(far.peer_id, [through(middle, far)])
        await near.listen(LOOPBACK)
        told = trio.Event()
        far.on_connection(lambda peer, connection: told.set())
        await far.connect(near.peer_id, near.addresses())  # there is a connection already, so nothing happens
        assert far.via(near.peer_id) == "relayed"
        await far.network.dial_one(parse_dialable(near.addresses()[0], near.peer_id), ID.from_base58(near.peer_id))
        await told.wait()
        assert far.via(near.peer_id) == "direct"
        stream = await far.open_stream(near.peer_id, ECHO)
        assert not stream.relayed
        await stream.close()
        await far.disconnect_relayed(near.peer_id)
        assert await echoes(far, near.peer_id)


async def test_a_node_that_has_not_reserved_is_not_found() -> None:
    async with three() as (middle, relay, near, _far):
        stranger = PeerId(Identity.generate().peer_id)
        with pytest.raises(DialFailed, match="not behind this relay"):
            await near.connect(stranger, [f"{middle.addresses()[0]}/p2p-circuit/p2p/{stranger}"])
        assert relay.refused == {"no_reservation": 1}
        with trio.fail_after(4):
            while near.is_connected(middle.peer_id):  # the connection made for this dial is of no use
                await trio.sleep(0.01)


async def test_nobody_reserves_in_another_name() -> None:
    async with three() as (middle, relay, near, far):
        await near.connect(middle.peer_id, middle.addresses())
        victim = Identity.generate().peer_id
        answer = await ask(near, middle.peer_id, Hop(HopKind.RESERVE, peer=binary_of(victim)))
        assert answer.status == Status.PERMISSION_DENIED
        assert relay.reserved() == [far.peer_id]
        own = await ask(near, middle.peer_id, Hop(HopKind.RESERVE, peer=binary_of(near.peer_id)))
        assert own.status == Status.OK


async def test_only_whom_the_owner_allows_may_reserve() -> None:
    middle, near = a_host(), a_host(listens=False)
    relay = Relay(middle, may_reserve=allowing([False]))
    async with middle.running(), near.running():
        await near.connect(middle.peer_id, middle.addresses())
        assert (await ask(near, middle.peer_id, Hop(HopKind.RESERVE))).status == Status.RESERVATION_REFUSED
        assert relay.stats()["refused"] == {"reservation_refused": 1}


async def test_a_reservation_ends_with_its_connection_and_frees_its_place() -> None:
    async with three(RelayLimits(reservations=1)) as (middle, relay, near, far):
        await near.connect(middle.peer_id, middle.addresses())
        assert (await ask(near, middle.peer_id, Hop(HopKind.RESERVE))).status == Status.RESERVATION_REFUSED
        await far.disconnect(middle.peer_id)
        with trio.fail_after(2):
            while relay.reserved():
                await trio.sleep(0.01)
        assert (await ask(near, middle.peer_id, Hop(HopKind.RESERVE))).status == Status.OK


async def test_an_expired_reservation_counts_no_more_but_its_circuits_go_on() -> None:
    now = [1000.0]
    middle, near, far = a_host(), a_host(listens=False), a_host(listens=False)
    Relay(middle, RelayLimits(reservation_s=60), clock=lambda: now[0])
    async with middle.running(), near.running(), far.running():
        await reserve(far, middle)
        await near.connect(far.peer_id, [through(middle, far)])
        now[0] += 61
        assert await echoes(near, far.peer_id)
        await near.disconnect(far.peer_id)
        with pytest.raises(DialFailed, match="not behind this relay"):
            await near.connect(far.peer_id, [through(middle, far)])


async def test_a_circuit_ends_when_its_bytes_are_spent_and_the_next_has_its_own() -> None:
    async with three(RelayLimits(circuit_bytes=200_000)) as (middle, relay, near, far):
        for _ in range(2):
            await near.connect(far.peer_id, [through(middle, far)])
            with pytest.raises(StreamLost), trio.fail_after(10):
                await send_for_ever(near, far.peer_id)
            with trio.fail_after(2):
                while near.is_connected(far.peer_id) or far.is_connected(near.peer_id) or relay.stats()["circuits"]:
                    await trio.sleep(0.01)
        assert relay.ended["bytes"] == 2


async def test_an_idle_circuit_ends_when_its_time_is_over() -> None:
    async with three(RelayLimits(duration_s=0.3)) as (middle, relay, near, far):
        await near.connect(far.peer_id, [through(middle, far)])
        with trio.fail_after(5):
            while near.is_connected(far.peer_id) or far.is_connected(near.peer_id):
                await trio.sleep(0.01)
        assert relay.ended["duration"] == 1


async def test_all_circuits_together_are_kept_to_the_rate() -> None:
    async with three(RelayLimits(bytes_per_s=200_000)) as (middle, relay, near, far):
        await near.connect(far.peer_id, [through(middle, far)])
        stream = await near.open_stream(far.peer_id, ECHO)
        began = trio.current_time()
        got = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, bytes(250_000))
            while got < 250_000:
                got += len(await stream.read())
        assert trio.current_time() - began > 1.0  # half a megabyte both ways, less a second's worth of burst
        assert relay.carried > 500_000


async def test_a_flood_of_reservations_costs_the_flooder_its_connection_and_nobody_else_anything() -> None:
    async with three(RelayLimits(requests_per_minute=20)) as (middle, relay, near, far):
        peer = a_host(listens=False)
        async with peer.running():
            await peer.connect(far.peer_id, [through(middle, far)])
            await near.connect(middle.peer_id, middle.addresses())
            answers: list[int | None] = []
            with pytest.raises(StreamLost):
                await flood(near, middle.peer_id, answers)
            assert answers.count(Status.OK) == 20
            assert answers.count(Status.RESOURCE_LIMIT_EXCEEDED) >= 15
            assert relay.dropped == 1
            with trio.fail_after(2):
                while middle.is_connected(near.peer_id):
                    await trio.sleep(0.01)
            assert await echoes(peer, far.peer_id)


async def test_circuits_are_bounded_for_a_caller_and_for_a_node_that_is_called() -> None:
    async with (
        three(RelayLimits(circuits_per_peer=2)) as (middle, relay, _near, far),
        contextlib.AsyncExitStack() as on,
    ):
        callers = [a_host(listens=False) for _ in range(3)]
        for caller in callers:
            await on.enter_async_context(caller.running())
        for caller in callers[:2]:
            await caller.connect(far.peer_id, [through(middle, far)])
        with pytest.raises(DialFailed, match="one of its limits"):
            await callers[2].connect(far.peer_id, [through(middle, far)])
        assert relay.refused == {"resource_limit_exceeded": 1}
        assert await echoes(callers[0], far.peer_id)


async def test_what_is_no_message_is_answered_with_its_status_and_harms_nothing() -> None:
    async with three() as (middle, _relay, near, far):
        await near.connect(middle.peer_id, middle.addresses())
        for sent in (b"\x05hello", b"\x00", b"\xff\xff\xff\xff\x0f"):
            stream = await near.open_stream(middle.peer_id, HOP)
            await stream.write(sent)
            with trio.fail_after(5):
                answer = await receive_hop(stream)
            assert answer.status in (Status.MALFORMED_MESSAGE, Status.OK)  # nothing at all is a RESERVE
            await stream.reset()
        answer = await ask(near, middle.peer_id, Hop(HopKind.CONNECT))
        assert answer.status == Status.MALFORMED_MESSAGE
        await near.connect(far.peer_id, [through(middle, far)])
        assert await echoes(near, far.peer_id)


async def test_there_are_no_circuits_over_circuits() -> None:
    async with three() as (middle, _relay, near, far):
        await near.connect(far.peer_id, [through(middle, far)])
        Relay(far)
        stream = await near.open_stream(far.peer_id, HOP)
        await send(stream, Hop(HopKind.RESERVE))
        assert (await receive_hop(stream)).status == Status.PERMISSION_DENIED
        await stream.reset()


class LyingRelay:
    """Says yes to everything and connects callers to whom it likes."""

    def __init__(self, host: Host, victim: PeerId) -> None:
        self._host, self._victim = host, victim
        host.handle(HOP, self._serve)

    async def _serve(self, stream: P2pStream) -> None:
        asked = await receive_hop(stream)
        if asked.kind is HopKind.RESERVE:
            await send(stream, Hop(HopKind.STATUS, status=Status.OK, expires=2**40))
            return
        far = await self._host.open_stream(self._victim, STOP)
        await send(far, Stop(StopKind.CONNECT, peer=binary_of(stream.remote)))
        await receive_stop(far)
        await send(stream, Hop(HopKind.STATUS, status=Status.OK))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_copy, far, stream)
            await _copy(stream, far)


async def _copy(source: P2pStream, sink: P2pStream) -> None:
    with contextlib.suppress(StreamLost):
        while data := await source.read():
            await sink.write(data)
        await sink.close_write()


async def test_a_relay_that_leads_to_another_node_is_found_out_and_avoided() -> None:
    middle, near, wrong = a_host(), a_host(listens=False), a_host(listens=False)
    async with middle.running(), near.running(), wrong.running():
        LyingRelay(middle, wrong.peer_id)
        await reserve(wrong, middle)
        wanted = Identity.generate().peer_id
        address = f"{middle.addresses()[0]}/p2p-circuit/p2p/{wanted}"
        with pytest.raises(DialFailed, match="has led to another node"):
            await near.connect(wanted, [address])
        assert near.circuits.lies == {middle.peer_id: 1}
        assert set(near.connected()) <= {middle.peer_id}
        assert set(wrong.connected()) == {middle.peer_id}
        with pytest.raises(DialFailed, match="not asked for ten minutes"):
            await near.connect(wanted, [address])
        await near.connect(wrong.peer_id, [through(middle, wrong)])  # about this one it tells the truth
        assert await echoes(near, wrong.peer_id)


async def test_a_relay_that_lies_about_who_calls_is_found_out() -> None:
    middle, near, far = a_host(), a_host(listens=False), a_host(listens=False)
    async with middle.running(), near.running(), far.running():
        await reserve_with_anybody(far, middle)
        await near.connect(middle.peer_id, middle.addresses())
        pretended = Identity.generate().peer_id

        async def serve(stream: P2pStream) -> None:
            await receive_hop(stream)
            onward = await middle.open_stream(far.peer_id, STOP)
            await send(onward, Stop(StopKind.CONNECT, peer=binary_of(pretended)))
            await receive_stop(onward)
            await send(stream, Hop(HopKind.STATUS, status=Status.OK))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_copy, onward, stream)
                await _copy(stream, onward)

        middle.handle(HOP, serve)
        with pytest.raises(DialFailed):
            await near.connect(far.peer_id, [through(middle, far)])
        assert far.circuits.lies == {middle.peer_id: 1}
        assert set(far.connected()) == {middle.peer_id}


async def reserve_with_anybody(host: Host, relay: Host) -> None:
    await host.connect(relay.peer_id, relay.addresses())
    host.circuits.answer_for(relay.peer_id)


async def test_a_call_from_a_relay_that_was_not_asked_to_relay_is_refused() -> None:
    middle, far = a_host(), a_host(listens=False)
    async with middle.running(), far.running():
        await far.connect(middle.peer_id, middle.addresses())
        stream = await middle.open_stream(far.peer_id, STOP)
        await send(stream, Stop(StopKind.CONNECT, peer=binary_of(Identity.generate().peer_id)))
        assert (await receive_stop(stream)).status == Status.PERMISSION_DENIED
        await stream.reset()


async def test_a_barred_peer_does_not_come_in_through_a_relay() -> None:
    async with three() as (middle, _relay, near, far):
        far.bar(near.peer_id)
        with pytest.raises(DialFailed, match="does not allow it"):
            await near.connect(far.peer_id, [through(middle, far)])
        assert not far.is_connected(near.peer_id)


async def test_a_relay_that_dies_is_noticed_at_once_by_both_ends() -> None:
    near, far, middle = a_host(listens=False), a_host(listens=False), a_host()
    Relay(middle)
    async with near.running(), far.running():
        async with middle.running():
            await reserve(far, middle)
            await near.connect(far.peer_id, [through(middle, far)])
        with trio.fail_after(2):
            while near.is_connected(far.peer_id) or far.is_connected(near.peer_id):
                await trio.sleep(0.01)


@contextlib.asynccontextmanager
async def keeping(host: Host, relay: Host) -> AsyncIterator[Reservations]:
    """`host` wants a place behind `relay`."""
    reservations = Reservations(host, changed=lambda: None)
    async with trio.open_nursery() as nursery:
        await nursery.start(reservations.run)
        reservations.want([relay.peer_id])
        yield reservations
        nursery.cancel_scope.cancel()


async def until_held(reservations: Reservations, *, held: bool = True) -> None:
    with trio.fail_after(3):
        while bool(reservations.held) != held:
            await trio.sleep(0.005)


async def test_a_reservation_is_made_when_the_relay_is_there_and_told_as_addresses() -> None:
    middle, near, far = a_host(), a_host(listens=False), a_host(listens=False)
    Relay(middle)
    async with middle.running(), near.running(), far.running(), keeping(far, middle) as reservations:
        assert reservations.addresses() == []
        await far.connect(middle.peer_id, middle.addresses())
        await until_held(reservations)
        assert reservations.addresses() == [through(middle, far)]
        await near.connect(far.peer_id, reservations.addresses())
        assert await echoes(near, far.peer_id)


async def test_a_reservation_goes_with_the_connection_and_comes_back_with_it() -> None:
    middle, far = a_host(), a_host(listens=False)
    relay = Relay(middle)
    async with middle.running(), far.running(), keeping(far, middle) as reservations:
        for _ in range(2):
            await far.connect(middle.peer_id, middle.addresses())
            await until_held(reservations)
            await middle.disconnect(far.peer_id)
            await until_held(reservations, held=False)
        assert relay.refused == {}


async def test_a_short_reservation_is_renewed_without_a_busy_loop() -> None:
    middle, far = a_host(), a_host(listens=False)
    relay = Relay(middle, RelayLimits(reservation_s=1))
    async with middle.running(), far.running(), keeping(far, middle) as reservations:
        await far.connect(middle.peer_id, middle.addresses())
        await until_held(reservations)
        first = reservations.held[middle.peer_id].expires
        with trio.fail_after(3):
            while reservations.held[middle.peer_id].expires == first:
                await trio.sleep(0.05)
        assert relay.reserved() == [far.peer_id]
        assert relay.refused == {}


async def test_a_refused_reservation_says_why_and_what_is_not_wanted_any_more_is_let_go() -> None:
    middle, far = a_host(), a_host(listens=False)
    allowed = [False]
    Relay(middle, may_reserve=allowing(allowed))
    async with middle.running(), far.running(), keeping(far, middle) as reservations:
        await far.connect(middle.peer_id, middle.addresses())
        with trio.fail_after(3):
            while not reservations.problems:
                await trio.sleep(0.005)
        assert reservations.problems == {middle.peer_id: "the relay takes no more reservations"}
        allowed[0] = True
        await until_held(reservations)
        assert reservations.problems == {}
        reservations.want([])
        await until_held(reservations, held=False)


async def slow_line(to_port: int, delay_s: float, task_status: trio.TaskStatus[int]) -> None:
    """A port behind which another one is, after a while."""

    async def carry(inbound: trio.SocketStream) -> None:
        await trio.sleep(delay_s)
        outbound = await trio.open_tcp_stream("127.0.0.1", to_port)
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with inbound, outbound, trio.open_nursery() as nursery:
                nursery.start_soon(pass_on, inbound, outbound)
                await pass_on(outbound, inbound)
                nursery.cancel_scope.cancel()

    async def pass_on(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        async for data in source:
            await sink.send_all(data)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(carry, listeners)


async def test_a_slow_direct_address_takes_over_from_the_relay_that_was_faster() -> None:
    async with three() as (middle, _relay, near, far), trio.open_nursery() as nursery:
        await far.listen(LOOPBACK)
        port = int(far.addresses()[0].split("/")[4])
        slow = await nursery.start(slow_line, port, 0.5)
        upgraded = trio.Event()
        near.on_upgrade(lambda peer: upgraded.set())
        began = trio.current_time()
        await near.connect(far.peer_id, [f"/ip4/127.0.0.1/tcp/{slow}", through(middle, far)])
        assert near.via(far.peer_id) == "relayed"
        assert trio.current_time() - began < 0.45
        with trio.fail_after(3):
            await upgraded.wait()
        assert near.via(far.peer_id) == "direct"
        assert await echoes(near, far.peer_id)
        nursery.cancel_scope.cancel()


async def test_a_silent_relay_does_not_keep_another_from_being_tried() -> None:
    async with three() as (middle, _relay, near, far):
        dead = Identity.generate().peer_id
        with trio.socket.socket() as deaf:  # takes connections and says nothing
            await deaf.bind(("127.0.0.1", 0))
            deaf.listen()
            silent = f"/ip4/127.0.0.1/tcp/{deaf.getsockname()[1]}/p2p/{dead}/p2p-circuit/p2p/{far.peer_id}"
            began = trio.current_time()
            await near.connect(far.peer_id, [silent, through(middle, far)])
            assert near.relay_of(far.peer_id) == middle.peer_id
            assert trio.current_time() - began < 1.5
