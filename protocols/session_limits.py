"""What a session allows a peer, its times, and the hello in which two nodes say who they are."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType

from .peer_id import PeerId

VERSION = 1


class Hello(Struct, frozen=True, kw_only=True):
    """The first frame each way. v: protocol version. agent: "shoal/0.1.0", for people. Unknown fields are ignored.

    papers: what the service shows of its right to be here; the other side's service reads them.
    """

    swarm: str
    peer: PeerId
    agent: str = ""
    v: int = VERSION
    papers: dict[str, Any] | UnsetType = UNSET


class SessionLimits(Struct, frozen=True, kw_only=True):
    """What one peer may cost this node, and the session's times. docs/protocol.md names the limits peers rely on.

    max_calls, max_lookups: the peer may have open here; one more gets the error "busy".
    max_body_bytes: of one body in parts; more gets "too_large". assembly_bytes: of all such bodies held for the peer.
    frames_per_s, frame_burst: a peer that sends more is dropped; this side keeps itself to 80 % of it.
    bytes_per_s, byte_burst: likewise, of everything that comes on the stream.
    adverts_per_s, advert_burst, notes_per_s, note_burst: a peer that sends more is dropped.
    flush_delay_s: a delta waits at most so long for others, or until flush_bytes are queued.
    body_timeout_s: for the params of a call that come in parts, all of them; who takes longer is dropped.
    high_water_bytes: of unsent output above which producers wait.
    farewell_s: that the peer has, after a goaway, to end its own side before the stream is reset.
    busy_ping_s: between signs of life while a call runs; idle_ping_s: else; a peer that misses `misses` is lost.
    """

    max_calls: int = 256
    max_lookups: int = 64
    max_body_bytes: int = 8 * 1024 * 1024
    assembly_bytes: int = 32 * 1024 * 1024
    frames_per_s: float = 20_000
    frame_burst: float = 40_000
    adverts_per_s: float = 2.0
    advert_burst: float = 20
    bytes_per_s: float = 64 * 1024 * 1024
    byte_burst: float = 256 * 1024 * 1024
    notes_per_s: float = 10.0
    note_burst: float = 100
    flush_delay_s: float = 0.020
    flush_bytes: int = 16 * 1024
    high_water_bytes: int = 256 * 1024
    busy_ping_s: float = 0.5
    idle_ping_s: float = 15.0
    misses: int = 3
    hello_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    write_timeout_s: float = 15.0
    farewell_s: float = 0.5

    def __post_init__(self) -> None:
        if self.max_body_bytes > self.assembly_bytes:
            raise ValueError("assembly_bytes must hold at least one body of max_body_bytes")
