"""Google's Gemini CLI (npm `@google/gemini-cli`), in headless mode with stream-json.

    [providers.gemini_cli]
    api_key_env = "GEMINI_API_KEY"
    model = "gemini-2.5-flash"

Temperature, top_p and max_tokens go into a settings file made for each call. The tool never says why an answer ended:
one with as many tokens as it was allowed counts as cut, and one that a content filter cut looks like any other. Seen
with 0.61.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from .. import environment
from ..base import ErrorKind, Provider, Usage
from ..openai_errors import parse
from ..settings import BuildContext
from .provider import CliProvider
from .settings import CliSettings, checked_url, credential_of, hint_of
from .talk import Asked, Fault, Talk
from .tool import Command, Place, Tool

_KEYS = (*environment.spellings("GEMINI_API_KEY"), "GEMINI_API_KEY")

DEFAULT_MODEL = "gemini-2.5-flash"


class Settings(CliSettings, kw_only=True, forbid_unknown_fields=True):
    """`[providers.gemini_cli]`."""

    base_url: str | None = None
    """An API that speaks Gemini, without /v1beta. Unset: Google's."""


class Gemini(Tool):
    kind = "gemini_cli"
    program = "gemini"
    install = "run `npm install -g @google/gemini-cli`"
    honours = frozenset({"stop", "max_tokens", "temperature", "top_p"})

    settings: Settings

    @property
    def key_hint(self) -> str:
        return hint_of(self.settings, _KEYS[2:])

    def command(self, program: Path, asked: Asked, place: Place) -> Command:
        model = asked.model or DEFAULT_MODEL
        environ = {
            "GEMINI_CLI_HOME": str(place.home),
            "GEMINI_SYSTEM_MD": str(place.home / "system.md"),
            "GEMINI_CLI_NO_RELAUNCH": "true",  # else it starts itself once more, with more memory
            "GEMINI_CLI_TRUST_WORKSPACE": "true",
            "GEMINI_TELEMETRY_ENABLED": "false",
            "NODE_COMPILE_CACHE": str(place.cache / "node"),
        }
        if self.settings.base_url is not None:
            environ["GOOGLE_GEMINI_BASE_URL"] = self.settings.base_url
        if asked.key is not None:
            environ["GEMINI_API_KEY"] = asked.key
        argv = (str(program), "--skip-trust", "-m", model, "-o", "stream-json", "-e", "none", "-p", "")
        files = {
            ".gemini/settings.json": msgspec.json.encode(_settings(model, asked)).decode(),
            "system.md": asked.system,
        }
        return Command(argv=argv, environ=environ, files=files)

    def talk(self, name: str, asked: Asked, place: Place) -> GeminiTalk:
        return GeminiTalk(name, asked, self.key_hint, _Line)


def _settings(model: str, asked: Asked) -> dict[str, Any]:
    given = {"temperature": asked.temperature, "topP": asked.top_p, "maxOutputTokens": asked.max_tokens}
    config = {name: value for name, value in given.items() if value is not None}
    overrides = [{"match": {"model": model}, "modelConfig": {"generateContentConfig": config}}] if config else []
    return {
        # Without the type, a base URL makes it look for a gateway's login and exit with 41.
        "security": {"auth": {"selectedType": "gemini-api-key"}, "folderTrust": {"enabled": False}},
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": False},
        "general": {
            "enableAutoUpdate": False,
            "enableAutoUpdateNotification": False,
            "checkpointing": {"enabled": False},
            "retryFetchErrors": False,
            "maxAttempts": 1,
            "plan": {"enabled": False},
        },
        "tools": {"core": ["none"]},
        "mcp": {"allowed": []},
        "model": {"name": model, "maxSessionTurns": 1, "skipNextSpeakerCheck": True, "disableLoopDetection": True},
        "context": {"fileName": ["NONE.md"], "includeDirectoryTree": False, "discoveryMaxDirs": 0},
        "skills": {"enabled": False},
        "hooksConfig": {"enabled": False},
        "experimental": {"enableAgents": False},
        "modelConfigs": {"customOverrides": overrides},
    }


