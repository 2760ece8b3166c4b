"""The host: dialling, listening, its life, and how soon it knows that a peer is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

import psutil
import pytest
import trio
import trio.testing
from shoal.protocols.p2p import remedies
from shoal.protocols.p2p.errors import DialFailed, ListenFailed, NotConnected, ProtocolRefused, StreamLost
from shoal.protocols.p2p.host import Host
from shoal.protocols.p2p.limits import HostLimits
from shoal.protocols.p2p.negotiation import encode_line
from shoal.protocols.p2p.stream import P2pStream
from shoal.protocols.peer_id import Identity, PeerId

from .fakes_p2p import ECHO, LOOPBACK, a_host, a_process, echoes, two_hosts


def a_closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# -- dialling ------------------------------------------------------------------------------------------------------


async def test_a_dead_address_does_not_hide_a_good_one() -> None:
    with socket.socket() as silent:  # takes connections and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        async with two_hosts() as (ours, theirs):
            dead = [f"/ip4/127.0.0.1/tcp/{a_closed_port()}", f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"]
            with trio.fail_after(3):
                await ours.connect(theirs.peer_id, dead + theirs.addresses())
            assert ours.connected() == [theirs.peer_id]
            assert await echoes(ours, theirs.peer_id)


async def test_a_failed_dial_says_why_for_every_address_and_is_not_remembered() -> None:
    async with two_hosts() as (ours, theirs):
        stranger = Identity.generate().peer_id
        bad = {
            f"/ip4/127.0.0.1/tcp/{a_closed_port()}": "refused",
            "/ip4/0.0.0.0/tcp/4001": "wildcard",
            "/ip4/127.0.0.1/udp/4001/quic-v1": "only TCP",
            f"/ip4/127.0.0.1/tcp/4001/p2p/{stranger}": "another peer",
            "nonsense": "not a multiaddr",
        }
        with pytest.raises(DialFailed) as failed:
            await ours.connect(theirs.peer_id, list(bad))
        assert list(failed.value.reasons) == list(bad)
        for address, word in bad.items():
            assert word in failed.value.reasons[address]
        await ours.connect(theirs.peer_id, theirs.addresses())  # the library would refuse for 60 s
        assert await echoes(ours, theirs.peer_id)


async def test_a_dial_without_addresses_fails_with_a_sentence() -> None:
    async with two_hosts() as (ours, theirs):
        with pytest.raises(DialFailed, match="no address of it is known"):
            await ours.connect(theirs.peer_id, [])
        with pytest.raises(DialFailed, match="not a peer id"):
            await ours.connect(PeerId("nonsense"), theirs.addresses())
        with pytest.raises(DialFailed, match="this node itself"):
            await ours.connect(ours.peer_id, ours.addresses())


async def test_whoever_answers_at_an_address_must_be_the_peer_asked_for() -> None:
    async with two_hosts() as (ours, theirs):
        expected = Identity.generate().peer_id
        bare = [address.partition("/p2p/")[0] for address in theirs.addresses()]
        with pytest.raises(DialFailed):
            await ours.connect(expected, bare)
        assert ours.connected() == []


async def test_both_sides_may_dial_at_once() -> None:
    async with two_hosts() as (ours, theirs):
        told: list[tuple[str, str]] = []
        ours.on_connect(lambda who: told.append(("came", who)))
        ours.on_disconnect(lambda who: told.append(("left", who)))
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(ours.connect, theirs.peer_id, theirs.addresses())
                    nursery.start_soon(theirs.connect, ours.peer_id, ours.addresses())
        for _ in range(5):
            assert await echoes(ours, theirs.peer_id)
            assert await echoes(theirs, ours.peer_id)
        await ours.disconnect(theirs.peer_id)
        assert told == [("came", theirs.peer_id), ("left", theirs.peer_id)]


async def test_plaintext_and_secio_are_refused() -> None:
    async with two_hosts() as (ours, _):
        answers = []
        for protocol in ("/plaintext/2.0.0", "/secio/1.0.0", "/tls/1.0.0", "/noise"):
            port = int(ours.addresses()[0].split("/")[4])
            async with await trio.open_tcp_stream("127.0.0.1", port) as raw:
                await raw.send_all(encode_line("/multistream/1.0.0") + encode_line(protocol))
                expected, got = encode_line("/multistream/1.0.0"), b""
                with trio.fail_after(3):
                    while len(got) <= len(expected) or not got.endswith(b"\n"):
                        got += await raw.receive_some()
                answers.append(got.removeprefix(expected)[1:-1])
        assert answers == [b"na", b"na", b"na", b"/noise"]


async def test_another_version_of_libp2p_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remedies, "version", lambda name: "0.9.0")
    with pytest.raises(remedies.UnsupportedLibp2pError, match=r"needs libp2p 0\.8\.1 but 0\.9\.0.*pip install"):
        async with a_host().running():
            pass


# -- listening -----------------------------------------------------------------------------------------------------


async def test_a_wildcard_listener_is_advertised_by_its_concrete_addresses() -> None:
    machine = {
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET
    }
    async with a_host("/ip4/0.0.0.0/tcp/0").running() as host, a_host().running() as other:
        found = host.addresses()
        assert {address.split("/")[2] for address in found} <= machine
        assert "127.0.0.1" in found[-1]  # of use on this machine only, so last
        assert all(address.endswith("/p2p/" + host.peer_id) for address in found)
        await other.connect(host.peer_id, found)
        assert await echoes(other, host.peer_id)


async def test_a_host_opens_another_listener_while_it_runs() -> None:
    silent = Host(Identity.generate())
    async with silent.running(), a_host().running() as other:
        assert silent.addresses() == []
        (added,) = await silent.listen(LOOPBACK)
        assert silent.addresses() == [added]
        await other.connect(silent.peer_id, [added])
        assert silent.connected() == [other.peer_id]


async def test_a_port_in_use_is_refused_even_by_one_of_our_own_kind() -> None:
    async with a_host().running() as first:
        taken = first.addresses()[0].partition("/p2p/")[0]
        with pytest.raises(ListenFailed, match="in use"):
            async with a_host(taken).running():
                pass


async def test_an_ipv6_peer_is_known_by_its_address() -> None:
    async with a_host("/ip6/::1/tcp/0").running() as host, a_host().running() as other:
        await other.connect(host.peer_id, host.addresses())
        (connection,) = host._running().get_connections()
        assert connection.muxed_conn.get_remote_address()[0] == "::1"


# -- streams -------------------------------------------------------------------------------------------------------


async def test_a_stream_needs_a_connection_and_a_protocol_that_the_peer_speaks() -> None:
    async with two_hosts() as (ours, theirs):
        with pytest.raises(NotConnected):
            await ours.open_stream(theirs.peer_id, ECHO)
        await ours.connect(theirs.peer_id, theirs.addresses())
        with pytest.raises(ProtocolRefused, match="does not speak /nobody/1"):
            await ours.open_stream(theirs.peer_id, "/nobody/1")
        assert await echoes(ours, theirs.peer_id)


async def test_a_handler_that_raises_ends_its_own_stream_only() -> None:
    async with two_hosts() as (ours, theirs):

        async def broken(stream: P2pStream) -> None:
            raise RuntimeError("a bug")

        theirs.handle("/test/broken/1", broken)
        await ours.connect(theirs.peer_id, theirs.addresses())
        steady = await ours.open_stream(theirs.peer_id, ECHO)
        for _ in range(3):
            stream = await ours.open_stream(theirs.peer_id, "/test/broken/1")
            with pytest.raises(StreamLost), trio.fail_after(2):
                await stream.read()
            await stream.close()
        await steady.write(b"untouched")
        assert await steady.read() == b"untouched"
        await steady.close()


async def test_a_cancelled_open_leaves_no_stream_and_no_slot_taken() -> None:
    async with two_hosts() as (ours, theirs):
        await ours.connect(theirs.peer_id, theirs.addresses())
        (connection,) = ours._running().get_connections()
        for i in range(300):
            with trio.move_on_after(i % 30 / 10000):
                stream = await ours.open_stream(theirs.peer_id, ECHO)
                await stream.close()
        assert await echoes(ours, theirs.peer_id)
        assert ours._running().get_connections() == [connection]
        assert connection.muxed_conn.stream_backlog_semaphore.value == 256


async def test_a_peer_that_never_negotiates_is_given_up() -> None:
    async with two_hosts() as (ours, theirs):

        async def mute(net_stream: object) -> None:
            await trio.sleep_forever()

        theirs._running().set_stream_handler(mute)
        await ours.connect(theirs.peer_id, theirs.addresses())
        with pytest.raises(StreamLost, match=r"did not answer within 0\.2 s"), trio.fail_after(2):
            await ours.open_stream(theirs.peer_id, ECHO, deadline_s=0.2)


# -- the end of a peer ---------------------------------------------------------------------------------------------


async def test_a_killed_peer_is_noticed_at_once() -> None:
    async with a_process() as (peer, addresses, process), a_host().running() as ours:
        gone = trio.Event()
        ours.on_disconnect(lambda who: gone.set() if who == peer else None)
        await ours.connect(peer, addresses)
        stream = await ours.open_stream(peer, ECHO)
        await stream.write(b"alive")
        assert await stream.read() == b"alive"
        process.send_signal(signal.SIGKILL)
        killed = trio.current_time()
        with trio.fail_after(0.5):
            with pytest.raises(StreamLost):
                await stream.read()
            await gone.wait()
        assert ours.connected() == []
        with pytest.raises(NotConnected):
            await ours.open_stream(peer, ECHO)
        assert trio.current_time() - killed < 0.5


async def test_a_silent_peer_is_found_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remedies, "KEEPALIVE_INTERVAL_S", 0.1)
    monkeypatch.setattr(remedies, "KEEPALIVE_LIMIT_S", 0.4)
    async with a_process() as (peer, addresses, process), a_host().running() as ours:
        gone = trio.Event()
        ours.on_disconnect(lambda who: gone.set())
        await ours.connect(peer, addresses)
        assert await echoes(ours, peer)
        process.send_signal(signal.SIGSTOP)
        with trio.fail_after(3):
            await gone.wait()
        assert ours.connected() == []


async def test_a_peer_that_takes_no_data_does_not_hold_up_leaving() -> None:
    async with a_process() as (peer, addresses, process):
        async with a_host().running() as ours, trio.open_nursery() as nursery:
            await ours.connect(peer, addresses)
            streams = [await ours.open_stream(peer, "/test/sink/1") for _ in range(40)]
            process.send_signal(signal.SIGSTOP)

            async def flood(stream: P2pStream) -> None:
                with contextlib.suppress(StreamLost):
                    while True:
                        await stream.write(bytes(65536))

            for stream in streams:  # 40 windows of 256 KiB are more than the socket buffers hold
                nursery.start_soon(flood, stream)
            with trio.move_on_after(1.0):
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()
            began = trio.current_time()
            await ours.disconnect(peer)
            assert trio.current_time() - began < 2
            began = trio.current_time()
        assert trio.current_time() - began < 3


# -- the life of a host --------------------------------------------------------------------------------------------


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def quiet_tasks() -> int:
    await trio.testing.wait_all_tasks_blocked(0.3)
    return trio.lowlevel.current_statistics().tasks_living


async def test_restarts_in_one_process_leak_nothing() -> None:
    async def once() -> None:
        async with two_hosts() as (ours, theirs):
            await ours.connect(theirs.peer_id, theirs.addresses())
            assert await echoes(ours, theirs.peer_id)
            await ours.open_stream(theirs.peer_id, ECHO)  # left open on purpose

    await once()  # whatever is made once for the process
    files, tasks = open_files(), await quiet_tasks()
    for _ in range(6):
        with trio.fail_after(6):
            await once()
    assert await quiet_tasks() <= tasks
    assert open_files() <= files


async def test_a_peer_that_comes_and_goes_leaks_nothing_here() -> None:
    async with a_host().running() as steady:

        async def visit() -> None:
            async with a_host().running() as guest:
                await guest.connect(steady.peer_id, steady.addresses())
                assert await echoes(guest, steady.peer_id)

        await visit()
        files, tasks = open_files(), await quiet_tasks()
        for _ in range(8):
            await visit()
        assert await quiet_tasks() <= tasks
        assert open_files() <= files
        assert steady.connected() == []
        assert not steady._running()._inbound


async def test_an_error_of_the_callers_block_leaves_as_it_came() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with a_host().running():
            raise KeyError("mine")


async def test_a_host_can_be_cancelled_in_the_middle_of_everything() -> None:
    async with a_host().running() as theirs:
        with trio.fail_after(4):
            with trio.move_on_after(0.2) as scope:
                async with a_host().running() as ours, trio.open_nursery() as nursery:
                    await ours.connect(theirs.peer_id, theirs.addresses())

                    async def chat() -> None:
                        while True:
                            assert await echoes(ours, theirs.peer_id)

                    for _ in range(8):
                        nursery.start_soon(chat)
            assert scope.cancelled_caught


# -- private swarms ------------------------------------------------------------------------------------------------


async def test_a_private_swarm_admits_only_those_with_its_key() -> None:
    key = bytes(range(32))
    member, other = Host(Identity.generate(), [LOOPBACK], key), Host(Identity.generate(), [LOOPBACK], key)
    limits = HostLimits(dial_s=1.5)
    outsiders = [Host(Identity.generate(), limits=limits), Host(Identity.generate(), psk=bytes(32), limits=limits)]
    async with member.running(), other.running():
        await member.connect(other.peer_id, other.addresses())
        assert member.connected() == [other.peer_id]
        for outsider in outsiders:
            async with outsider.running():
                with pytest.raises(DialFailed):
                    await outsider.connect(member.peer_id, member.addresses())
                assert member.connected() == [other.peer_id]
    with pytest.raises(ValueError, match="32 bytes"):
        Host(Identity.generate(), psk=b"short")
