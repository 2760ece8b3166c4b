"""GitHub Copilot through its SDK (PyPI `github-copilot-sdk`, with the program of npm `@github/copilot`).

    [providers.copilot_sdk]
    python = "~/copilot/bin/python"             # an interpreter with the SDK; unset: the node's own
    base_url = "http://127.0.0.1:8000/v1"       # unset: GitHub, with COPILOT_GITHUB_TOKEN
    model = "qwen3"

Unlike copilot_cli it replaces the tool's system prompt and counts tokens. The SDK runs in a process of its own
(`copilot_sdk_worker.py`). Seen with SDK 1.0.27 and program 1.0.102.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from .. import environment
from ..base import Provider
from ..faults import SettingsError
from ..settings import BuildContext
from . import copilot_account, copilot_sdk_worker
from .copilot import CopilotTalk, environ_of
from .copilot_account import CopilotSettings, CopilotTool
from .provider import CliProvider
from .talk import Asked
from .tool import Command, Place, find

_WORKER = Path(copilot_sdk_worker.__file__)


class Settings(CopilotSettings, kw_only=True, forbid_unknown_fields=True):
    """`[providers.copilot_sdk]`."""

    python: str | None = None
    """An interpreter that has the SDK: a path, or a name on PATH. Unset: the node's own."""
    timeout_s: Annotated[float, Meta(gt=0)] = 600.0
    """Seconds after which the SDK gives up by itself; the router's limits are shorter."""


class CopilotSdk(CopilotTool):
    kind = "copilot_sdk"
    warms = True

    settings: Settings

    def found(self) -> Path | None:
        """The interpreter, when both it and the program are there."""
        if self._program() is None:
            return None
        if self.settings.python is not None:
            return find(self.settings.python, self.environ)
        return Path(sys.executable) if importlib.util.find_spec("copilot") else None

    def _program(self) -> Path | None:
        return super().found()

    def not_found(self) -> str:
        if self._program() is None:
            return super().not_found()
        if self.settings.python is not None:
            return f"there is no interpreter {self.settings.python}; correct python in [providers.{self.kind}]"
        return "the SDK is not installed; run `pip install github-copilot-sdk`, or name a python that has it"

    def version_argv(self, program: Path) -> tuple[str, ...]:
        return (str(program), "-I", str(_WORKER), "--version")

    def command(self, program: Path, asked: Asked, place: Place) -> Command:
        # Model and limit come with the question, so that any question finds the one that waits.
        asked = msgspec.structs.replace(asked, max_tokens=None, model=self.settings.model)
        environ = environ_of(self.settings, asked, place)
        environ |= {"COPILOT_CLI_PATH": str(self._program()), "COPILOT_SKIP_CLI_DOWNLOAD": "1"}
        return Command(argv=(str(program), "-I", str(_WORKER)), environ=environ)

    def talk(self, name: str, asked: Asked, place: Place) -> CopilotSdkTalk:
        return CopilotSdkTalk(name, asked, self.key_hint, self.settings)


# -- what it says ----------------------------------------------------------------------------------------------


class CopilotSdkTalk(CopilotTalk):
    """The same events as the command line's, and `assistant.usage`; the question is one line of JSON."""

    def __init__(self, name: str, asked: Asked, key_hint: str, settings: Settings) -> None:
        super().__init__(name, asked, key_hint)
        self._settings = settings

    def opening(self) -> bytes:
        settings, asked = self._settings, self.asked
        question = {
            "prompt": asked.prompt,
            "system": asked.system,
            "model": asked.model,
            "base_url": settings.base_url,
            "max_tokens": asked.max_tokens or settings.max_tokens,
            "context_length": settings.context_length,
            "timeout_s": settings.timeout_s,
        }
        return msgspec.json.encode(question) + b"\n"


def tool_of(settings: Settings, environ: Mapping[str, str]) -> CopilotSdk:
    return CopilotSdk(settings, environ, copilot_account.credential(settings, environ))


def missing(environ: Mapping[str, str]) -> str | None:
    """Why the environment alone is not enough to use it, or None when it is."""
    return tool_of(Settings(), copilot_account.plain_environ(environ)).missing()


def build(name: str, settings: Settings, context: BuildContext) -> Provider:
    """Raises SettingsError."""
    environ = context.environ
    limit = environment.text(environ, "COPILOT_SDK_TIMEOUT")
    try:
        timeout_s = float(limit) if limit is not None else settings.timeout_s
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s < 1e9:
        raise SettingsError("timeout_s", "is no number of seconds in COPILOT_SDK_TIMEOUT", "write 600, for example")
    settings = msgspec.structs.replace(
        settings,
        model=environment.text(environ, "COPILOT_SDK_MODEL") or settings.model,
        binary=settings.binary or environment.text(environ, "COPILOT_CLI_PATH", vendor=True),
        timeout_s=timeout_s,
    )
    copilot_account.check(settings)
    return CliProvider(name, tool_of(settings, environ), context.data_dir)
