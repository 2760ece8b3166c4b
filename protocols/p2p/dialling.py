"""Dialling a peer: all of its addresses, the next beside the last, and relays when no direct way works at once.

    await Dial(host.network, host.circuits, host.limits, peer_id, addresses).run(nursery)

What belongs here: which address is tried when, and what is told of those that failed. Direct addresses begin at once;
circuits (".../p2p-circuit/p2p/PEER") a little later, beside them, when their relays are connected already. The first
connection that stands ends the wait. If it runs through a relay, direct addresses that have not failed yet go on being
tried in the background: when one works, its connection is there beside the relayed one, and who has streams on that
moves them (node/swarm/links.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID

from ..peer_id import PeerId
from . import addresses
from .errors import DialFailed, P2pError
from .limits import HostLimits

if TYPE_CHECKING:
    from .circuits import Circuits
    from .network import Network


class Dial:
    """One dial. DialFailed says why each address did not work."""

    def __init__(
        self, network: Network, circuits: Circuits, limits: HostLimits, peer_id: PeerId, addrs: Sequence[str]
    ) -> None:
        self._network, self._circuits, self._limits = network, circuits, limits
        self._peer_id, self._peer = peer_id, ID.from_base58(peer_id)
        self._told = list(dict.fromkeys(addrs))
        self._reasons: dict[str, str] = {}
        self._late: Callable[[], None] = lambda: None
        self._settled = trio.Event()  # a connection stands, or nothing is left to try
        self._directs_over = trio.Event()
        self._may_call = trio.Event()  # through relays
        self._direct: list[tuple[str, Callable[[], Awaitable[Any]]]] = []
        self._through: list[tuple[str, Callable[[], Awaitable[Any]]]] = []
        for address in self._told:
            try:
                self._sort_in(address)
            except ValueError as error:
                self._reasons[address] = str(error)
        for targets, most in ((self._direct, limits.dial_addresses), (self._through, limits.dial_circuits)):
            for address, _ in targets[most:]:
                self._reasons[address] = f"not tried: only {most} such addresses of a peer are"
            del targets[most:]

    def _sort_in(self, address: str) -> None:
        if not addresses.is_circuit(address):
            parsed = addresses.parse_dialable(address, self._peer_id)
            self._direct.append((address, lambda: self._network.dial_one(parsed, self._peer)))
            return
        relay, at = addresses.parse_circuit(address, self._peer_id)
        dial = partial(self._circuits.dial, PeerId(relay), [at], self._peer_id, after=self._may_call)
        self._through.append((address, dial))

    async def run(self, nursery: trio.Nursery, *, late: Callable[[], None]) -> None:
        """Until a connection stands, or DialFailed. Attempts that may outlast this run in `nursery`; `late` is called
        when a direct one works after a relay's."""
        self._late = late
        scope = trio.CancelScope(deadline=trio.current_time() + self._limits.connect_s)
        nursery.start_soon(self._try_all, scope)
        try:
            await self._settled.wait()
        except BaseException:
            scope.cancel()
            raise
        if not self.stands():
            scope.cancel()
            for address in self._told:
                self._reasons.setdefault(address, "the connection did not last")
            raise DialFailed(self._peer_id, {address: self._reasons[address] for address in self._told})
        self._network.unblock_peer(self._peer)  # the library's negative cache would keep it out of its own dials

    def stands(self) -> bool:
        return any(is_live(connection) for connection in self._network.get_connections(self._peer))

    async def _try_all(self, scope: trio.CancelScope) -> None:
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    circuits = trio.CancelScope()
                    nursery.start_soon(self._try_circuits, circuits)
                    await self._in_turn(self._direct, scope.cancel)
                    self._directs_over.set()
        finally:
            self._settled.set()

    async def _try_circuits(self, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                if self._through:
                    nursery.start_soon(self._in_turn, self._through, scope.cancel)
                if self._direct:
                    with trio.move_on_after(self._limits.circuit_lag_s):
                        await self._directs_over.wait()
                self._may_call.set()

    async def _in_turn(
        self, targets: Sequence[tuple[str, Callable[[], Awaitable[Any]]]], won: Callable[[], object]
    ) -> None:
        """Try each, the next beside the last; returns when all have ended."""
        async with trio.open_nursery() as nursery:
            for address, attempt in targets:
                ended = trio.Event()
                nursery.start_soon(self._try, address, attempt, ended, won)
                with trio.move_on_after(self._limits.dial_stagger_s):
                    await ended.wait()

    async def _try(
        self, address: str, attempt: Callable[[], Awaitable[Any]], ended: trio.Event, won: Callable[[], object]
    ) -> None:
        try:
            with trio.fail_after(self._limits.dial_s):
                await attempt()
            late = self._settled.is_set() and not addresses.is_circuit(address)
            self._settled.set()
            won()
            if late:
                self._late()
        except trio.TooSlowError:
            self._reasons[address] = f"no answer within {self._limits.dial_s:g} s"
        except Exception as error:  # whatever the other side made of it, it is no connection
            self._reasons[address] = reason(error)
        finally:
            ended.set()


def is_live(connection: Any) -> bool:
    return not connection.is_closed and not connection.muxed_conn.event_shutting_down.is_set()


def reason(error: BaseException) -> str:
    """The innermost sentence of a failed dial, without the address that its reader already has."""
    if isinstance(error, P2pError):
        return f"its relay: {'; '.join(error.reasons.values())}" if isinstance(error, DialFailed) else str(error)
    while (inner := error.__cause__ or error.__context__) is not None and isinstance(
        inner, (BaseLibp2pError, OSError, ExceptionGroup)
    ):
        error = inner
    if isinstance(error, BaseExceptionGroup):
        return reason(error.exceptions[0])
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
