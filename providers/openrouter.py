"""OpenRouter: one key for many vendors' models, over the OpenAI-compatible API with manners of its own.

    OPENROUTER_API_KEY=... shoal run

Its own request fields (`models`, `provider`, `route`, `transforms`, `plugins`) pass through; comments in the stream,
errors inside a 200, cost in the usage and the two kinds of 402 are understood by openai_wire.py and openai_errors.py.
Variables win over the configuration's keys. Documentation: https://openrouter.ai/docs/api-reference/overview
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from . import environment, openai_compat
from .base import Provider
from .credential import Credential
from .settings import BuildContext

BASE_URL = "https://openrouter.ai/api/v1"
DEFAULT_MODEL = "openai/gpt-4o-mini"


class Settings(openai_compat.Settings, kw_only=True, forbid_unknown_fields=True):
    """`[providers.openrouter]`. The list of models is OpenRouter's whole catalogue unless `models` narrows it."""

    base_url: str = BASE_URL
    images: bool = True
    models_ttl_s: float = 3600.0
    http_referer: str | None = None
    """Your site, for OpenRouter's rankings."""
    app_title: str | None = None
    """Your application's name, for OpenRouter's rankings."""


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
        api_key_env=own[0] if own else names[-1],
        headers=headers,
    )
    openai_compat.check(settings)
    credential = Credential(
        environ=environ,
        variables=own or names,
        file=Path(settings.api_key_file).expanduser() if settings.api_key_file else None,
    )
    return openai_compat.OpenAiCompat(name, settings, credential, environ)
