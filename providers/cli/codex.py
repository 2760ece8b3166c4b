"""OpenAI's Codex CLI (npm `@openai/codex`), by its app-server: JSON-RPC over stdin and stdout.

    [providers.codex_cli]
    api_key_env = "OPENAI_API_KEY"      # or login_dir = "~/.codex" for a ChatGPT login

`codex exec --json` gives the whole text at once and errors without their status; the app-server streams tokens and
names each failure, in the same time (measured with 0.169.0). Every feature that is a tool is switched off, the sandbox
is read-only, nobody approves anything, and a tool that appears all the same ends the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from .. import environment
from ..base import ErrorKind, Provider, ProviderError, ReasoningDelta, Usage
from ..settings import BuildContext
from .provider import CliProvider
from .settings import CliSettings, checked_url, credential_of, hint_of
from .talk import Asked, Fault, Talk
from .tool import Command, Place, Tool

API = "https://api.openai.com/v1"
_KEYS = (*environment.spellings("OPENAI_API_KEY"), "CODEX_API_KEY", "OPENAI_API_KEY")

_KEY_VARIABLE = "SHOAL_CODEX_KEY"

_OFF_OR_FAIL = ("shell_tool", "unified_exec")
"""Switched off by argument: a version that does not know these names refuses to start, and that is as it should be."""

_OFF = [
    "apps",
    "auth_elicitation",
    "browser_use",
    "browser_use_external",
    "code_mode_host",
    "collaboration_modes",
    "computer_use",
    "daemon_auto_start",
    "goals",
    "guardian_approval",
    "hooks",
    "image_generation",
    "in_app_browser",
    "memories",
    "plugin_sharing",
    "plugins",
    "remote_plugin",
    "shell_snapshot",
    "skill_mcp_dependency_install",
    "skill_search",
    "sleep_tool",
    "tool_call_mcp_elicitation",
    "tool_suggest",
    "unbounded_connection_retries",
    "view_image",
    "workspace_dependencies",
]


class Settings(CliSettings, kw_only=True, forbid_unknown_fields=True):
    """`[providers.codex_cli]`."""

    base_url: str | None = None
    """An API that speaks OpenAI Responses, up to and with /v1. Unset: OpenAI's, or what the login is for."""
    login_dir: str | None = None
    """A folder with the auth.json of `codex login`, such as ~/.codex: calls use that login instead of a key."""


class Codex(Tool):
    kind = "codex_cli"
    program = "codex"
    install = "run `npm install -g @openai/codex`"
    honours = frozenset({"stop", "response_format"})
    warms = True

    settings: Settings

    @property
    def key_hint(self) -> str:
        if self.settings.login_dir:
            return f"the login in {self.settings.login_dir} (run `codex login` again)"
        return hint_of(self.settings, _KEYS[2:])

    @property
    def _login(self) -> Path | None:
        return Path(self.settings.login_dir).expanduser() / "auth.json" if self.settings.login_dir else None

    def key(self) -> str | None:
        if self._login is None:
            return self.credential.read()
        if not self._login.is_file():
            raise ProviderError(
                ErrorKind.UNAVAILABLE, f"there is no auth.json in {self.settings.login_dir}; run `codex login`"
            )
        return None

    def command(self, program: Path, asked: Asked, place: Place) -> Command:
        home = place.home / ".codex"
        argv = [str(program), "app-server"]
        for feature in _OFF_OR_FAIL:
            argv += ["--disable", feature]
        environ = {"CODEX_HOME": str(home)}
        if asked.key is not None:
            environ[_KEY_VARIABLE] = asked.key
        links = {} if self._login is None else {".codex/auth.json": self._login}
        return Command(
            argv=tuple(argv), environ=environ, files={".codex/config.toml": self._config(asked)}, links=links
        )

    def _config(self, asked: Asked) -> str:
        lines: dict[str, object] = {
            "approval_policy": "never",
            "sandbox_mode": "read-only",
            "web_search": "disabled",
            "check_for_update_on_startup": False,
            "project_doc_max_bytes": 0,
            "include_permissions_instructions": False,
            "include_environment_context": False,
            "include_apps_instructions": False,
            "include_collaboration_mode_instructions": False,
        }
        own = self._login is None or self.settings.base_url is not None
        if own:
            lines["model_provider"] = "shoal"
        tables: dict[str, dict[str, object]] = {
            "features": dict.fromkeys(_OFF, False),
            "agents": {"enabled": False},
            "analytics": {"enabled": False},
            "feedback": {"enabled": False},
            "history": {"persistence": "none"},
            "otel": {"exporter": "none", "metrics_exporter": "none"},
            "skills": {"include_instructions": False},
            "skills.bundled": {"enabled": False},
        }
        if own:
            # One of its own: `openai_base_url` first tries a WebSocket seven times (6.6 s), OPENAI_BASE_URL is ignored.
            tables["model_providers.shoal"] = {
                "name": "shoal",
                "base_url": self.settings.base_url or API,
                "wire_api": "responses",
                "request_max_retries": 0,
                "stream_max_retries": 0,
                **({"env_key": _KEY_VARIABLE} if self._login is None else {"requires_openai_auth": True}),
            }
        text = "".join(f"{key} = {_toml(value)}\n" for key, value in lines.items())
        for name, table in tables.items():
            text += f"\n[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())
        return text

    def talk(self, name: str, asked: Asked, place: Place) -> CodexTalk:
        return CodexTalk(name, asked, self.key_hint, place.work)


