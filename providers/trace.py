"""The trace that a request belongs to, on its way to upstreams and peers (W3C Trace Context).

What a caller sends as `traceparent` and `tracestate` goes on; where this node records spans of its own, they stand
between (node/rpc/metrics_otlp.py). Source: https://www.w3.org/TR/trace-context-1/.

    TRACE.set(Trace.read("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"))
    headers += TRACE.get().headers
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

import msgspec
from msgspec import Struct

MAX_STATE_CHARS = 4096
"""A longer `tracestate` is left out, as section 3.3.1.5 allows for anything beyond 512 characters."""

_PARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_STATE = re.compile(r"[\x20-\x7e\t]+")


class Trace(Struct, frozen=True):
    """The caller's span. trace: 32 digits. span, own: 16 digits; own is this node's span, empty where it keeps none."""

    trace: str
    span: str
    flags: str = "00"
    state: str = ""
    own: str = ""

    @classmethod
    def read(cls, parent: str, state: str = "") -> Trace | None:
        """None for what is not well-formed: the request then belongs to no trace (section 3.2.2.5)."""
        match = _PARENT.fullmatch(parent.strip())
        if match is None or match["version"] == "ff" or not (match["trace"].strip("0") and match["span"].strip("0")):
            return None
        if match["version"] == "00" and match["more"]:
            return None
        fit = len(state) <= MAX_STATE_CHARS and _STATE.fullmatch(state) is not None
        return cls(match["trace"], match["span"], match["flags"], state if fit else "")

    @property
    def sampled(self) -> bool:
        """Whether the caller records its spans."""
        return bool(int(self.flags, 16) & 1)

    @property
    def parent(self) -> str:
        """The `traceparent` that whoever is asked next gets."""
        return f"00-{self.trace}-{self.own or self.span}-{self.flags}"

    def through(self, *, recorded: bool) -> Trace:
        """The same for one question. recorded: this node keeps spans, so its own stands between, if anybody's does."""
        return msgspec.structs.replace(self, own=secrets.token_hex(8)) if recorded and self.sampled else self

    @property
    def headers(self) -> list[tuple[str, str]]:
        found = [("traceparent", self.parent)]
        return [*found, ("tracestate", self.state)] if self.state else found


TRACE: ContextVar[Trace | None] = ContextVar("TRACE", default=None)
"""The trace of the request that the running task works for."""
