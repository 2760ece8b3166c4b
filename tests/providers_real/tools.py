"""The real tools as installed by `make providers`, each pointed at a fake vendor."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import msgspec
from shoal.providers.cli.process import ToolProcess
from shoal.providers.cli.provider import CliProvider
from shoal.providers.cli.talk import Talk
from shoal.providers.cli.tool import Tool
from shoal.providers.settings import BuildContext

from tests.providers.fake_vendors import FakeVendors

PLACE = Path(__file__).parents[2] / "build/providers"
BIN = PLACE / "node_modules/.bin"
KEY = "sk-planted-7f3a9c51e0d2"


class Real(NamedTuple):
    """program: of npm. path: what the base URL has after the scenario. variable: where its key comes from."""

    kind: str
    program: str
    module: str
    variable: str
    path: str = ""
    extra: Mapping[str, Any] = {}

    @property
    def code(self) -> ModuleType:
        return importlib.import_module(f"shoal.providers.cli.{self.module}")

    def table(self, vendors: FakeVendors, scenario: str, **more: Any) -> dict[str, Any]:
        return {
            "binary": str(BIN / self.program),
            "base_url": vendors.base(scenario, self.path),
            "model": "stub",
            "warm_s": 0,
            **self.extra,
            **more,
        }

    def environ(self, key: str | None = KEY) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], **({self.variable: key} if key else {})}

    def provider(self, vendors: FakeVendors, scenario: str, data_dir: Path, **more: Any) -> CliProvider:
        key = more.pop("key", KEY)
        settings = msgspec.convert(self.table(vendors, scenario, **more), self.code.Settings)
        provider = self.code.build(self.kind, settings, BuildContext(data_dir, self.environ(key)))
        assert isinstance(provider, CliProvider)
        return provider

    def tool(self, vendors: FakeVendors, scenario: str, **more: Any) -> Tool:
        settings = msgspec.convert(self.table(vendors, scenario, **more), self.code.Settings)
        tool = self.code.tool_of(settings, self.environ())
        assert isinstance(tool, Tool)
        return tool


TOOLS = {
    real.kind: real
    for real in (
        Real("codex_cli", "codex", "codex", "OPENAI_API_KEY", "/v1"),
        Real("claude_code", "claude", "claude", "ANTHROPIC_API_KEY"),
        Real("gemini_cli", "gemini", "gemini", "GEMINI_API_KEY"),
        Real("copilot_cli", "copilot", "copilot", "COPILOT_PROVIDER_API_KEY", "/v1"),
        Real(
            "copilot_sdk",
            "copilot",
            "copilot_sdk",
            "COPILOT_PROVIDER_API_KEY",
            "/v1",
            {"python": str(PLACE / "sdk/bin/python")},
        ),
    )
}


async def converse(process: ToolProcess, talk: Talk[Any]) -> None:
    """Say to a tool what its talk wants said, and hear it to its end."""
    process.say(talk.opening())
    if talk.ends_input:
        process.say_no_more()
    while (line := await process.line()) is not None:
        talk.hear(line)
        for reply in talk.replies():
            process.say(reply)
        if talk.says_no_more:
            process.say_no_more()
