"""What the router is asked: a request, and everything about the asking that cannot change the answer.

ask = Ask(request=GenerateRequest.of("What is the opposite of hot?"), deadline=trio.current_time() + 60)
"""

from __future__ import annotations

import math
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from ...cache.key import Key
from ...protocols.peer_id import PeerId
from ...providers.base import GenerateRequest
from ...providers.trace import Trace

LOCAL = "local"
"""The caller of a request that came from this machine; any other caller is a peer id."""


Publish = Literal["none", "swarm", "ipfs"]


class CacheControl(Struct, frozen=True, kw_only=True):
    """How the caller wants the cache used (RFC 9111, section 5.2.1; `only_if_cached` without an answer is an error).

    publish: how far the answer may go: "none" keeps it to this node, "swarm" lets peers fetch it, "ipfs" hands it to
    the IPFS daemon, too, when there is one. None: the rules of the configuration.
    """

    no_cache: bool = False
    no_store: bool = False
    max_age: float | None = None
    only_if_cached: bool = False
    publish: Publish | None = None

    @property
    def fresh(self) -> bool:
        """Whether only an answer that is made now will do."""
        return self.no_cache or self.no_store or self.max_age == 0

    @classmethod
    def parse(cls, header: str | None, publish: Publish | None = None) -> CacheControl:
        """The directives of a Cache-Control header. Unknown ones are ignored, as the RFC asks.

        A max-age that is not a number of seconds counts as 0: what cannot be read must not hand out something stale.
        """
        if not header:
            return ANYTHING if publish is None else cls(publish=publish)
        named = {}
        for part in header.lower().split(","):
            name, _, value = part.strip().partition("=")
            named[name.strip()] = value.strip().strip('"')
        max_age: float | None = None
        if "max-age" in named:
            digits = named["max-age"]
            max_age = float(digits) if digits.isascii() and digits.isdigit() and len(digits) < 12 else 0.0
        return cls(
            no_cache="no-cache" in named,
            no_store="no-store" in named,
            max_age=max_age,
            only_if_cached="only-if-cached" in named,
            publish=publish,
        )


ANYTHING = CacheControl()


class Ask(Struct, kw_only=True):
    """One call of the router.

    deadline: trio time at which the caller no longer wants an answer. first_token_s, idle_s: seconds that one attempt
    may be silent before its first event and between two events. hops: how often the request may still be forwarded.
    seen: the peers that it has passed. caller: LOCAL or the peer that forwards it. allow_fallback: whether a second
    candidate may be tried. whole: the caller reads nothing before the end, so that an answer that breaks off may be
    made anew.
    """

    request: GenerateRequest
    deadline: float = math.inf
    first_token_s: float = 60.0
    idle_s: float = 30.0
    hops: int = 1
    seen: frozenset[PeerId] = frozenset()
    cache_control: CacheControl = ANYTHING
    caller: str = LOCAL
    allow_fallback: bool = True
    whole: bool = False
    began: float = 0.0
    """When the router was asked (trio time); it fills that in where nobody has."""
    token: str = ""
    """The name of the token that the caller showed, where it showed one."""

    asked: GenerateRequest | None = None
    """The request as the caller wrote it, before routes and defaults; the router fills it in."""
    trace: Trace | None = None
    """The trace that the caller named (W3C Trace Context); it goes on to whoever is asked."""
    known: Key | None = None
    """The key of `request` as it stands, where the caller has it from before."""

    key: Key | UnsetType | None = UNSET
    """The request's cache key, or None when it has none; the router computes it once and keeps it here."""

    @property
    def from_here(self) -> bool:
        return self.caller == LOCAL

    @property
    def party(self) -> str:
        """Who shares the node's room with others: a peer, a token of this machine, or all who show none."""
        return f"{self.caller} {self.token}" if self.token else self.caller
