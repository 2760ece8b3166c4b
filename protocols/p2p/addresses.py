"""Addresses of peers as text: which can be dialled, and which concrete ones stand behind a wildcard listener.

Format: multiaddr, https://github.com/multiformats/multiaddr. Only /ip4, /ip6 and /dns* over /tcp are ours, and circuits
through a relay there.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterable

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from .. import interfaces

INTERFACES_FRESH_S = 10.0  # how long a list of the machine's addresses is believed

_HOSTS = ("ip4", "ip6", "dns4", "dns6", "dns", "dnsaddr")
_interfaces: tuple[float, list[str]] | None = None


def is_circuit(address: str) -> bool:
    return "/p2p-circuit" in address


def parse_circuit(address: str, peer: str) -> tuple[str, str]:
    """(the relay's peer id, its address) of "/ip4/.../tcp/PORT/p2p/RELAY/p2p-circuit/p2p/PEER"; else ValueError."""
    at, _, behind = address.partition("/p2p-circuit")
    _, relay = split(at)
    if relay is None:
        raise ValueError("the relay's peer id is missing: expected /ip4/.../tcp/PORT/p2p/RELAY/p2p-circuit/p2p/PEER")
    if "/p2p-circuit" in behind or behind not in ("", f"/p2p/{peer}"):
        raise ValueError("it leads to another peer, or through more than one relay")
    if relay == peer:
        raise ValueError("a node is no relay to itself")
    parse_dialable(at, relay)
    return relay, at


def split(address: str) -> tuple[str, str | None]:
    """(the transport part, the peer id behind /p2p/ or None)."""
    transport, _, peer = address.partition("/p2p/")
    return transport, peer.partition("/")[0] or None


def parse(address: str) -> Multiaddr:
    """`address` without its /p2p part. ValueError, in a sentence, unless it is one over TCP."""
    if "/p2p-circuit" in address:
        raise ValueError("it leads through a relay: such an address can be dialled, not listened on")
    transport, _ = split(address)
    try:
        parsed = Multiaddr(transport)
        names = [protocol.name for protocol in parsed.protocols()]
    except (MultiaddrError, ValueError) as error:
        raise ValueError(f"not a multiaddr such as /ip4/192.0.2.7/tcp/4001 ({error})") from None
    if len(names) != 2 or names[0] not in _HOSTS or names[1] != "tcp":
        raise ValueError("only TCP is spoken: expected /ip4/ADDRESS/tcp/PORT, /ip6/... or /dns4/NAME/tcp/PORT")
    return parsed


def parse_dialable(address: str, peer: str) -> Multiaddr:
    """Like `parse`, for an address where `peer` is expected. ValueError when it cannot be dialled."""
    parsed = parse(address)
    _, named = split(address)
    if named is not None and named != peer:
        raise ValueError(f"it is the address of another peer, {named}")
    host, port = host_port(parsed)
    if port == 0:
        raise ValueError("it has no port")
    if is_wildcard(host):
        raise ValueError("it names no machine: a wildcard address is for listening")
    return parsed


def host_port(parsed: Multiaddr) -> tuple[str, int]:
    """The host and the port of an address that `parse` gave."""
    name = next(iter(parsed.protocols())).name
    return str(parsed.value_for_protocol(name)), int(parsed.value_for_protocol("tcp") or 0)


def concrete(
    listening: Iterable[tuple[str, int]], of_machine: Callable[[], list[str]] | None = None
) -> list[tuple[str, int]]:
    """(IP address, port) pairs that can be dialled, for listeners on (IP address, port); loopback last, each once.

    A listener on 0.0.0.0 or :: stands for every address of the machine; on Linux :: takes IPv4, too.
    """
    found: dict[tuple[str, int], None] = {}
    for host, port in listening:
        if not is_wildcard(host):
            found[host, port] = None
            continue
        for address in (of_machine or machine_addresses)():
            if host == "::" or ":" not in address:
                found[address, port] = None
    return sorted(found, key=lambda pair: ipaddress.ip_address(pair[0]).is_loopback)


def to_text(host: str, port: int) -> str:
    return f"/ip{6 if ':' in host else 4}/{host}/tcp/{port}"


def machine_addresses() -> list[str]:
    """The IP addresses of this machine's interfaces that are up, without link-local ones."""
    global _interfaces  # a system call of a millisecond, asked for with every identify
    now = time.monotonic()
    if _interfaces is None or now - _interfaces[0] > INTERFACES_FRESH_S:
        _interfaces = (now, interfaces.machine_addresses())
    return _interfaces[1]


def is_wildcard(host: str) -> bool:
    """Whether it stands for every address of a machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
