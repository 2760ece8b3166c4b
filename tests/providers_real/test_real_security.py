"""An upstream that asks for a shell command and a file: no tool gives it either, and a control shows it could."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import trio
from shoal.providers.base import Event, GenerateRequest, ProviderError
from shoal.providers.cli.process import ToolProcess
from shoal.providers.cli.talk import Asked
from shoal.providers.cli.tool import Place, environ_of_call

from tests.providers.fake_vendors import FakeVendors
from tests.providers_real.tools import BIN, KEY, PLACE, TOOLS, Real, converse

ASKED = Asked(prompt="say hello", system="Answer in one line.", model="stub", key=KEY)


def place(folder: Path) -> Place:
    made = Place(folder / "home", PLACE / "cache")
    for path in (made.home, made.work, made.home / "tmp"):
        path.mkdir()
    return made


async def test_neither_happens_in_a_call(real: Real, vendors: FakeVendors, data_dir: Path) -> None:
    async with (provider := real.provider(vendors, "toolcall", data_dir)).running():
        outcome: list[Event] | ProviderError
        try:
            with trio.fail_after(30):
                async with provider.generate(GenerateRequest.of("say hello")) as events:
                    outcome = [event async for event in events]
        except ProviderError as error:
            outcome = error
        await trio.sleep(0.3)  # for whatever might still be on its way
    assert len(vendors.asked) >= 1
    assert list(vendors.targets.iterdir()) == []
    if real.kind != "codex_cli":  # codex answers "unsupported call" by itself and goes on
        assert "asked for a tool" in str(outcome)


async def test_neither_happens_when_the_tool_is_left_to_itself(
    real: Real, vendors: FakeVendors, data_dir: Path, tmp_path: Path
) -> None:
    """The same command without our guard, which would end it at the first sign of a tool: it refuses by itself."""
    tool, where = real.tool(vendors, "toolcall"), place(tmp_path)
    program = tool.found()
    assert program is not None
    command = tool.command(program, ASKED, where)
    for name, text in command.files.items():
        (where.home / name).parent.mkdir(parents=True, exist_ok=True)
        (where.home / name).write_text(text)
    talk = tool.talk(real.kind, ASKED, where)
    talk.asked_for_a_tool = lambda: None  # type: ignore[method-assign]
    process = ToolProcess(command.argv, environ_of_call(tool.environ, where, command), where.work)
    with trio.move_on_after(25):
        async with trio.open_nursery() as nursery:
            try:
                process.start()
                nursery.start_soon(process.serve)
                await converse(process, talk)
            finally:
                await process.kill()
    assert len(vendors.asked) >= 1
    assert list(vendors.targets.iterdir()) == []


# -- the control: the same upstream with the tools on


CONTROL_SDK = """
import asyncio, os
from copilot import CopilotClient, RuntimeConnection
from copilot.session import PermissionHandler
async def main():
    client = CopilotClient(connection=RuntimeConnection.for_stdio(path=os.environ["COPILOT_CLI_PATH"]),
                           env=dict(os.environ), working_directory=os.getcwd(), use_logged_in_user=False)
    await client.start()
    done = asyncio.Event()
    def on(event):
        if getattr(event.type, "value", event.type) in ("session.idle", "session.error"):
            done.set()
    session = await client.create_session(model="stub", streaming=True,
        on_permission_request=PermissionHandler.approve_all, on_event=on,
        provider={"type": "openai", "wire_api": "completions", "base_url": os.environ["COPILOT_PROVIDER_BASE_URL"],
                  "api_key": "k", "max_output_tokens": 256, "max_prompt_tokens": 80000})
    await session.send("say hello")
    await asyncio.wait_for(done.wait(), 20)
    os._exit(0)
asyncio.run(main())
"""


def control(kind: str, vendors: FakeVendors, home: Path) -> tuple[list[str], dict[str, str], str]:
    """argv, variables and stdin of the tool with everything allowed."""
    base = vendors.base("toolcall", TOOLS[kind].path)
    if kind == "codex_cli":
        (home / "config.toml").write_text(
            f'model_provider = "s"\n[model_providers.s]\nname = "s"\nbase_url = "{base}"\nenv_key = "K"\n'
            'wire_api = "responses"\nrequest_max_retries = 0\nstream_max_retries = 0\n'
        )
        argv = ["codex", "exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
        return [*argv, "-m", "stub", "-"], {"CODEX_HOME": str(home), "K": "k"}, "say hello"
    if kind == "claude_code":
        argv = ["claude", "-p", "--bare", "--model", "stub", "--tools", "Bash,Write", "--allowedTools", "Bash", "Write"]
        return argv, {"ANTHROPIC_BASE_URL": base, "ANTHROPIC_API_KEY": "k", "CLAUDE_CONFIG_DIR": str(home)}, "say hello"
    if kind == "gemini_cli":
        (home / ".gemini").mkdir()
        (home / ".gemini/settings.json").write_text('{"security":{"auth":{"selectedType":"gemini-api-key"}}}')
        variables = {"GEMINI_CLI_HOME": str(home), "GOOGLE_GEMINI_BASE_URL": base, "GEMINI_API_KEY": "k"}
        argv = ["gemini", "--skip-trust", "--approval-mode", "yolo", "-m", "stub", "--include-directories"]
        return [*argv, str(vendors.targets), "-p", ""], variables, "say hello"
    variables = {
        "COPILOT_PROVIDER_BASE_URL": base,
        "COPILOT_PROVIDER_API_KEY": "k",
        "COPILOT_PROVIDER_TYPE": "openai",
        "COPILOT_PROVIDER_WIRE_API": "completions",
        "COPILOT_MODEL": "stub",
        "COPILOT_OFFLINE": "true",
        "COPILOT_PROVIDER_MAX_PROMPT_TOKENS": "80000",
        "COPILOT_HOME": str(home),
        "XDG_CACHE_HOME": str(PLACE / "cache"),
        "COPILOT_CLI_PATH": str(BIN / "copilot"),
    }
    if kind == "copilot_cli":
        return ["copilot", "--allow-all-tools", "--allow-all-paths", "--no-auto-update"], variables, "say hello"
    return [str(PLACE / "sdk/bin/python"), "-c", CONTROL_SDK], variables, ""


@pytest.mark.parametrize("kind", TOOLS)
async def test_a_tool_with_everything_allowed_does_it(
    kind: str, vendors: FakeVendors, data_dir: Path, tmp_path: Path
) -> None:
    where = place(tmp_path)
    argv, variables, said = control(kind, vendors, where.home)
    environ = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(where.home), "TMPDIR": str(where.home / "tmp")}
    process = ToolProcess([*argv], environ | variables, where.work)
    with trio.move_on_after(40):
        async with trio.open_nursery() as nursery:
            try:
                process.start()
                nursery.start_soon(process.serve)
                process.say(said.encode())
                process.say_no_more()
                while (line := await process.line()) is not None:
                    sys.stdout.write(line.decode(errors="replace")[:300] + "\n")
            finally:
                sys.stdout.write(process.stderr[-1500:])
                await process.kill()
    assert {path.name for path in vendors.targets.iterdir()} & {"by-shell", "by-tool"}
