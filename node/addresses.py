"""Addresses as people write them: sockets, multiaddrs, peer ids. Checked here by their text alone.

The multiaddr library costs tens of milliseconds to import and lives in protocols/p2p; a configuration must be checked
without it. Only what this node's transport can use is accepted: TCP over IP or a DNS name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

LISTEN_EXAMPLE = "/ip4/0.0.0.0/tcp/4642"
PEER_EXAMPLE = "/ip4/192.0.2.7/tcp/4642/p2p/12D3KooW..."

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*\.?")
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def parse_socket(text: str) -> tuple[str, int]:
    """ "127.0.0.1:8642" or "[::1]:8642" -> host and port. ValueError says what is wrong and what to write."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/\s]+)):(\d{1,5})", text)
    if match is None:
        raise ValueError(f'{text!r} is not an address; write HOST:PORT, for example "127.0.0.1:8642"')
    host, port = match[1] or match[2], int(match[3])
    if port > 65535:
        raise ValueError(f"port {port} does not exist; take one from 1024 to 65535, or 0 for a free one")
    if host != "localhost":
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(f'{host!r} is not an IP address; write one, for example "127.0.0.1:8642"') from None
    return ("127.0.0.1" if host == "localhost" else host), port


def join_socket(host: str, port: int) -> str:
    """The inverse of parse_socket, as it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether an IP address or name can be reached from this machine only. An unknown name counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_loopback(text: str) -> None:
    """ValueError unless it is HOST:PORT of this machine, with a port that something can listen on."""
    host, port = parse_socket(text)
    if not is_loopback(host) or port == 0:
        raise ValueError(f'{text!r} is no address of this machine; write one like "127.0.0.1:11434"')


def _parts(text: str, example: str) -> tuple[str, str, int, str | None]:
    """A TCP multiaddr -> (protocol of the host, host, port, peer id or None)."""
    fields = text.split("/")
    if len(fields) < 5 or fields[0] != "":
        raise ValueError(f'{text!r} is not a multiaddr; write one like "{example}"')
    kind, host, transport, port_text, *rest = fields[1:]
    if transport != "tcp":
        raise ValueError(f'{text!r}: the transport is TCP only; write it like "{example}"')
    if kind in ("ip4", "ip6"):
        try:
            fits = ipaddress.ip_address(host).version == int(kind[-1])
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(f'{text!r}: {host!r} is not an IPv{kind[-1]} address; write it like "{example}"')
    elif kind in ("dns", "dns4", "dns6"):
        if not _HOST_NAME.fullmatch(host) or len(host) > 253:
            raise ValueError(f"{text!r}: {host!r} is not a host name")
    else:
        raise ValueError(f'{text!r}: begins with ip4, ip6, dns, dns4 or dns6; write it like "{example}"')
    if not port_text.isascii() or not port_text.isdigit() or int(port_text) > 65535:
        raise ValueError(f"{text!r}: {port_text!r} is not a port (0 to 65535)")
    peer = None
    if rest:
        if len(rest) == 5 and rest[2] == "p2p-circuit" and is_peer_id(rest[1]) and rest[1] != rest[4]:
            rest = rest[3:]  # through a relay: its address, and then whose place is behind it
        if len(rest) != 2 or rest[0] != "p2p" or not is_peer_id(rest[1]):
            raise ValueError(f'{text!r}: after the port only /p2p/PEER_ID may come; write it like "{example}"')
        peer = rest[1]
    return kind, host, int(port_text), peer


def check_listen(text: str) -> None:
    """ValueError unless a node could listen on this multiaddr."""
    kind, _, _, peer = _parts(text, LISTEN_EXAMPLE)
    if kind not in ("ip4", "ip6"):
        raise ValueError(f'{text!r}: one listens on an IP address, not on a name; write it like "{LISTEN_EXAMPLE}"')
    if peer is not None:
        raise ValueError(f"{text!r}: leave out /p2p/..., the node's own identity is added")


def check_peer(text: str) -> None:
    """ValueError unless this is a multiaddr with the peer's id, or an invite."""
    if text.startswith("/"):
        _, _, port, peer = _parts(text, PEER_EXAMPLE)
        if peer is None:
            raise ValueError(f'{text!r}: the peer\'s id is missing; write it like "{PEER_EXAMPLE}"')
        if port == 0:
            raise ValueError(f"{text!r}: nobody can be reached on port 0")
        return
    from .swarm.invite import Invite

    Invite.parse(text)


def check_ipfs_peer(text: str) -> None:
    """ValueError unless this is a TCP multiaddr with the id of a node of IPFS; not all of those are Ed25519 keys."""
    address, _, peer = text.rpartition("/p2p/")
    if not 46 <= len(peer) <= 53 or not all(letter in _BASE58 for letter in peer):
        raise ValueError(f'{text!r}: the peer\'s id is missing; write it like "{PEER_EXAMPLE}"')
    if _parts(address, PEER_EXAMPLE)[3] is not None:
        raise ValueError(f"{text!r}: names two peers")


def relay_of(text: str) -> str | None:
    """The peer id of the relay through which a peer's address leads; None when it leads there directly."""
    at, through, _ = text.partition("/p2p-circuit")
    return at.rpartition("/p2p/")[2] if through else None


def multiaddr_host(text: str) -> str:
    """The host of a TCP multiaddr. ValueError as the checks above."""
    return _parts(text, PEER_EXAMPLE)[1]


def is_local_multiaddr(text: str) -> bool:
    """Whether a multiaddr leads to this machine only."""
    return is_loopback(multiaddr_host(text))


def by_loopback(told: Iterable[str], peer: str) -> tuple[str, ...]:
    """Where a node on this machine is reached even when the machine's network is gone: its first port, on loopback."""
    for text in told:
        if relay_of(text) is None:
            kind, host, port, _ = _parts(text, PEER_EXAMPLE)
            if kind in ("ip4", "ip6") and not is_loopback(host):
                return (f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}",)
    return ()


def is_peer_id(text: str) -> bool:
    """Whether the text looks like an Ed25519 peer id: base58btc of an identity multihash of 38 bytes."""
    return len(text) == 52 and text.startswith("12D3KooW") and all(letter in _BASE58 for letter in text)


def is_swarm_key(text: str) -> bool:
    return re.fullmatch(r"[0-9A-Fa-f]{64}", text) is not None


def check_tcp(text: str) -> None:
    """ValueError unless this is a TCP multiaddr without a peer id."""
    if _parts(text, "/ip4/127.0.0.1/tcp/5001")[3] is not None:
        raise ValueError(f"{text!r}: leave out /p2p/...")
