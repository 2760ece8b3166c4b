"""What GitHub Copilot's command line and SDK have in common: whom they ask, with which credential, and what it said.

With `base_url` they ask that server with a key of its owner's ("bring your own key"), and nobody else. Without it they
ask GitHub with a token of the owner's subscription.
"""

from __future__ import annotations

from collections.abc import Mapping

from .. import environment
from ..base import ErrorKind, ProviderError
from ..credential import Credential
from ..faults import SettingsError
from .settings import CliSettings, checked_url, credential_of, hint_of
from .talk import Fault
from .tool import Tool

INSTALL = "run `npm install -g @github/copilot`"
_TOKENS = ("COPILOT_GITHUB_TOKEN", "GH_TOKEN", "GITHUB_TOKEN")
"""In the order in which the tool itself looks."""
_KEYS = (*environment.spellings("COPILOT_PROVIDER_API_KEY"), "COPILOT_PROVIDER_API_KEY")


class CopilotSettings(CliSettings, kw_only=True, forbid_unknown_fields=True):
    """What both tables may hold."""

    base_url: str | None = None
    """A server that speaks OpenAI's chat completions, up to and with /v1. Unset: GitHub, with your subscription."""
    context_length: int = 128_000
    """Tokens of a prompt that the model behind base_url takes."""
    max_tokens: int = 4096
    """Tokens of an answer from the model behind base_url, when the request does not say."""


class CopilotTool(Tool):
    """A Tool whose program is `copilot`."""

    program = "copilot"
    install = INSTALL
    settings: CopilotSettings

    def __init__(self, settings: CopilotSettings, environ: Mapping[str, str], credential: Credential) -> None:
        super().__init__(settings, environ, credential)
        if settings.base_url is not None:
            self.honours = self.honours | {"max_tokens"}

    @property
    def key_hint(self) -> str:
        return hint_of(self.settings, _KEYS[2:] if self.settings.base_url is not None else _TOKENS)

    def key(self) -> str | None:
        try:
            return super().key()
        except ProviderError as error:
            own = self.settings
            if own.base_url is not None or own.api_key_env or own.api_key_file or own.api_key_keyring:
                raise
            raise ProviderError(
                ErrorKind.UNAVAILABLE,
                f"no token; set COPILOT_GITHUB_TOKEN, or base_url in [providers.{self.kind}] to bring your own key",
            ) from error


def credential(settings: CopilotSettings, environ: Mapping[str, str]) -> Credential:
    if settings.base_url is not None:
        return credential_of(settings, environ, _KEYS, required=False)  # a server of one's own may want none
    return credential_of(settings, environ, _TOKENS)


def plain_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Without the variables that say nothing about Copilot: many have a GITHUB_TOKEN, and few a subscription with it.

    Where the configuration has a table, its owner wants Copilot, and they count.
    """
    return {name: value for name, value in environ.items() if name not in _TOKENS[1:]}


def check(settings: CopilotSettings) -> None:
    """Raises SettingsError for what the types cannot say."""
    checked_url("base_url", settings.base_url, "http://127.0.0.1:8000/v1")
    if settings.base_url is not None and settings.model is None:
        raise SettingsError("model", "is missing", "name the model that the server at base_url has")


def fault_of(status: int | None, error_type: str, said: str) -> Fault:
    """What `model.call_failure` and `session.error` say."""
    if not status and error_type in ("authentication", "authorization"):
        return Fault(kind=ErrorKind.AUTH)
    if not status and error_type == "quota":
        return Fault(kind=ErrorKind.QUOTA)
    if not status and ("Failed native model HTTP request" in said or "Could not connect" in said):
        return Fault(kind=ErrorKind.CONNECTION, said="the connection to the vendor failed")
    if status == 404:
        return Fault(status=404, kind=ErrorKind.UNAVAILABLE)
    if "No response was returned" in said:
        return Fault(kind=ErrorKind.UPSTREAM, said="it ended without a word")
    return Fault(status=status or 0, words=(error_type,) if error_type else (), said=said)
