"""Access tokens: who may ask this node from beyond its machine, for which models, how often, and how much was used.

A token is 32 random bytes; only its SHA-256 is kept (a digest of that much chance cannot be searched), in tokens.json,
which `shoal token` writes and a running node reads again whenever it has changed. Usage is token_usage.json, which
only the node writes.

    book = TokenBook(data_dir)
    token, secret = book.new("ci", models=("smollm2",), rpm=60)
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path

import msgspec
import trio
from msgspec import Struct

from . import paths

PREFIX = "shoal_"
"""How every token begins, so that scanners for leaked secrets can know one."""

WRITE_S = 30.0
"""Seconds between two writings of the usage."""

log = logging.getLogger("shoal.tokens")


class TokenError(Exception):
    """A token cannot be made, found or read. One line with the remedy."""


class Token(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """models: the only ones it may ask for; () is any. rpm: requests a minute. Times: Unix, in seconds.

    admin: it may also change the node (join a swarm, pin and forget answers).
    """

    id: str
    name: str
    digest: str
    created: float
    expires: float | None = None
    models: tuple[str, ...] = ()
    rpm: int | None = None
    admin: bool = False

    def expired(self, now: float) -> bool:
        return self.expires is not None and now >= self.expires


class TokenUsage(Struct, kw_only=True):
    """What was asked with a token. last: Unix time of the last request, in seconds."""

    requests: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    last: float = 0.0


class _File(Struct):
    tokens: list[Token] = []


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class TokenBook:
    """The tokens of a data directory, as files."""

    def __init__(self, data: Path) -> None:
        self.file, self.usage_file = data / "tokens.json", data / "token_usage.json"

    def all(self) -> list[Token]:
        """Raises TokenError."""
        try:
            return msgspec.json.decode(self.file.read_bytes(), type=_File).tokens
        except FileNotFoundError:
            return []
        except OSError as error:
            raise TokenError(f"{self.file}: cannot be read: {paths.reason(error)}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise TokenError(f"{self.file}: is damaged; remove it and make new tokens") from None

    def new(
        self,
        name: str,
        *,
        models: Sequence[str] = (),
        rpm: int | None = None,
        expires: float | None = None,
        admin: bool = False,
    ) -> tuple[Token, str]:
        """A new token and its secret, which is not kept. Raises TokenError for a name that is taken or unusable."""
        if not name or len(name) > 64 or not name.isprintable() or name != name.strip():
            raise TokenError("a token's name wants 1 to 64 printable characters, and no blanks around them")
        secret = PREFIX + secrets.token_urlsafe(32)
        with self._locked():
            tokens = self.all()
            if any(token.name == name for token in tokens):
                raise TokenError(f"there is a token {name!r} already; choose another name, or revoke that one first")
            token = Token(
                id=secrets.token_hex(4),
                name=name,
                digest=digest_of(secret),
                created=time.time(),
                expires=expires,
                models=tuple(models),
                rpm=rpm,
                admin=admin,
            )
            self._write([*tokens, token])
        return token, secret

    def revoke(self, name: str) -> Token:
        """Ends a token, by its name or id, at once. Raises TokenError when there is none."""
        with self._locked():
            tokens = self.all()
            found = next((token for token in tokens if name in (token.name, token.id)), None)
            if found is None:
                raise TokenError(f"there is no token {name!r}; `shoal token list` shows those there are")
            self._write([token for token in tokens if token is not found])
        return found

    def usage(self) -> dict[str, TokenUsage]:
        """By the tokens' ids, as the node wrote it last; what cannot be read counts as nothing."""
        try:
            return msgspec.json.decode(self.usage_file.read_bytes(), type=dict[str, TokenUsage])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}

    def stamp(self) -> tuple[int, int, int] | None:
        """Changes whenever the file does; None while there is none."""
        try:
            status = self.file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def write_usage(self, usage: dict[str, TokenUsage]) -> None:
        """Raises OSError."""
        paths.write_private(self.usage_file, msgspec.json.encode(usage), replace=True)

    def _write(self, tokens: list[Token]) -> None:
        try:
            paths.write_private(self.file, msgspec.json.encode(_File(tokens)) + b"\n", replace=True)
        except OSError as error:
            raise TokenError(f"{self.file}: cannot be written: {paths.reason(error)}") from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            handle = os.open(self.file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TokenError(f"{self.file.parent}: cannot be written: {paths.reason(error)}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


class _Bucket:
    """Requests that a token has left: `rpm` at most, refilled evenly."""

    def __init__(self, rpm: int, now: float) -> None:
        self.rpm, self._left, self._at = rpm, float(rpm), now

    def take(self, now: float) -> float:
        """0 when a request may go on, else the seconds until one may."""
        self._left = min(self.rpm, self._left + (now - self._at) * self.rpm / 60)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) * 60 / self.rpm


class Tokens:
    """The tokens of a running node: found by their secrets, counted, and limited."""

    def __init__(self, book: TokenBook) -> None:
        self._book = book
        self._stamp: tuple[int, int, int] | None = None
        self._tokens: list[Token] = []
        self._buckets: dict[str, _Bucket] = {}
        self._changed = False
        self.usage = book.usage()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Writes the usage now and then, and at the end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_usage)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
                self._save()

    def find(self, secret: str) -> Token | None:
        """The token of a secret, if it is good now. Takes the same time whichever token it is."""
        self._read()
        wanted, found = digest_of(secret), None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, wanted):
                found = token
        return found if found is not None and not found.expired(time.time()) else None

    def good(self, token: Token) -> bool:
        """Whether a token that was found is good still: neither revoked since nor expired."""
        self._read()
        return not token.expired(time.time()) and any(token.id == each.id for each in self._tokens)

    def take(self, token: Token) -> float:
        """Counts a request: 0 when it may go on, else the seconds after which one may."""
        if token.rpm is None:
            return 0.0
        now = trio.current_time()
        bucket = self._buckets.get(token.id)
        if bucket is None or bucket.rpm != token.rpm:
            bucket = self._buckets[token.id] = _Bucket(token.rpm, now)
        return bucket.take(now)

    def count(
        self, token: Token, *, requests: int = 0, refused: int = 0, prompt_tokens: int = 0, completion_tokens: int = 0
    ) -> None:
        usage = self.usage.setdefault(token.id, TokenUsage())
        usage.requests += requests
        usage.refused += refused
        usage.prompt_tokens += prompt_tokens
        usage.completion_tokens += completion_tokens
        usage.last = time.time()
        self._changed = True

    def all(self) -> list[Token]:
        self._read()
        return list(self._tokens)

    def _read(self) -> None:
        stamp = self._book.stamp()
        if stamp == self._stamp:
            return
        try:
            self._tokens = self._book.all()
        except TokenError as error:
            log.error("no token is good until this is mended: %s", error)  # noqa: TRY400 (the line says it all)
            self._tokens = []
        self._stamp = stamp

    async def _write_usage(self) -> None:
        while True:
            await trio.sleep(WRITE_S)
            self._save()

    def _save(self) -> None:
        if not self._changed:
            return
        self._changed = False
        try:
            self._book.write_usage(self.usage)
        except OSError as error:
            log.warning("the usage of tokens cannot be written: %s", paths.reason(error))
