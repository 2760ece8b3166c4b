"""What `shoal doctor` says about NATs: what is between this node and the others, and what to do.

Pure: everything comes from the node's status. The node itself has asked its peers (protocols/p2p/autonat.py); nobody
else is ever asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .checks import Finding, note, ok
from .reachable import KINDS


def of_nat(swarm: dict[str, Any], peers: list[dict[str, Any]]) -> Iterator[Finding]:
    """swarm, peers: `swarm` of the status, and the peers, as the node tells them."""
    seen = swarm.get("reachability") or {}
    scope = seen.get("scope", "none")
    places = (swarm.get("relays") or {}).get("places") or []
    if scope == "internet":
        yield _kind(seen)
        yield _reach(seen, len(places))
    elif scope == "network":
        where = ", ".join(seen.get("ips") or ())
        yield ok("NAT", f"peers of the local network see this node at {where}; nobody beyond it was there to ask")
        if seen.get("reach") == "private":
            yield note("reach", f"they cannot dial it ({seen.get('why') or 'no reason known'})", _open(seen))
    elif scope == "machine":
        yield ok("NAT", "only peers of this machine were there to ask")
    elif any(peer.get("connected") for peer in peers):
        yield note("NAT", "no peer has said yet how it sees this node", "ask again in a few seconds")
    else:
        yield ok("NAT", "unknown while no peer is there to ask")
    yield from _relays(swarm.get("relays") or {})
    yield from _relayed(peers)


def _kind(seen: dict[str, Any]) -> Finding:
    where = ", ".join(seen.get("ips") or ())
    text = f"{KINDS.get(seen.get('nat', 'unknown'), 'unknown')}; the internet sees this node at {where}"
    if seen.get("nat") == "changes-ports" and seen.get("reach") != "public":
        return note("NAT", f"{text}; no direct connection can be punched", f"{_open(seen)}; else it lives on relays")
    return ok("NAT", text)


def _reach(seen: dict[str, Any], places: int) -> Finding:
    yes, no = seen.get("yes", 0), seen.get("no", 0)
    asked = f"{yes} of {yes + no} asked could"
    if seen.get("reach") == "public":
        where = ", ".join(f"{ip}:{seen.get('port')}" for ip in seen.get("ips") or ())
        return ok("reach", f"others can dial this node at {where} ({asked})")
    if not seen.get("port"):
        return note("reach", "this node does not listen beyond the machine", 'swarm.listen = ["/ip4/0.0.0.0/tcp/4642"]')
    if seen.get("reach") != "private":
        if yes and no:
            return note("reach", f"peers do not agree whether they can dial this node ({asked})", _open(seen))
        return note("reach", "no peer has said yet whether it can dial this node", "ask again in a few seconds")
    why = f"; {seen['why']}" if seen.get("why") else ""
    text = f"others cannot dial this node ({asked}{why})"
    if places:
        text += f"; they reach it through {'a relay' if places == 1 else f'{places} relays'}"
        return ok("reach", text) if seen.get("nat") != "changes-ports" else note("reach", text, _open(seen))
    remedy = (
        f"{_open(seen)}, join a swarm with a relay, or set relay.serve = true on a friend's node that can be dialled"
    )
    return note("reach", f"{text}, and it has no relay", remedy)


def _open(seen: dict[str, Any]) -> str:
    port = seen.get("port") or 4642
    return f"forward TCP port {port} of your router to this machine, and let it through the firewall"


def _relays(relays: dict[str, Any]) -> Iterator[Finding]:
    places, problems, serves = relays.get("places") or [], relays.get("problems") or {}, relays.get("serves")
    if places:
        named = ", ".join(f"...{str(place.get('relay'))[-6:]}" for place in places)
        yield ok("relays", f"{'a place is' if len(places) == 1 else f'{len(places)} places are'} held, at {named}")
    for relay, why in problems.items():
        yield note("relays", f"no place at ...{relay[-6:]}: {why}", "another relay, or more room on that one")
    if serves:
        held, circuits = serves.get("reservations", 0), serves.get("circuits", 0)
        yield ok("relaying", f"for others: {_count(held, 'place')} given away, {_count(circuits, 'connection')} now")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _relayed(peers: list[dict[str, Any]]) -> Iterator[Finding]:
    relayed = [peer for peer in peers if peer.get("connected") and peer.get("via") == "relayed"]
    if relayed:
        why = "; ".join(sorted({str(peer["via_note"]) for peer in relayed if peer.get("via_note")})[:2])
        count = "1 peer is" if len(relayed) == 1 else f"{len(relayed)} peers are"
        yield ok("direct", f"{count} connected through a relay{': ' + why if why else ''}")
