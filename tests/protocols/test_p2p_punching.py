"""Two hosts on a relay that agree on a plan and dial. Loopback stands for the internet here, and no NAT is in the way:
what NATs do to it is tests/nat's subject.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
import trio
from shoal.protocols.p2p import addresses, punching, reachability
from shoal.protocols.p2p.autonat import AutoNat
from shoal.protocols.p2p.dcutr_message import CONNECT, PROTOCOL, SYNC, HolePunch, decode, frame
from shoal.protocols.p2p.host import Host
from shoal.protocols.p2p.incoming import Incoming
from shoal.protocols.p2p.nat_limits import NatLimits
from shoal.protocols.p2p.punching import Punching
from shoal.protocols.p2p.reachability import Facts, Nat, Reach
from shoal.protocols.p2p.relay import Relay
from shoal.protocols.peer_id import PeerId

from tests.protocols.fakes_p2p import ECHO, echoes
from tests.protocols.test_p2p_relay import KEY, a_host, reserve, through

LIMITS = NatLimits(punch_s=2.0, punch_gap_s=0.1, punch_tries=2, relayed_idle_s=0.2)


@pytest.fixture(autouse=True)
def loopback_is_the_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachability, "scope_of", lambda ip: "internet")
    monkeypatch.setattr(addresses, "machine_addresses", list)
    monkeypatch.setattr(punching, "CHECK_S", 0.05)
    monkeypatch.setattr(punching, "OTHER_SIDE_S", 0.3)


class Side:
    """A host that punches, with facts that the test chooses. moved: with whom it was told to have gone direct."""

    def __init__(self, nat: Nat, reach: Reach, psk: bytes | None, limits: NatLimits = LIMITS) -> None:
        self.host = a_host(psk=psk)
        self.autonat = AutoNat(self.host, limits)  # it is not run: nobody is asked
        self.moved: list[PeerId] = []
        self.punching = Punching(self.host, self.autonat, limits, on_direct=self.moved.append)
        self._nat, self._reach = nat, reach

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Side]:
        async with self.host.running(), self.punching.running():
            port = self.host.listening()[0][1]
            self.autonat.facts = Facts(
                scope="internet", reach=self._reach, nat=self._nat, ips=("127.0.0.1",), port=port
            )
            self.autonat.known.set()
            yield self


@contextlib.asynccontextmanager
async def sides(
    caller: tuple[Nat, Reach], called: tuple[Nat, Reach], psk: bytes | None = None, limits: NatLimits = LIMITS
) -> AsyncIterator[tuple[Side, Side, Host]]:
    """(who calls through the relay, who is called, the relay's host)."""
    middle = a_host(psk=psk)
    Relay(middle)
    near, far = Side(*caller, psk, limits), Side(*called, psk, limits)
    async with middle.running(), near.running(), far.running():
        await reserve(far.host, middle)
        await near.host.connect(far.host.peer_id, [through(middle, far.host)])
        yield near, far, middle


async def until(holds: Callable[[], bool], within: float = 5.0) -> None:
    with trio.fail_after(within):
        while not holds():
            await trio.sleep(0.01)


def both_via(near: Side, far: Side, via: str) -> bool:
    return near.host.via(far.host.peer_id) == far.host.via(near.host.peer_id) == via


KEEPS: tuple[Nat, Reach] = ("keeps-ports", "private")
CHANGES: tuple[Nat, Reach] = ("changes-ports", "private")
OPEN: tuple[Nat, Reach] = ("keeps-ports", "public")
LATE: tuple[Nat, Reach] = ("unknown", "unknown")


@pytest.mark.parametrize("psk", [None, KEY], ids=["open", "private"])
@pytest.mark.parametrize(
    ("caller", "called"),
    [(KEEPS, KEEPS), (OPEN, KEEPS), (KEEPS, OPEN), (CHANGES, OPEN), (OPEN, CHANGES), (LATE, KEEPS)],
)
async def test_they_go_direct_and_the_relayed_connection_ends_when_nothing_is_on_it(
    caller: tuple[Nat, Reach], called: tuple[Nat, Reach], psk: bytes | None
) -> None:
    async with sides(caller, called, psk) as (near, far, _):
        await until(lambda: both_via(near, far, "direct"))
        await until(lambda: len(near.moved) + len(far.moved) == 1)
        await until(lambda: not near.host.connections(far.host.peer_id, relayed=True))
        assert await echoes(near.host, far.host.peer_id)
        assert await echoes(far.host, near.host.peer_id)


@pytest.mark.parametrize(("caller", "called"), [(CHANGES, KEEPS), (KEEPS, CHANGES), (CHANGES, CHANGES)])
async def test_nobody_dials_where_a_port_cannot_be_foretold(
    caller: tuple[Nat, Reach], called: tuple[Nat, Reach], monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled = list[object]()
    monkeypatch.setattr(Punching, "_dial", lambda *args, **options: dialled.append(args))
    async with sides(caller, called) as (near, far, _):
        await until(lambda: bool(near.punching.notes) and bool(far.punching.notes))
        assert "changes ports" in near.punching.notes[far.host.peer_id]
        assert both_via(near, far, "relayed")
        assert await echoes(near.host, far.host.peer_id)
        assert dialled == []


async def test_a_stream_in_progress_on_the_relay_keeps_its_connection() -> None:
    async with sides(KEEPS, KEEPS, limits=NatLimits(relayed_idle_s=0.2)) as (near, far, _):
        stream = await near.host.open_stream(far.host.peer_id, ECHO, relayed=True)
        await until(lambda: both_via(near, far, "direct"))
        await trio.sleep(0.5)  # longer than an idle one lasts
        await stream.write(b"still here")
        assert await stream.read() == b"still here"
        await stream.close()
        await until(lambda: not near.host.connections(far.host.peer_id, relayed=True))


async def test_without_a_listener_there_is_no_port_that_could_be_foretold() -> None:
    async with sides(KEEPS, KEEPS) as (near, _far, _middle):
        near.autonat.facts = Facts(scope="internet", reach="private", nat="keeps-ports", ips=("127.0.0.1",))
        assert near.punching._mine().nat == "changes-ports"


async def talk(host: Host, peer: PeerId, message: bytes, *, relayed: bool) -> bytes:
    """What is said to one who sends that."""
    stream = await host.open_stream(peer, PROTOCOL, relayed=relayed)
    try:
        await stream.write(message)
        return await stream.read()
    finally:
        await stream.close()


async def test_only_over_a_relay_is_a_hole_spoken_of() -> None:
    async with sides(KEEPS, KEEPS) as (near, far, _):
        await until(lambda: both_via(near, far, "direct"))
        assert await talk(near.host, far.host.peer_id, frame(HolePunch(CONNECT)), relayed=False) == b""


@pytest.mark.parametrize(
    "message",
    [b"\xff\xff\xff\x7f", b"\x03abc", frame(HolePunch(SYNC)), b"\x00"],
    ids=["too long", "no message", "out of turn", "empty"],
)
async def test_nonsense_costs_its_sender_the_stream_and_nothing_else(message: bytes) -> None:
    async with sides(CHANGES, KEEPS) as (near, far, _):
        await until(lambda: not far.punching._busy)
        assert await talk(near.host, far.host.peer_id, message, relayed=True) == b""
        assert await echoes(near.host, far.host.peer_id)


async def test_a_peer_that_begins_again_and_again_is_not_listened_to_for_the_rest_of_the_minute() -> None:
    async with sides(CHANGES, CHANGES) as (near, far, _):
        said = [
            await talk(
                near.host, far.host.peer_id, frame(HolePunch(CONNECT, (), Facts(nat="changes-ports"))), relayed=True
            )
            for _ in range(15)
        ]
        assert [bool(answer) for answer in said] == [True] * 12 + [False] * 3


async def test_another_implementation_that_tells_nothing_of_itself_is_met_by_the_standard() -> None:
    async with sides(CHANGES, KEEPS) as (near, far, _):
        await until(lambda: bool(near.punching.notes))
        stream = await near.host.open_stream(far.host.peer_id, PROTOCOL, relayed=True)
        await stream.write(frame(HolePunch(CONNECT, near.punching._pairs())))
        incoming = Incoming(stream, 2.0)
        size = await incoming.size()
        assert size is not None
        assert decode(await incoming.take(size)).kind == CONNECT
        await stream.write(frame(HolePunch(SYNC)))
        await until(lambda: both_via(near, far, "direct"))
        assert far.moved == [near.host.peer_id], "who gets SYNC is the client"
