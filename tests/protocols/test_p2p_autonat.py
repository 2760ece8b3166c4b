"""Asking peers how this node is seen, and dialling back for them. Real hosts on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from shoal.protocols.p2p import autonat
from shoal.protocols.p2p.autonat import Allowance, AutoNat, DialledBack
from shoal.protocols.p2p.host import Host
from shoal.protocols.p2p.nat_limits import NatLimits
from shoal.protocols.peer_id import Identity, PeerId

HERE = "/ip4/127.0.0.1/tcp/0"


@contextlib.asynccontextmanager
async def node(*listen: str, psk: bytes | None = None, limits: NatLimits | None = None) -> AsyncIterator[AutoNat]:
    host = Host(Identity.generate(), list(listen), psk)
    made = AutoNat(host, limits or NatLimits(dial_back_s=1.0))
    async with host.running(), made.running():
        yield made


async def told(asker: AutoNat) -> None:
    """Waits until the verdict is there."""
    with trio.fail_after(5):
        while asker.facts.reach == "unknown":
            await trio.sleep(0.01)


async def conversation(asker: AutoNat) -> None:
    """Waits until the one peer has been asked once more, to the end."""
    asked, ended = asker._converse, trio.Event()

    async def noted(peer: PeerId, arrived: trio.Event) -> None:
        await asked(peer, arrived)
        ended.set()

    asker._converse = noted  # type: ignore[method-assign]
    with trio.fail_after(5):
        await ended.wait()
    asker._converse = asked  # type: ignore[method-assign]


async def connect(asker: AutoNat, server: AutoNat) -> None:
    await asker._host.connect(server._host.peer_id, server._host.addresses())


@pytest.mark.parametrize("psk", [None, b"k" * 32])
async def test_a_node_learns_how_it_is_seen_and_that_it_can_be_dialled(psk: bytes | None) -> None:
    async with node(HERE, psk=psk) as asker, node(HERE, psk=psk) as server:
        await connect(asker, server)
        await told(asker)
        assert (asker.facts.reach, asker.facts.scope, asker.facts.nat) == ("public", "machine", "none")
        assert asker.facts.port == asker._host.listening()[0][1]
        assert asker._host.external == (), "nobody beyond the machine has said anything"
        assert len(asker._host.connections(server._host.peer_id)) == 1, "dialling back leaves no connection behind"


async def test_a_node_that_listens_nowhere_learns_only_how_it_is_seen() -> None:
    async with node() as asker, node(HERE) as server:
        await connect(asker, server)
        with trio.fail_after(5):
            await asker.known.wait()
        assert (asker.facts.ips, asker.facts.reach, asker.facts.port) == (("127.0.0.1",), "unknown", 0)


async def test_a_port_where_somebody_else_listens_is_not_taken_for_the_askers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(HERE) as asker, node(HERE) as server, node(HERE) as other:
        monkeypatch.setattr(asker, "_port_on", lambda ip: other._host.listening()[0][1])
        await connect(asker, server)
        await told(asker)
        assert (asker.facts.reach, asker.facts.why) == ("private", "something else answers there")


async def test_a_closed_port_is_private_and_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(HERE) as asker, node(HERE) as server:
        monkeypatch.setattr(asker, "_port_on", lambda ip: 1)
        await connect(asker, server)
        await told(asker)
        assert (asker.facts.reach, asker.facts.why) == ("private", "connection refused")


async def test_a_server_that_only_says_to_have_dialled_back_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(HERE) as asker, node(HERE) as liar:

        async def lie(peer: PeerId, ip: str, port: int) -> DialledBack:
            return DialledBack(True)

        monkeypatch.setattr(liar, "_dial_back", lie)
        monkeypatch.setattr(autonat, "ARRIVAL_S", 0.05)
        await connect(asker, liar)
        with trio.fail_after(5):
            while not asker.lies:
                await trio.sleep(0.01)
        assert asker.facts.reach == "unknown"


async def test_a_peer_that_asks_again_and_again_is_not_dialled_again_and_again() -> None:
    async with node(HERE) as asker, node(HERE, limits=NatLimits(dial_backs_per_peer=2)) as server:
        await connect(asker, server)
        await told(asker)
        for _ in range(5):
            asker.ask_anew()
            await conversation(asker)
        assert server.dialled_back == 2
        assert server.refused == 4
        assert asker.facts.ips == ("127.0.0.1",), "how it is seen is told all the same"


async def test_strangers_are_not_dialled_back_where_only_members_may_ask() -> None:
    async with node(HERE) as asker, node(HERE) as server:
        server._may_ask = lambda peer: False
        await connect(asker, server)
        with trio.fail_after(5):
            await asker.known.wait()
        assert server.dialled_back == 0
        assert asker.facts.reach == "unknown"


async def test_it_is_asked_anew_when_the_addresses_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autonat, "LOOK_S", 0.05)
    async with node(HERE) as asker, node(HERE) as server:
        await connect(asker, server)
        await told(asker)
        before = server.dialled_back
        await asker._host.listen("/ip4/127.0.0.2/tcp/0")
        with trio.fail_after(5):
            while server.dialled_back == before:
                await trio.sleep(0.01)


async def test_of_many_peers_at_one_address_one_is_asked() -> None:
    async with contextlib.AsyncExitStack() as stack:
        asker = await stack.enter_async_context(node(HERE))
        servers = [await stack.enter_async_context(node(HERE)) for _ in range(4)]
        for server in servers:
            await connect(asker, server)
        await told(asker)
        await trio.sleep(0.3)
        assert len(asker._asked) == 1
        assert sum(server.dialled_back for server in servers) <= 4, "each may ask for itself, too"


@given(st.lists(st.floats(0, 200), max_size=40), st.integers(1, 5))
def test_an_allowance_is_never_exceeded_in_any_minute(times: list[float], most: int) -> None:
    allowance, taken = Allowance(most), list[float]()
    for now in sorted(times):
        if allowance.take("peer", now):
            taken.append(now)
    for start in taken:
        assert sum(start <= at < start + autonat.MINUTE_S for at in taken) <= most


def test_many_keys_take_no_more_memory_than_the_bound() -> None:
    allowance = Allowance(1)
    for number in range(3 * autonat.MAX_ASKERS):
        allowance.take(str(number), number / 1000)
    assert len(allowance._uses) <= autonat.MAX_ASKERS + 1
