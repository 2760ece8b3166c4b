"""Who may talk to a node: programs of this machine, and from beyond it whoever shows a token. Never a web page unasked.

A page that a browser shows can send requests to 127.0.0.1. Two checks stop it, and need nothing from honest clients:
- Host: a name that an attacker points at 127.0.0.1 (DNS rebinding) arrives in the Host header; only loopback names
  and addresses, and hosts named by the owner, pass.
- Origin and Sec-Fetch-Site: a browser adds them to what a page of another site sends (also to a form's POST as
  text/plain, which needs no permission); such a request is refused. Programs send neither. Origins that the owner has
  named may ask (CORS).

A token proves more than a Host header does, so a request with a good one may come by any name. It is read from
`Authorization: Bearer` and from `x-api-key`; other keys are ignored on loopback, since clients must send one.
"""

from __future__ import annotations

import fnmatch
import functools
import ipaddress
import math
import re
from collections.abc import Iterable, Mapping
from typing import Protocol

from ...protocols.http.message import Header
from ...providers.base import Usage
from ..tokens import PREFIX, Token
from .errors import ApiError

_OWN_SITES = frozenset({"same-origin", "none"})
_OPEN_PATHS = frozenset({"/healthz", "/readyz", "/"})
_OPEN_FILES = "/assets/"
"""The dashboard's page and files hold no data; what they fetch needs the token that the page asks for."""
_EVERYTHING = "/shoal/v1/cache/export"
"""What everybody was answered, whatever models a token is for."""
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_WANTS_ONE = "This node wants a token from other machines: make one with `shoal token new NAME`."
_EXPOSED = "x-shoal-provider, x-shoal-peer, x-shoal-cache, x-shoal-cid, x-shoal-route, retry-after"
_HEADER_LIST = re.compile(r"[A-Za-z0-9, -]{1,1000}")


class TokenDesk(Protocol):
    """Knows the tokens (node/tokens.py)."""

    def find(self, secret: str) -> Token | None: ...
    def good(self, token: Token) -> bool: ...
    def take(self, token: Token) -> float: ...
    def count(
        self, token: Token, *, requests: int = 0, refused: int = 0, prompt_tokens: int = 0, completion_tokens: int = 0
    ) -> None: ...


class TokenGrant:
    """A token while one request runs (grant.Grant)."""

    def __init__(self, desk: TokenDesk, token: Token) -> None:
        self._desk, self.token = desk, token

    @property
    def name(self) -> str:
        return self.token.name

    def check_model(self, model: str | None) -> None:
        if self.token.models and not self._may_ask(model):
            self._desk.count(self.token, refused=1)
            named = ", ".join(self.token.models)
            raise ApiError(403, f"This token is for these models only: {named}.", param="model", code="model_refused")

    def _may_ask(self, model: str | None) -> bool:
        """By name, or by a pattern: `openai/*` is every model of that vendor."""
        if model is None or model in self.token.models:
            return model is not None
        return any(fnmatch.fnmatchcase(model, allowed) for allowed in self.token.models)

    def good(self) -> bool:
        return self._desk.good(self.token)

    def used(self, usage: Usage | None) -> None:
        if usage is not None:
            self._desk.count(self.token, prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)


