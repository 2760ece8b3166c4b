"""The parts of an http or https URL that a connection needs."""

from __future__ import annotations

import functools
from urllib.parse import urlsplit

from msgspec import Struct


class Origin(Struct, frozen=True):
    """Where a connection goes; connections are pooled by it."""

    scheme: str
    host: str
    port: int

    @property
    def tls(self) -> bool:
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """host:port as a Host header and CONNECT want it, the port left out where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


class Url(Struct, frozen=True):
    """target: path and query as the request line has them, ASCII and percent-encoded by the caller."""

    origin: Origin
    target: str


@functools.lru_cache(maxsize=256)
def parse_url(text: str) -> Url:
    """Raises ValueError, without the text, which may hold a key."""
    try:
        parts = urlsplit(text)
        port = parts.port
        host = (parts.hostname or "").encode("ascii" if ":" in (parts.hostname or "") else "idna").decode("ascii")
    except ValueError:
        raise ValueError("this URL is malformed") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("a URL must begin with http:// or https:// and name a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL must not hold a user name or password; send an Authorization header")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii() or not target.isprintable() or " " in target:
        raise ValueError("a URL's path and query must be percent-encoded")
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    return Url(Origin(parts.scheme, host, port), target)