# -- what it says ----------------------------------------------------------------------------------------------


class _Error(Struct):
    message: str = ""


class _Stats(Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    cached: int = 0


class _Line(Struct):
    type: str = ""
    role: str = ""
    content: str = ""
    delta: bool = False
    model: str | None = None
    status: str = ""
    message: str = ""
    error: _Error | None = None
    stats: _Stats | None = None


_JSON = re.compile(r"\{.*\}", re.DOTALL)
_EMPTY = ("empty response", "without a finish reason", "no text")


class GeminiTalk(Talk[_Line]):
    """init, the user's message, the answer in pieces, then one `result`."""

    _complaint = ""

    def opening(self) -> bytes:
        return self.asked.prompt.encode()

    def on(self, line: _Line) -> None:
        match line.type:
            case "init":
                self.model = line.model
            case "message" if line.role == "assistant":
                self.text(line.content)
            case "tool_use" | "tool_result":
                self.asked_for_a_tool()
            case "error":
                self._complaint = line.message
            case "result":
                if line.status != "success":
                    self.failed(self._fault_of(line.error.message if line.error is not None else self._complaint))
                    return
                if line.stats is not None:
                    stats = line.stats
                    self.usage = Usage(stats.input_tokens, stats.output_tokens, stats.cached)
                self.done("length" if self._reached_its_limit() else "stop")

    def _reached_its_limit(self) -> bool:
        # The reason is not shown, but an answer with as many tokens as were allowed has not ended by itself.
        limit = self.asked.max_tokens
        return limit is not None and self.usage is not None and self.usage.completion_tokens >= limit

    @staticmethod
    def _fault_of(said: str) -> Fault:
        if found := _JSON.search(said):
            failure = parse(found[0].encode())
            if isinstance(failure.code, int) and 400 <= failure.code < 600:
                return Fault(status=failure.code, said=failure.message or "")
        if any(words in said for words in _EMPTY):
            return Fault(kind=ErrorKind.UPSTREAM, said="the vendor's answer was empty or had no end")
        if "terminated" in said or "fetch failed" in said:
            return Fault(kind=ErrorKind.CONNECTION, said="the connection to the vendor was lost")
        if "JSON at position" in said:
            return Fault(kind=ErrorKind.UPSTREAM, said="the vendor sent what cannot be read")
        return Fault(said=said.removeprefix("[API Error: ").partition("]")[0])

    def on_exit(self, code: int, stderr: str) -> Fault | None:
        # It exits with the vendor's status, of which a byte is left; some errors show their class on stderr alone.
        if 400 <= code + 256 < 512:
            return Fault(status=code + 256)
        if code == 41:
            return Fault(kind=ErrorKind.AUTH)
        if "ModelNotFoundError" in stderr:
            return Fault(status=404, kind=ErrorKind.UNAVAILABLE)
        if "TerminalQuotaError" in stderr:
            return Fault(kind=ErrorKind.QUOTA)
        if "RetryableQuotaError" in stderr:
            return Fault(status=429)
        return None


def tool_of(settings: Settings, environ: Mapping[str, str]) -> Gemini:
    return Gemini(settings, environ, credential_of(settings, environ, _KEYS))


def missing(environ: Mapping[str, str]) -> str | None:
    """Why the environment alone is not enough to use it, or None when it is."""
    return tool_of(Settings(), environ).missing()


def build(name: str, settings: Settings, context: BuildContext) -> Provider:
    """Raises SettingsError."""
    checked_url("base_url", settings.base_url, "https://generativelanguage.googleapis.com")
    told = environment.text(context.environ, "GEMINI_MODEL")
    settings = msgspec.structs.replace(settings, model=told or settings.model or DEFAULT_MODEL)
    return CliProvider(name, tool_of(settings, context.environ), context.data_dir)