class Access:
    """The checks. hosts: names or addresses beside loopback that the RPC is reached by, as configured by its owner.

    origins: web origins that may ask ("https://chat.example"). desk: None means that no token is known.
    """

    def __init__(
        self, hosts: Iterable[str] = (), *, origins: Iterable[str] = (), desk: TokenDesk | None = None
    ) -> None:
        self._hosts = frozenset(host.strip("[]").rstrip(".").lower() for host in hosts if host)
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)
        self._desk = desk
        self._known = functools.lru_cache(maxsize=256)(self._is_ours)

    def admit(self, method: str, path: str, headers: Mapping[str, str], *, outside: bool) -> TokenGrant | None:
        """What the request's token permits, if it has one. headers: lower-case names.

        outside: the request did not come by loopback, and needs a token. Raises ApiError 401, 403 or 429.
        """
        grant = self._grant(method, path, headers)
        if grant is None and outside and path not in _OPEN_PATHS and not path.startswith(_OPEN_FILES):
            raise _unauthorized(_WANTS_ONE)
        self.check(headers, any_host=grant is not None or outside)
        return grant

    def let_in(self, headers: Mapping[str, str], *, outside: bool) -> None:
        """What `admit` will say of whoever asks, before a long body is read; nothing is counted. Raises ApiError."""
        known = self._known_token(headers) is not None
        if outside and not known:
            raise _unauthorized(_WANTS_ONE)
        self.check(headers, any_host=known or outside)

    def check(self, headers: Mapping[str, str], *, any_host: bool = False) -> None:
        """Raises ApiError 403 for what a web page may have sent. headers: lower-case names."""
        host = headers.get("host")
        if host is not None and not any_host and not self._known(host):
            raise ApiError(
                403,
                "This Host header is not one of this node's. Use 127.0.0.1 or localhost, or name the host in the "
                "configuration (rpc.hosts).",
                code="host_refused",
            )
        origin = headers.get("origin")
        if origin is not None:
            if self.allows(origin):
                return
            if host is None or origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
                raise ApiError(403, "Requests from web pages of other origins are refused.", code="origin_refused")
        site = headers.get("sec-fetch-site")
        if site is not None and site not in _OWN_SITES:
            raise ApiError(403, "Requests from web pages of other sites are refused.", code="origin_refused")

    def allows(self, origin: str) -> bool:
        """Whether the owner has named this web origin."""
        return bool(self._origins) and origin.lower() in self._origins

    def cors(self, headers: Mapping[str, str]) -> list[Header]:
        """The headers that let a page of a named origin read the answer; none for everybody else."""
        origin = headers.get("origin")
        if origin is None or not self.allows(origin):
            return []
        return [
            ("access-control-allow-origin", origin),
            ("access-control-expose-headers", _EXPOSED),
            ("vary", "origin"),
        ]

    def preflight(self, method: str, headers: Mapping[str, str]) -> list[Header] | None:
        """The answer to a browser that asks whether its page may ask; None when this is no such question."""
        if method != "OPTIONS" or "access-control-request-method" not in headers:
            return None
        wanted = headers.get("access-control-request-headers", "")
        allowed = wanted if _HEADER_LIST.fullmatch(wanted) else "authorization, content-type"
        answer = [
            ("access-control-allow-methods", "GET, POST, DELETE"),
            ("access-control-allow-headers", allowed),
            ("access-control-max-age", "600"),
        ]
        if headers.get("access-control-request-private-network") == "true":  # a page of the internet asks this machine
            answer.append(("access-control-allow-private-network", "true"))
        return answer

    def _grant(self, method: str, path: str, headers: Mapping[str, str]) -> TokenGrant | None:
        token = self._known_token(headers)
        if token is None or self._desk is None:
            return None
        desk = self._desk
        if not token.admin and path.startswith("/shoal/") and (method not in _READS or path == _EVERYTHING):
            desk.count(token, refused=1)
            message = (
                "This token may ask, but neither change the node nor take all its answers away; make one with "
                "`shoal token new NAME --admin`."
            )
            raise ApiError(403, message, code="admin_only")
        if path.startswith("/v1/") and method == "POST" and not path.endswith("/count_tokens"):
            wait = desk.take(token)
            if wait:
                desk.count(token, refused=1)
                raise ApiError(
                    429,
                    f"This token allows {token.rpm} requests a minute; ask again in {math.ceil(wait)} s.",
                    code="rate_limit_exceeded",
                    headers=(("retry-after", str(math.ceil(wait))),),
                )
            desk.count(token, requests=1)
        return TokenGrant(desk, token)

    def _known_token(self, headers: Mapping[str, str]) -> Token | None:
        """The token that was shown, None without one. ApiError 401 for one that is not good."""
        secret = secret_of(headers)
        if secret is None or not secret.startswith(PREFIX) or self._desk is None:
            return None
        token = self._desk.find(secret)
        if token is None:
            raise _unauthorized(
                "This token is not known here, or has expired; `shoal token list` shows those there are."
            )
        return token

    def _is_ours(self, host: str) -> bool:
        name = host_name(host)
        return name is not None and (name in self._hosts or is_loopback(name))


def secret_of(headers: Mapping[str, str]) -> str | None:
    """What a client shows as its key: OpenAI's clients as a bearer token, Anthropic's in a header of their own.

    Some send both, and one of them is for somebody else: the one that can be a token of ours counts.
    """
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    bearer, key = secret.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key")
    if key is None or bearer.startswith(PREFIX):
        return bearer or None
    return key if key.startswith(PREFIX) or not bearer else bearer


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers=(("www-authenticate", "Bearer"),))


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
