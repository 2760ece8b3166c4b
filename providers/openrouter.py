"""OpenRouter: one key for many vendors' models, over the OpenAI-compatible API with manners of its own.

    OPENROUTER_API_KEY=... shoal run

A probe also asks for the state of the key (GET /key: limit, what is left of it, what was used), which costs nothing.
Its own request fields (`models`, `provider` as an object, `route`, `transforms`, `plugins`) pass through; comments in
the stream, errors inside a 200, cost in the usage and the two kinds of 402 are understood by openai_wire.py and
openai_errors.py.
Variables win over the configuration's keys. Documentation: https://openrouter.ai/docs/api-reference/overview
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import trio
from msgspec import Meta, Struct

from . import environment, openai_compat
from .base import Provider, ProviderError, Status
from .credential import Credential
from .keyring_entry import entry_of
from .settings import BuildContext

BASE_URL = "https://openrouter.ai/api/v1"
DEFAULT_MODEL = "openai/gpt-4o-mini"


class Settings(openai_compat.Settings, kw_only=True, forbid_unknown_fields=True):
    """`[providers.openrouter]`. The list of models is OpenRouter's whole catalogue unless `models` narrows it."""

    base_url: str = BASE_URL
    models_ttl_s: float = 3600.0
    http_referer: str | None = None
    """Your site, for OpenRouter's rankings."""
    app_title: str | None = None
    """Your application's name, for OpenRouter's rankings."""
    key_ttl_s: Annotated[float, Meta(gt=0)] = 60.0
    """How long what was learned about the key is believed."""


def missing(environ: Mapping[str, str]) -> str | None:
    """Why the environment alone is not enough to use OpenRouter, or None when it is."""
    if environment.text(environ, "OPENROUTER_API_KEY", vendor=True) is None:
        return "no key; set OPENROUTER_API_KEY, or api_key_file in [providers.openrouter]"
    return None


def build(name: str, settings: Settings, context: BuildContext) -> Provider:
    """Raises SettingsError."""
    environ = context.environ

    def told(variable: str, otherwise: str | None, *, vendor: bool = False) -> str | None:
        return environment.text(environ, variable, vendor=vendor) or otherwise

    headers = dict(settings.headers)
    if referer := told("OPENROUTER_HTTP_REFERER", settings.http_referer, vendor=True):
        headers["http-referer"] = referer
    if title := told("OPENROUTER_APP_TITLE", settings.app_title, vendor=True):
        headers["x-title"] = headers["x-openrouter-title"] = title
    own = (settings.api_key_env,) if settings.api_key_env else ()
    names = environment.spellings("OPENROUTER_API_KEY", vendor=True)
    model = told("OPENROUTER_MODEL", settings.default_model) or (settings.models or (DEFAULT_MODEL,))[0]
    settings = msgspec.structs.replace(
        settings,
        base_url=told("OPENROUTER_BASE_URL", None) or settings.base_url,
        default_model=model,
        api_key_env=own[0] if own else None if settings.api_key_file or settings.api_key_keyring else names[-1],
        headers=headers,
    )
    openai_compat.check(settings)
    credential = Credential(
        environ=environ,
        variables=own or names,
        file=Path(settings.api_key_file).expanduser() if settings.api_key_file else None,
        keyring=entry_of(settings.api_key_keyring),
    )
    return OpenRouter(name, settings, credential, environ)


class KeyState(Struct, omit_defaults=True):
    """What GET /key says of the key, in US dollars: https://openrouter.ai/docs/api-reference/limits. Not its label,
    which shows parts of it."""

    limit: float | None = None
    limit_remaining: float | None = None
    usage: float | None = None
    usage_daily: float | None = None
    usage_weekly: float | None = None
    usage_monthly: float | None = None
    is_free_tier: bool | None = None
    free_model_daily_requests: float | dict[str, Any] | None = None


class _KeyAnswer(Struct):
    data: KeyState


class OpenRouter(openai_compat.OpenAiCompat):
    """An OpenAI-compatible back end that also knows how its key stands."""

    def __init__(
        self, name: str, settings: Settings, credential: Credential, environ: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(name, settings, credential, environ)
        self._key_url = settings.base_url.rstrip("/") + "/key"
        self._key_ttl_s, self._key_timeout_s = settings.key_ttl_s, settings.probe_timeout_s
        self._key: KeyState | None = None
        self._key_fault = ""
        self._key_until = float("-inf")
        self._asking = trio.Lock()
        self._background: trio.Nursery | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        async with super().running(), trio.open_nursery() as nursery:
            self._background = nursery
            try:
                yield
            finally:
                self._background = None
                nursery.cancel_scope.cancel()

    def facts(self) -> dict[str, Any]:
        credit = msgspec.to_builtins(self._key) if self._key is not None else None
        return super().facts() | ({"credit": credit} if credit is not None else {})

    async def probe(self) -> Status:
        """As of any such server, and not ready when the key's limit is spent or the key is refused."""
        status = await super().probe()
        if not status.ready:
            return status
        if trio.current_time() >= self._key_until:
            if self._key is None or self._background is None:
                await self._learn_key()
            else:  # not in a request's way; the next caller sees what comes of it
                self._key_until = trio.current_time() + self._key_timeout_s + 1
                self._background.start_soon(self._learn_key)
        if self._key_fault:
            return msgspec.structs.replace(status, ready=False, reason=self._key_fault)
        return status

    async def _learn_key(self) -> None:
        async with self._asking:
            with trio.move_on_after(self._key_timeout_s):
                try:
                    code, body = await self.look_up(self._key_url, _KEY_BYTES)
                    self._take_key(code, body)
                except (ProviderError, msgspec.DecodeError, UnicodeDecodeError):
                    pass  # the catalogue was answered: a key whose state cannot be learned may well work
            self._key_until = trio.current_time() + self._key_ttl_s

    def _take_key(self, code: int, body: bytes) -> None:
        self._key_fault = ""
        if code in (401, 403):
            self._key_fault = f"the key is refused (HTTP {code}); check {self.key_hint}"
        elif code == 200:
            self._key = key = msgspec.json.decode(body, type=_KeyAnswer).data
            if key.limit_remaining is not None and key.limit_remaining <= 0:
                self._key_fault = "the key's credit limit is spent; raise it at https://openrouter.ai/settings/keys"


_KEY_BYTES = 64 * 1024
