"""Nodes of the same swarm on the same local network, found without an invite: service discovery by multicast DNS.

    mdns = Mdns(peer_id, tag, addresses=host.addresses, found=found)
    await mdns.run()                                   # until cancelled

The service is `_shoal._tcp.local.` (RFC 6762 and 6763); TXT: v=1, peer (the peer id), tag (16 hex digits that only the
same swarm has, so that a swarm's name is not told to the street). Only real addresses are announced: a node that
listens on loopback alone neither announces nor listens for others. What is found is a hint: the handshake says who is
there.

zeroconf runs a thread of its own; everything here that waits for it does so in another.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import logging
import math
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Any

import trio

from ..peer_id import PeerId, parse_peer_id

log = logging.getLogger("shoal.p2p.mdns")

SERVICE = "_shoal._tcp.local."
LOOK_S = 5.0  # how soon a change of the machine's addresses is noticed
RESOLVE_S = 3.0
CLOSE_S = 2.0
MAX_FOUND = 64  # names that wait to be looked up
MAX_ADDRESSES = 8


def tag_of(swarm: str, key: bytes | None) -> str:
    """What the nodes of one swarm know each other by; in a private one nobody else can make it."""
    return hmac.digest(key or b"", b"shoal mdns v1\0" + swarm.encode(), hashlib.sha256).hex()[:16]


class Mdns:
    """addresses: this node's multiaddrs, now. found: called with a peer and its multiaddrs.

    interfaces: the addresses to speak on, for tests; otherwise those that are announced.
    """

    def __init__(
        self,
        peer_id: PeerId,
        tag: str,
        *,
        addresses: Callable[[], Sequence[str]],
        found: Callable[[PeerId, list[str]], None],
        interfaces: Sequence[str] | None = None,
    ) -> None:
        self._peer_id, self._tag = peer_id, tag
        self._addresses, self._found, self._interfaces = addresses, found, interfaces

    async def run(self) -> None:
        """Announce and look, as long as there is an address beyond this machine."""
        while True:
            hosts, port = self._reachable()
            if hosts:
                try:
                    await self._speak(hosts, port)
                except (OSError, ValueError) as error:
                    log.info("no discovery on the local network: %s", error)
            await trio.sleep(LOOK_S)

    def _reachable(self) -> tuple[list[str], int]:
        """The IPv4 addresses that others can dial, with the port most of them have."""
        found: dict[int, list[str]] = {}
        for address in self._addresses():
            parts = address.split("/")
            if parts[1] == "ip4" and (self._interfaces or not ipaddress.ip_address(parts[2]).is_loopback):
                found.setdefault(int(parts[4]), []).append(parts[2])
        port = max(found, key=lambda number: len(found[number]), default=0)
        return found.get(port, [])[:MAX_ADDRESSES], port

    async def _speak(self, hosts: list[str], port: int) -> None:
        """Until the addresses change."""
        from zeroconf import ServiceBrowser, ServiceInfo, Zeroconf

        send, receive = trio.open_memory_channel[str](MAX_FOUND)
        token = trio.lowlevel.current_trio_token()

        def heard(zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(offer, name)

        def offer(name: str) -> None:
            with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
                send.send_nowait(name)

        unique = secrets.token_hex(8)
        info = ServiceInfo(
            SERVICE,
            f"{unique}.{SERVICE}",
            addresses=[socket.inet_aton(host) for host in hosts],
            port=port,
            properties={"v": "1", "peer": self._peer_id, "tag": self._tag},
            server=f"shoal-{unique}.local.",
        )
        zeroconf = await trio.to_thread.run_sync(lambda: Zeroconf(interfaces=list(self._interfaces or hosts)))
        try:
            await trio.to_thread.run_sync(lambda: zeroconf.register_service(info, cooperating_responders=True))
            await trio.to_thread.run_sync(lambda: ServiceBrowser(zeroconf, SERVICE, handlers=[heard]))
            log.info("looking for nodes of this swarm on the local network")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._resolve, zeroconf, receive, info.name)
                while self._reachable() == (hosts, port):  # noqa: ASYNC110 - the machine has no event for it
                    await trio.sleep(LOOK_S)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
                await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)  # it says goodbye first

    async def _resolve(self, zeroconf: Any, names: trio.MemoryReceiveChannel[str], own: str) -> None:
        asked: dict[str, float] = {}
        async for name in names:
            if name == own or trio.current_time() - asked.get(name, -math.inf) < 1.0:
                continue
            if len(asked) > 10 * MAX_FOUND:
                asked.clear()
            asked[name] = trio.current_time()
            info = await trio.to_thread.run_sync(
                zeroconf.get_service_info, SERVICE, name, int(RESOLVE_S * 1000), abandon_on_cancel=True
            )
            if info is not None:
                self._take(info)

    def _take(self, info: Any) -> None:
        """One answer from the network; anybody may have sent it."""
        told = {key: value for key, value in (info.properties or {}).items() if isinstance(value, bytes)}
        if told.get(b"tag") != self._tag.encode() or told.get(b"v") != b"1" or not 0 < (info.port or 0) < 65_536:
            return
        try:
            peer = parse_peer_id(told.get(b"peer", b"").decode("ascii"))
        except ValueError:
            return
        hosts = [host for host in info.parsed_addresses() if ":" not in host][:MAX_ADDRESSES]
        usable = [
            h for h in hosts if not (ipaddress.ip_address(h).is_unspecified or ipaddress.ip_address(h).is_multicast)
        ]
        if peer != self._peer_id and usable:
            self._found(peer, [f"/ip4/{host}/tcp/{info.port}/p2p/{peer}" for host in usable])
