"""Small programs that stand in for command-line tools, and a tool of our own invention that runs them.

    provider = parrot(script(folder, 'print(input())'), data_dir)      # any behaviour
    program = replay(folder, recording("codex_cli", "cut"))            # what a real tool said

The recordings in cli_fixtures/ are of the real tools (tests/providers_real/record.py); the programs here are fakes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from shoal.providers.cli.provider import CliProvider
from shoal.providers.cli.settings import CliSettings, credential_of
from shoal.providers.cli.talk import Asked, Fault, Talk
from shoal.providers.cli.tool import Command, Place, Tool

FIXTURES = Path(__file__).parent / "cli_fixtures"


def script(folder: Path, body: str, name: str = "tool") -> Path:
    """An executable Python program. `--version` is answered before `body` runs."""
    path = folder / name
    head = f"#!{sys.executable} -IS\nimport os, signal, sys, time\n"
    version = (
        "if sys.argv[1:2] == ['--version'] or sys.argv[-1] == '--version':\n    print('fake 1.0')\n    sys.exit()\n"
    )
    path.write_text(head + version + body)
    path.chmod(0o755)
    return path


def recording(kind: str, scenario: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FIXTURES / kind / f"{scenario}.json").read_text())
    return found


def replay(folder: Path, found: Mapping[str, Any], name: str = "tool") -> Path:
    """Says what was recorded once it is asked something, and ends the same way; one that we ended waits for that."""
    said = "".join(f"{line}\n" for line in found["stdout"])
    code = found["code"]
    end = "time.sleep(60)" if code is None else f"os.kill(os.getpid(), {-code})" if code < 0 else f"sys.exit({code})"
    body = (
        f"sys.stdin.readline()\nsys.stdout.write({said!r})\nsys.stdout.flush()\nsys.stderr.write({found['stderr']!r})\n"
    )
    return script(folder, body + f"sys.stderr.flush()\n{end}\n", name)


# -- a tool of our own invention -------------------------------------------------------------------------------


class _Line(Struct):
    text: str = ""
    done: bool = False
    status: int = 0
    said: str = ""
    tool: bool = False


class ParrotTalk(Talk[_Line]):
    def opening(self) -> bytes:
        return self.asked.prompt.encode()

    def on(self, line: _Line) -> None:
        self.text(line.text)
        if line.tool:
            self.asked_for_a_tool()
        if line.status:
            self.failed(Fault(status=line.status, said=line.said))
        if line.done:
            self.done("stop")


class Parrot(Tool):
    """Its lines: {"text": ...}, {"done": true}, {"status": 429, "said": ...}, {"tool": true}."""

    kind = "parrot"
    program = "parrot"
    install = "breed one"
    honours = frozenset({"stop", "max_tokens"})
    argv: tuple[str, ...] = ()

    @property
    def key_hint(self) -> str:
        return "PARROT_KEY"

    def command(self, program: Path, asked: Asked, place: Place) -> Command:
        environ = {"PARROT_KEY": asked.key or ""}
        return Command(argv=(str(program), *self.argv), environ=environ, files={"deep/system.md": asked.system})

    def talk(self, name: str, asked: Asked, place: Place) -> ParrotTalk:
        return ParrotTalk(name, asked, self.key_hint, _Line)


def parrot(
    program: Path | None,
    data_dir: Path,
    *,
    environ: Mapping[str, str] | None = None,
    warms: bool = False,
    **settings: Any,
) -> CliProvider:
    environ = {"PARROT_KEY": "sk-parrot-0001", "PATH": "/usr/bin:/bin"} if environ is None else environ
    settings.setdefault("exit_s", 1.0)
    chosen = CliSettings(binary=str(program) if program is not None else None, **settings)
    tool = Parrot(chosen, environ, credential_of(chosen, environ, ("PARROT_KEY",)))
    tool.warms = warms
    return CliProvider("parrot", tool, data_dir)
