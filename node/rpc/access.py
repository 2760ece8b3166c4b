"""Who may talk to a node on loopback: programs of this machine, not web pages.

A page that a browser shows can send requests to 127.0.0.1. Two checks stop it, and need nothing from honest clients:
- Host: a name that an attacker points at 127.0.0.1 (DNS rebinding) arrives in the Host header; only loopback names
  and addresses, and hosts named by the owner, pass.
- Origin and Sec-Fetch-Site: a browser adds them to what a page of another site sends (also to a form's POST as
  text/plain, which needs no permission); such a request is refused. Programs send neither.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Mapping

from .errors import ApiError

_OWN_SITES = frozenset({"same-origin", "none"})


class Access:
    """The checks. hosts: names or addresses beside loopback that the RPC is reached by, as configured by its owner."""

    def __init__(self, hosts: Iterable[str] = ()) -> None:
        self._hosts = frozenset(host.strip("[]").rstrip(".").lower() for host in hosts if host)
        self._known = functools.lru_cache(maxsize=256)(self._is_ours)

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises ApiError 403 for what a web page may have sent. headers: lower-case names."""
        host = headers.get("host")
        if host is not None and not self._known(host):
            raise ApiError(
                403,
                "This Host header is not one of this node's. Use 127.0.0.1 or localhost, or name the host in the "
                "configuration.",
                code="host_refused",
            )
        origin = headers.get("origin")
        if origin is not None and (
            host is None or origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower())
        ):
            raise ApiError(403, "Requests from web pages of other origins are refused.", code="origin_refused")
        site = headers.get("sec-fetch-site")
        if site is not None and site not in _OWN_SITES:
            raise ApiError(403, "Requests from web pages of other sites are refused.", code="origin_refused")

    def _is_ours(self, host: str) -> bool:
        name = host_name(host)
        return name is not None and (name in self._hosts or is_loopback(name))


def host_name(host: str) -> str | None:
    """The name or address in a Host header, lower case, without port and brackets; None when it is malformed."""
    if host.startswith("["):
        address, bracket, rest = host[1:].partition("]")
        if not bracket or (rest and not _is_port(rest)):
            return None
        return address.lower()
    name, colon, port = host.partition(":")
    if colon and not _is_port(":" + port):
        return None
    return name.rstrip(".").lower() or None


def is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and (text[1:].isdigit() or not text[1:])
