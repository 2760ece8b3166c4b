"""How busy a node is at this moment: 32 bytes every two seconds to the peers that use it, and what follows from them.

    digest = version (1), cpu (1: 255 is all cores), running (2), queued (2), reserved (2), Unix time (8, ms),
             memory free (4, MiB), reserved (12); big-endian, reserved bytes are 0

The time is the sender's and only orders digests of one sender; age is counted from arrival.
Why: neighbours that choose the least loaded by figures older than some 10 s all choose the same one (Mitzenmacher 2000,
"How useful is old information?"); then the better of two at random is better.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Sequence
from typing import TypeVar

from msgspec import Struct

NOTE = "load"
DIGEST_BYTES = 32
EVERY_S = 2.0
IN_USE_S = 60.0  # a peer counts as in use for so long after its last call
FRESH_S = 10.0
VERSION = 1

_FORM = struct.Struct(">BBHHHQI12x")
T = TypeVar("T")


class Digest(Struct, frozen=True, kw_only=True):
    """running, queued: requests. cpu: 0 to 1. memory_free_mib: what is available. at_ms: the sender's clock."""

    running: int = 0
    queued: int = 0
    cpu: float = 0.0
    memory_free_mib: int = 0
    at_ms: int = 0

    def encode(self) -> bytes:
        return _FORM.pack(
            VERSION,
            round(min(max(self.cpu, 0.0), 1.0) * 255),
            min(self.running, 0xFFFF),
            min(self.queued, 0xFFFF),
            0,
            self.at_ms or int(time.time() * 1000),
            min(self.memory_free_mib, 0xFFFFFFFF),
        )

    @classmethod
    def decode(cls, data: object) -> Digest | None:
        """None for what is no digest of this version."""
        if not isinstance(data, bytes) or len(data) != DIGEST_BYTES or data[0] != VERSION:
            return None
        _, cpu, running, queued, _, at_ms, memory = _FORM.unpack(data)
        return cls(running=running, queued=queued, cpu=cpu / 255, memory_free_mib=memory, at_ms=at_ms)


class Standing(Struct, frozen=True, kw_only=True):
    """What is known of one peer when a choice is made. calls: of ours, in flight. age_s: of its digest, if any.
    relayed: whether what it says comes through a relay, which somebody pays for."""

    calls: int
    digest: Digest | None = None
    age_s: float = float("inf")
    rtt_s: float | None = None
    relayed: bool = False

    @property
    def fresh(self) -> bool:
        return self.digest is not None and self.age_s <= FRESH_S

    def busy(self) -> int:
        """Requests that a new one would have beside it, as far as is known."""
        told = self.digest.running + self.digest.queued if self.digest is not None and self.fresh else 0
        return max(self.calls, told)


def in_order(peers: Sequence[tuple[Standing, T]], rng: random.Random) -> list[T]:
    """The peers, the one to try first first."""

    def rank(entry: tuple[Standing, T]) -> tuple[int, bool, float]:
        standing = entry[0]
        return standing.busy(), standing.relayed, 1.0 if standing.rtt_s is None else standing.rtt_s

    mixed = list(peers)
    rng.shuffle(mixed)
    ordered = sorted(mixed, key=rank)
    told = [standing for standing, _ in peers if standing.digest is not None]
    if len(peers) > 2 and told and not any(standing.fresh for standing in told):
        first = min(rng.sample(ordered, 2), key=rank)
        ordered.remove(first)
        ordered.insert(0, first)
    return [peer for _, peer in ordered]
