"""What a node may conclude of its own reachability from what others saw of it. Pure: no socket, no libp2p.

Every observer says from which address and port this node's connection came, and whether it could dial back. From that
follow the kind of NAT, the verdict, and whether two nodes can punch a hole. Only what observers of the widest scope say
counts: that a neighbour on the same network can dial this node says nothing about the internet.

    facts = conclude(observations, machine={"10.1.0.2"}, wanted=2)
    facts.reach, facts.nat            # "private", "keeps-ports"
    plan(facts, theirs)               # "punch"
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Literal

from msgspec import Struct

from ..peer_id import PeerId

Scope = Literal["none", "machine", "network", "internet"]
Reach = Literal["unknown", "public", "private"]
Nat = Literal["unknown", "none", "keeps-ports", "changes-ports"]
Plan = Literal["none", "initiator-dials", "receiver-dials", "punch"]

MAX_ADDRESSES = 4  # that a peer is told to dial, or that are dialled for a peer
_WIDTH: dict[Scope, int] = {"none": 0, "machine": 1, "network": 2, "internet": 3}


class Observation(Struct, frozen=True, kw_only=True):
    """What one observer saw, and what its dialling back showed.

    seat: the observer's own IP address; observers that share one count once. ip, port: where this node's connection
    seemed to come from. local_port: what it left from here; 0 when the observer had dialled, so that its view of the
    port says nothing. listener: the port that it was asked to dial; 0: there is none. dialled_back: True and False are
    answers, None is none (it was asked too often, or cannot). why: its reason for a False.
    """

    observer: PeerId
    seat: str
    ip: str
    port: int
    local_port: int = 0
    listener: int = 0
    dialled_back: bool | None = None
    why: str = ""


class Facts(Struct, frozen=True, kw_only=True):
    """What is concluded. yes, no: observers that could dial back and that could not. ips: this node's addresses as
    seen from the scope, the one seen by most first. port: where it listens; 0: nowhere that this scope could reach.
    """

    scope: Scope = "none"
    reach: Reach = "unknown"
    nat: Nat = "unknown"
    observers: int = 0
    yes: int = 0
    no: int = 0
    ips: tuple[str, ...] = ()
    port: int = 0
    why: str = ""


def scope_of(ip: str) -> Scope:
    """Who can be at the other end of an address: the internet, a local network, or this machine alone."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return "none"
    if address.is_unspecified or address.is_multicast or address.is_link_local:
        return "none"
    if address.version == 6 and address.ipv4_mapped is not None:
        return "none"  # the same machine under a second name, which checks by name would not know
    if address.is_loopback:
        return "machine"
    return "internet" if address.is_global else "network"


def breadth(ip: str) -> int:
    """How much of the world an address speaks for; a greater number is more."""
    return _WIDTH[scope_of(ip)]


def conclude(observations: Iterable[Observation], *, machine: Collection[str] = (), wanted: int = 2) -> Facts:
    """machine: the IP addresses of this machine's interfaces. wanted: observers at different addresses that must agree
    on a verdict, or all that have answered when they are fewer.
    """
    seen = list(observations)
    scopes: list[Scope] = [scope_of(one.ip) for one in seen]
    widest: Scope = max(scopes, key=_WIDTH.__getitem__, default="none")
    if widest == "none":
        return Facts()
    seen = [one for one in seen if scope_of(one.ip) == widest]
    yes, no = _tally(seen)
    seats = len({one.seat for one in seen})
    return Facts(
        scope=widest,
        reach=verdict(yes, no, max(1, min(wanted, yes + no))),
        nat=nat_kind(seen, machine),
        observers=seats,
        yes=yes,
        no=no,
        ips=tuple(ip for ip, _ in Counter(one.ip for one in seen).most_common(MAX_ADDRESSES)),
        port=Counter(one.listener for one in seen).most_common(1)[0][0],
        why=next((one.why for one in seen if one.dialled_back is False and one.why), ""),
    )


def _tally(seen: Iterable[Observation]) -> tuple[int, int]:
    """(seats that could dial back, seats that could not). A seat with both has shown that it can."""
    yes = {one.seat for one in seen if one.dialled_back}
    no = {one.seat for one in seen if one.dialled_back is False} - yes
    return len(yes), len(no)


def verdict(yes: int, no: int, wanted: int) -> Reach:
    """The majority's answer, when it has at least `wanted` voices; a tie is no answer."""
    if yes > no and yes >= wanted:
        return "public"
    if no > yes and no >= wanted:
        return "private"
    return "unknown"


def nat_kind(seen: Iterable[Observation], machine: Collection[str]) -> Nat:
    """What is between this node and its observers.

    A NAT that keeps ports shows every observer the port that the connection left from, so that the port of the
    listener can be foretold, too; one that changes them ("symmetric" for this purpose) leaves nothing to foretell.
    """
    seen = list(seen)
    telling = [one for one in seen if one.local_port]
    kept = sum(one.port == one.local_port for one in telling)
    if telling and kept * 2 <= len(telling):
        return "changes-ports"
    if all(one.ip in machine for one in seen):
        return "none"
    return "keeps-ports" if telling else "unknown"


# -- two nodes -------------------------------------------------------------------------------------------------------


def plan(initiator: Facts, receiver: Facts) -> Plan:
    """How two nodes that are connected through a relay get a direct connection. Both sides come to the same plan.

    A side that can be dialled is dialled, which no NAT of the other can prevent. Else both must be able to foretell
    their port. What is not known (a node of another kind, or too early) is tried.
    """
    if receiver.reach == "public":
        return "initiator-dials"
    if initiator.reach == "public":
        return "receiver-dials"
    if "changes-ports" in (initiator.nat, receiver.nat):
        return "none"
    return "punch"


def may_initiate(mine: Facts) -> bool:
    """Whether this side begins: one whose port cannot be foretold leaves it to the other, which may be dialled."""
    return mine.reach == "public" or mine.nat != "changes-ports"


def worth_dialling(
    theirs: Iterable[tuple[str, int]], *, mine: Collection[str], machine: Collection[str] = ()
) -> list[tuple[str, int]]:
    """Those (IP address, port) pairs of a peer that a hole can be punched to, at most MAX_ADDRESSES, public ones first.

    mine: this node's addresses as others see them. A private address is worth a try only behind the same NAT (a peer
    that is seen at one of `mine`): elsewhere it is somebody else's, or nobody's, and costs seconds. Never this
    machine's own, and nothing that names no single machine: a peer must not choose whom this node dials.
    """
    pairs = [(ip, port) for ip, port in dict.fromkeys(theirs) if 0 < port < 65536 and ip not in machine]
    public = [pair for pair in pairs if scope_of(pair[0]) == "internet"]
    same_nat = any(ip in mine for ip, _ in public)
    local = [pair for pair in pairs if scope_of(pair[0]) == "network"] if same_nat or not public else []
    if not same_nat and any(scope_of(ip) == "internet" for ip in mine):
        local = []
    return [*public, *local][:MAX_ADDRESSES]