def _toml(value: object) -> str:
    # A JSON string, number or boolean is TOML too, once no control character is left to escape another way.
    return msgspec.json.encode(value).decode()


# -- what it says ----------------------------------------------------------------------------------------------


class _Item(Struct, forbid_unknown_fields=False):
    type: str = ""


class _Error(Struct):
    message: str = ""
    codexErrorInfo: Any = None  # noqa: N815 - the wire's spelling


class _Turn(Struct):
    status: str = ""
    error: _Error | None = None


class _Tokens(Struct):
    inputTokens: int = 0  # noqa: N815
    cachedInputTokens: int = 0  # noqa: N815
    outputTokens: int = 0  # noqa: N815
    reasoningOutputTokens: int = 0  # noqa: N815


class _TokenUsage(Struct):
    total: _Tokens | None = None


class _Params(Struct):
    delta: str | None = None
    item: _Item | None = None
    turn: _Turn | None = None
    tokenUsage: _TokenUsage | None = None  # noqa: N815


class _Thread(Struct):
    id: str = ""


class _Result(Struct):
    thread: _Thread | None = None
    model: str | None = None


class _RpcError(Struct):
    message: str = ""
    code: int = 0


class _Line(Struct):
    id: int | str | None = None
    method: str | None = None
    params: _Params | None = None
    result: _Result | None = None
    error: _RpcError | None = None


_HARMLESS = frozenset({"userMessage", "agentMessage", "reasoning", "plan", "contextCompaction", ""})
"""Items that are no tool."""

_BY_NAME = {
    "contextWindowExceeded": ErrorKind.CONTEXT_LENGTH,
    "usageLimitExceeded": ErrorKind.QUOTA,
    "sessionBudgetExceeded": ErrorKind.QUOTA,
    "rateLimitExceeded": ErrorKind.RATE_LIMITED,
    "serverOverloaded": ErrorKind.OVERLOADED,
    "flexUnavailable": ErrorKind.OVERLOADED,
    "policyCapacityUnavailable": ErrorKind.OVERLOADED,
    "modelNotFound": ErrorKind.UNAVAILABLE,
    "unauthorized": ErrorKind.AUTH,
    "badRequest": ErrorKind.BAD_REQUEST,
    "internalServerError": ErrorKind.UPSTREAM,
    "cyberPolicy": ErrorKind.CONTENT_FILTER,
    "misalignmentPolicyViolation": ErrorKind.CONTENT_FILTER,
}


