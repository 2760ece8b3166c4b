"""Which of its addresses a node tells whom. Pure, over (IP address, port) pairs.

| address | told to |
|---|---|
| of the internet | everybody |
| of a local network, where the machine has none of the internet in its family | everybody: nodes behind one NAT meet |
| of a local network, else | who is on a local network, too, or on this machine |
| loopback | who is on this machine; in what is passed on (adverts), only where there is nothing else |
| link-local, and what names no single machine | nobody: it means another interface, or nothing, elsewhere |
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from .reachability import scope_of

Pair = tuple[str, int]


def is_of_machine(address: str) -> bool:
    """Whether a multiaddr with an IP address leads to whatever machine it is used on."""
    parts = address.split("/", 3)
    return len(parts) > 2 and scope_of(parts[2]) == "machine"


def is_here(remote_ip: str | None, machine: Collection[str]) -> bool:
    """Whether the other end of a connection is on this machine. None: it is not known (a relay is between)."""
    return remote_ip is not None and (scope_of(remote_ip) == "machine" or remote_ip in machine)


def for_everyone(pairs: Iterable[Pair], machine: Collection[str]) -> list[Pair]:
    """What may be passed on to anybody. machine: the IP addresses of this machine's interfaces."""
    told = [(pair, scope_of(pair[0])) for pair in pairs]
    # For each family by itself: at home IPv6 is often the internet's, and IPv4 behind a NAT.
    outside = {":" in pair[0] for pair, scope in told if scope == "internet" and pair[0] in machine}
    chosen = [
        pair for pair, scope in told if scope == "internet" or (scope == "network" and (":" in pair[0]) not in outside)
    ]
    return chosen or [pair for pair, scope in told if scope == "machine"]


def for_peer(pairs: Iterable[Pair], machine: Collection[str], remote_ip: str | None) -> list[Pair]:
    """What one peer is told, by the address at the other end of its connection; None: a relay is between."""
    pairs = list(pairs)
    if is_here(remote_ip, machine):
        return [pair for pair in pairs if scope_of(pair[0]) != "none"]
    if remote_ip is not None and scope_of(remote_ip) == "network":
        return [pair for pair in pairs if scope_of(pair[0]) in ("internet", "network")]
    return [pair for pair in for_everyone(pairs, machine) if scope_of(pair[0]) != "machine"]
