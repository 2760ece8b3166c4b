"""What became of one try at one candidate, and how the list of tries (the route) is written for people and headers."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from msgspec import Struct

ANSWERED = "ok"
SKIPPED = "skipped"
LOST = "lost"  # another source (the swarm's cache) was faster

MAX_ROUTE_CHARS = 1024
_UNSAFE = re.compile(r"[^A-Za-z0-9_.:/@+-]")


class Attempt(Struct, kw_only=True, omit_defaults=True):
    """One entry of a route.

    outcome: ANSWERED, SKIPPED (not asked, `reason` says why), LOST, or the ErrorKind of the failure. ms: milliseconds
    from the start of the attempt to its end; first_token_ms: to its first event, None when there was none. dropped: the
    options of the request that the provider could not honour and left out. way: how it went on from what an earlier
    attempt had said ("prefix", "replay", "restart"), or "join" for a generation of another node; empty when it began.
    via: the back end that a provider with several has chosen.
    """

    provider: str
    outcome: str
    model: str | None = None
    peer: str | None = None
    ms: float = 0.0
    first_token_ms: float | None = None
    reason: str = ""
    dropped: tuple[str, ...] = ()
    way: str = ""
    via: str = ""

    @property
    def name(self) -> str:
        """Who was tried: `backend_manager/gpu1`."""
        return f"{self.provider}/{self.via}" if self.via else self.provider

    def sentence(self) -> str:
        """`openrouter: rate_limited (its limit is reached)`, for a message to the caller."""
        return f"{self.name}: {self.outcome}" + (f" ({self.reason})" if self.reason else "")


@functools.lru_cache(maxsize=1024)
def header_safe(text: str, limit: int = 200) -> str:
    """A name from anywhere as the value of a header: printable, no separators, bounded."""
    return _UNSAFE.sub("_", text[:limit])


CACHES = frozenset({"memory", "disk", "swarm", "dht"})


def route_header(route: Iterable[Attempt], cache: str = "miss") -> str:
    """The route as the value of `x-shoal-route`: `NAME;OUTCOME;MILLISECONDS`, a comma between attempts, oldest first.
    Where options were left out, `;dropped=NAME+NAME` follows.

    The milliseconds of an attempt whose stream still runs are those until its first event. An answer out of a cache
    ends with `cache:TIER;hit;0`.
    """
    entries = []
    for attempt in route:
        ms = attempt.first_token_ms if attempt.first_token_ms is not None and not attempt.ms else attempt.ms
        left_out = f";dropped={header_safe('+'.join(attempt.dropped))}" if attempt.dropped else ""
        entries.append(f"{header_safe(attempt.name)};{attempt.outcome};{ms:.0f}{left_out}")
    if cache in CACHES:
        entries.append(f"cache:{cache};hit;0")
    text = ", ".join(entries)
    return text if len(text) <= MAX_ROUTE_CHARS else text[:MAX_ROUTE_CHARS].rpartition(",")[0]
