"""GitHub Copilot's command line (npm `@github/copilot`), in prompt mode with JSON lines.

    [providers.copilot_cli]                     # with a subscription: COPILOT_GITHUB_TOKEN
    base_url = "http://127.0.0.1:8000/v1"       # or with your own key and server
    model = "qwen3"

Its own system prompt cannot be replaced: the request's system text goes in front of the question, and the tool adds the
time of day. copilot_sdk can replace it, and is faster. The tool asks six times before it gives up, with texts glued
together; the first failure ends the call here. Seen with 1.0.102.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from .. import environment
from ..base import ErrorKind, Provider, Usage
from ..settings import BuildContext
from . import copilot_account
from .copilot_account import CopilotSettings, CopilotTool
from .prompt import PLAIN
from .provider import CliProvider
from .talk import Asked, Fault, Talk
from .tool import Command, Place

_USAGE = "usage.json"


class Settings(CopilotSettings, kw_only=True, forbid_unknown_fields=True):
    """`[providers.copilot_cli]`."""


class Copilot(CopilotTool):
    kind = "copilot_cli"
    warms = True

    def command(self, program: Path, asked: Asked, place: Place) -> Command:
        argv = [
            str(program),
            *("--output-format", "json", "--stream", "on", "--no-color", "--no-auto-update"),
            *("--disable-client-telemetry", "--no-custom-instructions", "--no-ask-user", "--disable-builtin-mcps"),
            *("--no-remote", "--no-remote-export", "--no-experimental", "--no-bash-env", "--log-level", "none"),
            *("--usage-output-file", str(place.home / _USAGE)),
            *("--available-tools", "none"),  # the name of no tool: the empty set
        ]
        environ = environ_of(self.settings, asked, place)
        if self.settings.base_url is None and asked.model is not None:
            argv += ["--model", asked.model]
        return Command(argv=tuple(argv), environ=environ)

    def version_argv(self, program: Path) -> tuple[str, ...]:
        return (str(program), "--version", "--no-auto-update")

    def talk(self, name: str, asked: Asked, place: Place) -> CopilotTalk:
        talk = CopilotTalk(name, asked, self.key_hint)
        talk.report = place.home / _USAGE
        return talk


def environ_of(settings: CopilotSettings, asked: Asked, place: Place) -> dict[str, str]:
    """The variables of a call: whom it asks and with what. The first call unpacks 235 MB into the shared cache."""
    environ = {
        "COPILOT_HOME": str(place.home / ".copilot"),
        "COPILOT_AUTO_UPDATE": "false",
        "XDG_CACHE_HOME": str(place.cache),
        "NODE_COMPILE_CACHE": str(place.cache / "node"),
    }
    if settings.base_url is not None:
        environ |= {
            "COPILOT_OFFLINE": "true",
            "COPILOT_PROVIDER_BASE_URL": settings.base_url,
            "COPILOT_PROVIDER_TYPE": "openai",
            "COPILOT_PROVIDER_WIRE_API": "completions",
            "COPILOT_PROVIDER_MAX_PROMPT_TOKENS": str(settings.context_length),
            "COPILOT_PROVIDER_MAX_OUTPUT_TOKENS": str(asked.max_tokens or settings.max_tokens),
        }
        if asked.model is not None:
            environ["COPILOT_MODEL"] = asked.model
        if asked.key is not None:
            environ["COPILOT_PROVIDER_API_KEY"] = asked.key
    elif asked.key is not None:
        environ["COPILOT_GITHUB_TOKEN"] = asked.key
    return environ


# -- what it says ----------------------------------------------------------------------------------------------


class _Data(Struct):
    deltaContent: str = ""  # noqa: N815 - the wire's spelling
    content: str = ""
    model: str | None = None
    statusCode: int | None = None  # noqa: N815
    errorMessage: str = ""  # noqa: N815
    errorType: str = ""  # noqa: N815
    message: str = ""
    outcome: str = ""
    toolRequests: list[object] | None = None  # noqa: N815
    inputTokens: float = 0  # noqa: N815
    outputTokens: float = 0  # noqa: N815
    cacheReadTokens: float = 0  # noqa: N815
    finishReason: str | None = None  # noqa: N815


class _Line(Struct):
    type: str = ""
    data: _Data | None = None
    exitCode: int | None = None  # noqa: N815


class _Tokens(Struct):
    inputTokens: int = 0  # noqa: N815
    outputTokens: int = 0  # noqa: N815
    cacheReadTokens: int = 0  # noqa: N815


class _Metrics(Struct):
    usage: _Tokens | None = None


class _Report(Struct):
    modelMetrics: dict[str, _Metrics] = {}  # noqa: N815


class CopilotTalk(Talk[_Line]):
    """Many events; those that matter are the deltas, the whole message, the first failure, and `result`."""

    def __init__(self, name: str, asked: Asked, key_hint: str) -> None:
        super().__init__(name, asked, key_hint, _Line)
        self._whole = self._finished = False

    def opening(self) -> bytes:
        if self.asked.system == PLAIN:
            return self.asked.prompt.encode()
        return f"{self.asked.system}\n\n{self.asked.prompt}".encode()

    def on(self, line: _Line) -> None:
        data = line.data or _Data()
        match line.type:
            case "assistant.message_delta":
                self.text(data.deltaContent)
            case "assistant.message":
                self._whole = True
                self.model = data.model or self.model
                if data.toolRequests:
                    self.asked_for_a_tool()
            case "assistant.usage":
                self.usage = Usage(int(data.inputTokens), int(data.outputTokens), int(data.cacheReadTokens))
                if data.finishReason == "length":
                    self.done("length", cut=True)
                elif data.finishReason == "content_filter":
                    self.done("content_filter", cut=True)
            case "tool.execution_start":
                self.asked_for_a_tool()
            case "model.call_failure":
                # Five more would follow, up to 58 seconds long.
                self.failed(copilot_account.fault_of(data.statusCode, data.errorType, data.errorMessage), cut=True)
            case "session.error":
                self.failed(copilot_account.fault_of(data.statusCode, data.errorType, data.message))
            case "abort" | "agent.interrupted":
                self.failed(Fault(kind=ErrorKind.CONNECTION, said="it was interrupted"), cut=True)
            case "model.call_finished":
                self._finished = data.outcome == "success"
            case "assistant.turn_end" if self.said and self._finished and not self._whole:
                # Cut by the length limit: now it would ask for more and glue the texts together.
                self.done("length", cut=True)
            case "result":
                if line.exitCode == 0 and (self._whole or not self.said):
                    self.done("stop")
                elif line.exitCode == 0:
                    self.failed(Fault(kind=ErrorKind.CONNECTION, said="it ended in the middle of its answer"))
                else:
                    self.failed(Fault(kind=ErrorKind.UPSTREAM, said=f"it reported exit code {line.exitCode}"))

    def on_report(self, data: bytes) -> None:
        metrics = msgspec.json.decode(data, type=_Report).modelMetrics.values()
        tokens = [m.usage for m in metrics if m.usage is not None]
        if tokens:
            self.usage = Usage(
                sum(t.inputTokens for t in tokens),
                sum(t.outputTokens for t in tokens),
                sum(t.cacheReadTokens for t in tokens),
            )

    def on_exit(self, code: int, stderr: str) -> Fault | None:
        if "No authentication information found" in stderr:
            return Fault(kind=ErrorKind.AUTH)
        if "unknown option" in stderr or "unexpected argument" in stderr:
            return Fault(kind=ErrorKind.UNAVAILABLE, said="this version lacks an option; install 1.0.102 or later")
        return None


def tool_of(settings: Settings, environ: Mapping[str, str]) -> Copilot:
    return Copilot(settings, environ, copilot_account.credential(settings, environ))


def missing(environ: Mapping[str, str]) -> str | None:
    """Why the environment alone is not enough to use it, or None when it is."""
    return tool_of(Settings(), copilot_account.plain_environ(environ)).missing()


def build(name: str, settings: Settings, context: BuildContext) -> Provider:
    """Raises SettingsError."""
    copilot_account.check(settings)
    path = environment.text(context.environ, "COPILOT_CLI_PATH", vendor=True)
    settings = msgspec.structs.replace(settings, binary=settings.binary or path)
    return CliProvider(name, tool_of(settings, context.environ), context.data_dir)
