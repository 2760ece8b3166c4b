"""Which addresses a node tells whom: nobody beyond this machine hears of loopback, nobody at all of link-local."""

from __future__ import annotations

import socket

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.identity.identify.pb.identify_pb2 import Identify
from multiaddr import Multiaddr
from shoal.protocols.p2p import identify, sockets, telling
from shoal.protocols.p2p.host import Host
from shoal.protocols.p2p.reachability import scope_of
from shoal.protocols.peer_id import Identity

HERE = ("127.0.0.1", 4642)
HERE6 = ("::1", 4642)
INNER = ("192.168.7.2", 4642)
INNER6 = ("fd00::7", 4642)
OUTER = ("11.22.33.1", 4642)  # of the NAT, or of the machine itself: `machine` says which
OUTER6 = ("2a01:4f8::7", 4642)
LINK = ("fe80::1", 4642)
LINK4 = ("169.254.3.4", 4642)
ALL = [HERE, HERE6, INNER, INNER6, OUTER, OUTER6, LINK, LINK4]
BEHIND_NAT = [INNER[0], INNER6[0], HERE[0], HERE6[0]]


def test_behind_a_nat_everybody_is_told_the_inner_addresses_too():
    assert telling.for_everyone([HERE, INNER, OUTER], BEHIND_NAT) == [INNER, OUTER]


def test_a_machine_with_an_address_of_the_internet_keeps_its_private_ones_for_who_is_near():
    machine = [OUTER[0], *BEHIND_NAT]
    assert telling.for_everyone([HERE, INNER, OUTER], machine) == [OUTER]
    assert telling.for_peer([HERE, INNER, OUTER], machine, "8.8.8.8") == [OUTER]
    assert telling.for_peer([HERE, INNER, OUTER], machine, "192.168.7.9") == [INNER, OUTER]


def test_ipv6_of_the_internet_does_not_hide_an_ipv4_address_behind_a_nat():
    machine = [INNER[0], INNER6[0], OUTER6[0], HERE[0]]
    assert telling.for_everyone([HERE, INNER, INNER6, OUTER6], machine) == [INNER, OUTER6]


def test_loopback_is_passed_on_only_where_there_is_nothing_else():
    assert telling.for_everyone([HERE], BEHIND_NAT) == [HERE]
    assert telling.for_everyone([HERE, OUTER6], BEHIND_NAT) == [OUTER6]


@pytest.mark.parametrize("remote", ["127.0.0.1", "::1", INNER[0]], ids=["loopback", "loopback of IPv6", "own address"])
def test_who_is_on_this_machine_is_told_everything_that_can_be_dialled(remote):
    assert telling.for_peer(ALL, BEHIND_NAT, remote) == ALL[:-2]


@given(
    st.lists(st.sampled_from(ALL), unique=True),
    st.lists(st.sampled_from([pair[0] for pair in ALL]), unique=True),
    st.sampled_from([None, "8.8.8.8", "192.168.7.9", "10.1.2.3", "2a01::1", "fe80::9", "fd00::9"]),
)
def test_nobody_beyond_this_machine_hears_of_loopback_and_nobody_of_link_local(pairs, machine, remote):
    told = telling.for_peer(pairs, machine, remote)
    assert not any(scope_of(ip) == "none" for ip, _ in (*told, *telling.for_everyone(pairs, machine)))
    if not telling.is_here(remote, machine):
        assert not any(scope_of(ip) == "machine" for ip, _ in told)


async def asked(host: Host, other: Host) -> Identify:
    """What `other` answers to identify."""
    stream = await host.open_stream(other.peer_id, identify.PROTOCOL)
    data = b""
    while more := await stream.read():
        data += more
    size, shift, start = 0, 0, 0
    while True:
        byte = data[start]
        size |= (byte & 0x7F) << shift
        start, shift = start + 1, shift + 7
        if byte < 0x80:
            break
    message = Identify()
    message.ParseFromString(data[start : start + size])
    return message


async def test_identify_names_the_addresses_that_concern_who_asks(monkeypatch):
    one, two = Host(Identity.generate()), Host(Identity.generate(), ["/ip4/127.0.0.1/tcp/0"])
    async with one.running(), two.running():
        await one.connect(two.peer_id, two.addresses())
        near = await asked(one, two)
        assert [str(Multiaddr(at)) for at in near.listen_addrs] == [two.addresses()[0].partition("/p2p/")[0]]
        assert identify.PROTOCOL in near.protocols
        assert near.public_key == two.public_key()
        monkeypatch.setattr(telling, "is_here", lambda remote, machine: False)  # as if it were on another machine
        assert list((await asked(one, two)).listen_addrs) == []


class Muxed:
    """What `sockets` looks through, around a real socket."""

    is_initiator = True

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream


async def test_the_kernel_watches_lines_beyond_this_machine_and_leaves_its_own_alone(monkeypatch):
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, lambda stream: trio.sleep_forever(), [listener])
        async with await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1]) as stream:
            muxed = Muxed(stream)
            found = stream.socket
            sockets.notice_silence(muxed, 6.0)
            assert not found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            far = sockets.Endpoint("192.0.2.1", 1, "192.0.2.7", 2, dialled=True)
            monkeypatch.setattr(sockets, "endpoint", lambda muxed: far)
            sockets.notice_silence(muxed, 0)
            assert not found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), "the owner has switched it off"
            sockets.notice_silence(muxed, 6.0)
            assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            said = {
                name: found.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
                if hasattr(socket, name)
            }
            assert said["TCP_KEEPIDLE"] + said["TCP_KEEPINTVL"] * said["TCP_KEEPCNT"] == 6
            assert said.get("TCP_USER_TIMEOUT", 6000) == 6000
        nursery.cancel_scope.cancel()
