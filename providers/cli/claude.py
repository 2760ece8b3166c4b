"""Anthropic's Claude Code (npm `@anthropic-ai/claude-code`), in print mode with stream-json.

    [providers.claude_code]
    api_key_env = "ANTHROPIC_API_KEY"      # or CLAUDE_CODE_OAUTH_TOKEN, from `claude setup-token`, for a subscription

Left alone, the tool asks again when an answer was cut by its length limit, refused, or empty, and glues the texts
together. So a stop reason that is no plain end ends the call here, before it can. Seen with 2.1.330.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from .. import environment
from ..base import ErrorKind, Provider, ReasoningDelta, Usage
from ..settings import BuildContext
from .provider import CliProvider
from .settings import CliSettings, checked_url, credential_of, hint_of
from .talk import Asked, Fault, Talk, listed
from .tool import Command, Place, Tool

_OAUTH = "CLAUDE_CODE_OAUTH_TOKEN"
_KEYS = (*environment.spellings("ANTHROPIC_API_KEY"), _OAUTH, "ANTHROPIC_API_KEY")


class Settings(CliSettings, kw_only=True, forbid_unknown_fields=True):
    """`[providers.claude_code]`."""

    base_url: str | None = None
    """An API that speaks Anthropic Messages, without /v1. Unset: Anthropic's."""


