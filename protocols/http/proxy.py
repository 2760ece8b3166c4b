"""Which proxy, if any, a connection goes through, as the environment says.

HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY in either case, the lower-case one first; as in Go's net/http,
loopback is never sent to a proxy, and HTTP_PROXY is not believed where a CGI server may have made it of a header.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from .url import Origin


class Proxy(Struct, frozen=True):
    """authorization: the Proxy-Authorization value, when the proxy's URL has a user name; never shown."""

    origin: Origin
    authorization: str | None = None

    def __repr__(self) -> str:
        return f"Proxy({self.origin})"


class Proxies:
    """The environment's proxies, read once. Raises ValueError for a proxy URL that cannot be used."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        def setting(name: str) -> str:
            return environ.get(name.lower()) or environ.get(name) or ""

        everything = setting("ALL_PROXY")
        http = environ.get("http_proxy") or ("" if "REQUEST_METHOD" in environ else environ.get("HTTP_PROXY", ""))
        self._by_scheme = {
            "http": _parse_proxy("HTTP_PROXY", http or everything),
            "https": _parse_proxy("HTTPS_PROXY", setting("HTTPS_PROXY") or everything),
        }
        self._exceptions = [entry.strip().lower() for entry in setting("NO_PROXY").split(",") if entry.strip()]

    def for_origin(self, origin: Origin) -> Proxy | None:
        proxy = self._by_scheme[origin.scheme]
        return None if proxy is None or self._is_direct(origin) else proxy

    def _is_direct(self, origin: Origin) -> bool:
        host = origin.host.lower().rstrip(".")
        address = _address(host)
        if host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback):
            return True
        return any(_matches(entry, host, address, origin.port) for entry in self._exceptions)


def _matches(entry: str, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int) -> bool:
    """Whether a NO_PROXY entry covers a host: "*", a domain and all below it, an address, a network; or with a port."""
    if entry == "*":
        return True
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
        except ValueError:
            pass
    name, colon, digits = entry.rpartition(":")
    if colon and digits.isdigit() and (":" not in name or name.endswith("]")):
        if int(digits) != port:
            return False
        entry = name.strip("[]")
    entry = entry.removeprefix("*").removeprefix(".")
    return host == entry or (address is None and host.endswith(f".{entry}"))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _parse_proxy(variable: str, text: str) -> Proxy | None:
    if not text:
        return None
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise ValueError(f"{variable} is not a proxy that can be used; write it as http://host:port")
    authorization = None
    if parts.username:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {base64.b64encode(credentials.encode()).decode()}"
    return Proxy(Origin(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)), authorization)
