"""The dashboard at `/`: one page and its files, as they lie in static/. What it shows comes from /shoal/v1/events.

The files hold no data, so they need no token; what they fetch does, where one is required. The content security policy
lets the page load and call nothing but this node, and run no script but these files: a name that a peer makes up stays
text whatever it holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources

from msgspec import Struct

from ...protocols.http.exchange import Exchange
from ...protocols.http.message import Header
from .errors import ApiError

PAGE = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: tuple[Header, ...] = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), microphone=(), geolocation=()"),
    ("cache-control", "no-cache"),
)


class _File(Struct, frozen=True):
    kind: str
    tag: str
    data: bytes


class Dashboard:
    """The handlers for the page and for its files, which are read once."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        for entry in resources.files(__package__).joinpath("static").iterdir():
            kind = TYPES.get("." + entry.name.rpartition(".")[2])
            if kind is not None:
                data = entry.read_bytes()
                self._files[entry.name] = _File(kind, f'"{hashlib.sha256(data).hexdigest()[:16]}"', data)

    async def page(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        await self.file(exchange, headers, PAGE)

    async def file(self, exchange: Exchange, headers: Mapping[str, str], name: str) -> None:
        found = self._files.get(name)
        if found is None:
            raise ApiError(404, "The dashboard has no such file; it is at /.", code="unknown_url")
        if headers.get("if-none-match") == found.tag:
            await exchange.respond(304, b"", [("etag", found.tag), *HEADERS])
            return
        await exchange.respond(200, found.data, [("content-type", found.kind), ("etag", found.tag), *HEADERS])