class Claude(Tool):
    kind = "claude_code"
    program = "claude"
    install = "run `npm install -g @anthropic-ai/claude-code`"
    honours = frozenset({"stop", "max_tokens"})
    warms = True

    settings: Settings

    @property
    def key_hint(self) -> str:
        return hint_of(self.settings, _KEYS[2:])

    def command(self, program: Path, asked: Asked, place: Place) -> Command:
        oauth = asked.key is not None and asked.key.startswith("sk-ant-oat")
        argv = [str(program), "-p", "--output-format", "stream-json", "--verbose", "--include-partial-messages"]
        argv += ["--input-format", "stream-json"]  # plain text it would wait for only three seconds
        if not oauth:
            argv.append("--bare")  # less of everything, but it reads no token of a subscription
        argv += [
            *("--tools", "", "--strict-mcp-config", "--setting-sources", "", "--no-session-persistence"),
            *("--disable-slash-commands", "--permission-mode", "dontAsk", "--permission-prompts", "none"),
            *("--system-prompt-file", str(place.home / "system.md")),
        ]
        environ = {
            "CLAUDE_CONFIG_DIR": str(place.home / ".claude"),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_ERROR_REPORTING": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_BUG_COMMAND": "1",
            "CLAUDE_CODE_MAX_RETRIES": "0",
            "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",  # else a broken stream is silently asked for again
            "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
            "MAX_THINKING_TOKENS": "0",
        }
        if asked.model is not None:
            argv += ["--model", asked.model]
            environ["ANTHROPIC_SMALL_FAST_MODEL"] = asked.model
        if asked.max_tokens is not None:
            environ["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(asked.max_tokens)
        if self.settings.base_url is not None:
            environ["ANTHROPIC_BASE_URL"] = self.settings.base_url
        if asked.key is not None:
            environ[_OAUTH if oauth else "ANTHROPIC_API_KEY"] = asked.key
        return Command(argv=tuple(argv), environ=environ, files={"system.md": asked.system})

    def talk(self, name: str, asked: Asked, place: Place) -> ClaudeTalk:
        return ClaudeTalk(name, asked, self.key_hint, _Line)


# -- what it says ----------------------------------------------------------------------------------------------


class _Usage(Struct):
    input_tokens: int = 0
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int = 0

    def as_event(self, cost: float | None = None) -> Usage:
        cached = self.cache_read_input_tokens or 0
        prompt = self.input_tokens + cached + (self.cache_creation_input_tokens or 0)
        return Usage(prompt, self.output_tokens, cached, cost=cost)


class _Delta(Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    stop_reason: str | None = None


class _Block(Struct):
    type: str = ""


class _Message(Struct):
    model: str | None = None
    usage: _Usage | None = None


class _Event(Struct):
    type: str = ""
    delta: _Delta | None = None
    content_block: _Block | None = None
    message: _Message | None = None
    usage: _Usage | None = None


class _Line(Struct):
    type: str = ""
    event: _Event | None = None
    model: str | None = None
    error: str | None = None
    api_error_status: int | None = None
    api_error_type: str | None = None
    api_error: str | None = None
    is_api_error_message: bool = False
    is_error: bool = False
    result: str | None = None
    terminal_reason: str | None = None
    usage: _Usage | None = None
    total_cost_usd: float | None = None


class ClaudeTalk(Talk[_Line]):
    """stream_event lines while the vendor streams, then one `result`."""

    _started: _Usage | None = None

    def opening(self) -> bytes:
        message = {"role": "user", "content": self.asked.prompt}
        return msgspec.json.encode({"type": "user", "message": message}) + b"\n"

    def on(self, line: _Line) -> None:
        if line.type == "stream_event" and line.event is not None:
            self._streamed(line.event)
        elif line.type == "assistant" and line.is_api_error_message:
            self.failed(_fault_of(line))
        elif line.type == "result":
            if line.is_error:
                self.failed(_fault_of(line))
            else:
                if line.usage is not None:
                    self.usage = line.usage.as_event()
                self.done("stop")

    def _streamed(self, event: _Event) -> None:
        delta = event.delta or _Delta()
        match event.type:
            case "message_start" if event.message is not None:
                self.model = event.message.model or self.model
                self._started = event.message.usage
            case "content_block_start" if event.content_block is not None:
                if event.content_block.type not in ("text", "thinking", "redacted_thinking"):
                    self.asked_for_a_tool()
            case "content_block_delta" if delta.type == "text_delta":
                self.text(delta.text)
            case "content_block_delta" if delta.type == "thinking_delta" and delta.thinking:
                self.thought(ReasoningDelta(delta.thinking))
            case "message_delta" if delta.stop_reason is not None:
                self._stopped(delta.stop_reason, event.usage)

    def _stopped(self, reason: str, usage: _Usage | None) -> None:
        if usage is not None:
            start = self._started or _Usage()
            self.usage = msgspec.structs.replace(start, output_tokens=usage.output_tokens).as_event()
        match reason:
            case "max_tokens":
                self.done("length", cut=True)
            case "model_context_window_exceeded":
                self.done("length", cut=True)
            case "refusal":
                self.done("content_filter", cut=True)
            case "tool_use":
                self.asked_for_a_tool()
            case _ if not self.said:
                self.failed(Fault(kind=ErrorKind.UPSTREAM, said="it ended without a word"), cut=True)

    def on_exit(self, code: int, stderr: str) -> Fault | None:
        if "unknown option" in stderr or "too old" in stderr:
            return Fault(kind=ErrorKind.UNAVAILABLE, said="this version is too old; install 2.1.330 or later")
        return None


def _fault_of(line: _Line) -> Fault:
    said = line.result or ""
    if line.api_error == "connection_failed":
        return Fault(kind=ErrorKind.CONNECTION, said="the connection to the vendor failed")
    if not line.api_error_status and ("Not logged in" in said or line.error == "authentication_failed"):
        return Fault(kind=ErrorKind.AUTH)
    status = line.api_error_status or 0
    if status == 404 or line.error == "model_not_found":
        return Fault(status=status, kind=ErrorKind.UNAVAILABLE)
    return Fault(status=status, words=listed((line.api_error_type, line.error)), said=said)


def tool_of(settings: Settings, environ: Mapping[str, str]) -> Claude:
    return Claude(settings, environ, credential_of(settings, environ, _KEYS))


def missing(environ: Mapping[str, str]) -> str | None:
    """Why the environment alone is not enough to use it, or None when it is."""
    return tool_of(Settings(), environ).missing()


def build(name: str, settings: Settings, context: BuildContext) -> Provider:
    """Raises SettingsError."""
    checked_url("base_url", settings.base_url, "https://api.anthropic.com")
    told = environment.text(context.environ, "CLAUDE_MODEL")
    settings = msgspec.structs.replace(settings, model=told or settings.model)
    return CliProvider(name, tool_of(settings, context.environ), context.data_dir)