class CodexTalk(Talk[_Line]):
    """initialize, thread/start, turn/start, then notifications until turn/completed."""

    ends_input = False

    def __init__(self, name: str, asked: Asked, key_hint: str, work: Path) -> None:
        super().__init__(name, asked, key_hint, _Line)
        self._work = work

    def opening(self) -> bytes:
        about = {"clientInfo": {"name": "shoal", "title": "Shoal", "version": "1"}}
        return _rpc("initialize", about, 0) + b"\n"

    def on(self, line: _Line) -> None:
        if line.method is not None and line.id is not None:
            self.asked_for_a_tool()  # it wants an approval, an answer to a question, or a tool of ours
        elif line.method is not None:
            self._told(line.method, line.params or _Params())
        elif line.error is not None:
            self.failed(Fault(kind=ErrorKind.UPSTREAM, said=f"it refused to start ({line.error.code})"), cut=True)
        elif line.id == 0:
            self.reply(_rpc("initialized", {}))
            thread: dict[str, Any] = {
                "cwd": str(self._work),
                "approvalPolicy": "never",
                "sandbox": "read-only",
                "ephemeral": True,
                "baseInstructions": self.asked.system,
            }
            if self.asked.model is not None:
                thread["model"] = self.asked.model
            self.reply(_rpc("thread/start", thread, 1))
        elif line.id == 1 and line.result is not None and line.result.thread is not None:
            self.model = line.result.model
            turn: dict[str, Any] = {
                "threadId": line.result.thread.id,
                "input": [{"type": "text", "text": self.asked.prompt}],
            }
            if self.asked.schema is not None:
                turn["outputSchema"] = self.asked.schema
            self.reply(_rpc("turn/start", turn, 2))

    def _told(self, method: str, params: _Params) -> None:
        match method:
            case "item/agentMessage/delta":
                self.text(params.delta or "")
            case "item/reasoning/summaryTextDelta" if params.delta:
                self.thought(ReasoningDelta(params.delta))
            case "item/started" | "item/completed" if params.item is not None and params.item.type not in _HARMLESS:
                self.asked_for_a_tool()
            case "thread/tokenUsage/updated" if params.tokenUsage is not None and params.tokenUsage.total is not None:
                total = params.tokenUsage.total
                self.usage = Usage(
                    total.inputTokens, total.outputTokens, total.cachedInputTokens, total.reasoningOutputTokens
                )
            case "turn/completed" if params.turn is not None:
                self._completed(params.turn)

    def _completed(self, turn: _Turn) -> None:
        self.says_no_more = True
        if turn.status == "completed":
            self.done("stop")
        elif turn.error is None:
            self.failed(Fault(kind=ErrorKind.UPSTREAM, said=f"its turn ended as {turn.status[:20]}"))
        elif turn.error.message.endswith("reason: max_output_tokens"):
            self.done("length")
        elif turn.error.message.endswith("reason: content_filter"):
            self.done("content_filter")
        else:
            self.failed(_fault_of(turn.error))

    def on_exit(self, code: int, stderr: str) -> Fault | None:
        if "unknown feature flag" in stderr.lower():
            return Fault(kind=ErrorKind.UNAVAILABLE, said="this version has no switch for its shell; install 0.169.0")
        if "Error loading config" in stderr or "config.toml" in stderr:
            return Fault(kind=ErrorKind.UNAVAILABLE, said="this version does not read our settings; install 0.169.0")
        return None


def _fault_of(error: _Error) -> Fault:
    info = error.codexErrorInfo
    if isinstance(info, str) and info in _BY_NAME:
        return Fault(kind=_BY_NAME[info], said=error.message)
    if isinstance(info, dict):
        about = next(iter(info.values()), None)
        status = about.get("httpStatusCode") if isinstance(about, Mapping) else None
        if isinstance(status, int):
            return Fault(status=status, said=error.message)
        return Fault(kind=ErrorKind.CONNECTION, said="the connection to the vendor failed")
    if error.message.startswith("Missing environment variable"):
        return Fault(kind=ErrorKind.AUTH)
    if error.message.startswith(("stream disconnected", "Connection failed")):
        return Fault(kind=ErrorKind.CONNECTION, said="the connection to the vendor was lost")
    return Fault(kind=ErrorKind.UPSTREAM, said=error.message)


def _rpc(method: str, params: dict[str, Any], number: int | None = None) -> bytes:
    message: dict[str, Any] = {"method": method, "params": params}
    if number is not None:
        message["id"] = number
    return msgspec.json.encode(message)


def tool_of(settings: Settings, environ: Mapping[str, str]) -> Codex:
    return Codex(settings, environ, credential_of(settings, environ, _KEYS))


def missing(environ: Mapping[str, str]) -> str | None:
    """Why the environment alone is not enough to use it, or None when it is."""
    return tool_of(Settings(), environ).missing()


def build(name: str, settings: Settings, context: BuildContext) -> Provider:
    """Raises SettingsError."""
    checked_url("base_url", settings.base_url, API)
    environ = context.environ
    told = environment.text(environ, "CODEX_CLI_MODEL") or environment.text(environ, "CODEX_MODEL")
    settings = msgspec.structs.replace(settings, model=told or settings.model)
    return CliProvider(name, tool_of(settings, environ), context.data_dir)
