"""Records what the real tools say, for the tests that run without them: python -m tests.providers_real.record [KIND...]

Each recording is a real run of a real tool against the fake vendors (tests/providers/fake_vendors.py), one file each in
tests/providers/cli_fixtures/KIND/SCENARIO.json: the lines of stdout as they came, stderr, the exit code (null: ended by
us, because the answer was over). Folders of the machine, long texts and long lists are cut.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import trio
from shoal.providers.cli.process import ToolProcess
from shoal.providers.cli.talk import Asked
from shoal.providers.cli.tool import Place, environ_of_call

from tests.providers.fake_vendors import FakeVendors
from tests.providers_real.tools import KEY, PLACE, TOOLS, Real

FIXTURES = Path(__file__).parents[1] / "providers/cli_fixtures"
SCENARIOS = (
    *("ok", "s401", "s402", "s403", "s404", "s429", "s429ra", "s500", "s503", "s529"),
    *("drop", "cut", "errmid", "malformed", "empty", "length", "filter", "toolcall"),
)
NO_KEY = "nokey"
PROMPT = "say hello there friend"
LONGEST = 300


async def main(kinds: list[str]) -> None:
    cache = PLACE / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    async with FakeVendors() as vendors:
        for kind in kinds or TOOLS:
            for scenario in (*SCENARIOS, NO_KEY):
                with tempfile.TemporaryDirectory() as folder:
                    found = await record(TOOLS[kind], scenario, vendors, Place(Path(folder), cache))
                path = FIXTURES / kind / f"{scenario}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
                print(kind, scenario, found["code"], len(found["stdout"]), "lines", flush=True)


async def record(real: Real, scenario: str, vendors: FakeVendors, place: Place) -> dict[str, Any]:
    tool = real.tool(vendors, "ok" if scenario == NO_KEY else scenario)
    asked = Asked(prompt=PROMPT, system="Answer in one line.", model="stub", key=None if scenario == NO_KEY else KEY)
    program = tool.found()
    assert program is not None, "run `make providers` first"
    command = tool.command(program, asked, place)
    for name, text in command.files.items():
        path = place.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    place.work.mkdir()
    (place.home / "tmp").mkdir()
    talk = tool.talk(real.kind, asked, place)
    process = ToolProcess(command.argv, environ_of_call(tool.environ, place, command), place.work)
    lines: list[str] = []
    code = None
    async with trio.open_nursery() as nursery:
        process.start()
        nursery.start_soon(process.serve)
        process.say(talk.opening())
        if talk.ends_input:
            process.say_no_more()
        while not talk.cut and (line := await process.line()) is not None:
            lines.append(line.decode())
            talk.hear(line)
            for reply in talk.replies():
                process.say(reply)
            if talk.says_no_more:
                process.say_no_more()
        if not talk.cut:
            code = await process.ended()
        await process.kill()
    clean = Cleaner(place)
    return {
        "tool": real.kind,
        "scenario": scenario,
        "stdout": [clean.line(line) for line in lines],
        "stderr": clean.text(process.stderr)[:2000],
        "code": code,
    }


class Cleaner:
    """Takes out what belongs to the machine, and what is long and means nothing to us."""

    def __init__(self, place: Place) -> None:
        self._folders = {str(place.home): "/home/call", str(place.cache): "/cache", str(PLACE): "/tools"}

    def text(self, text: str) -> str:
        for folder, name in self._folders.items():
            text = text.replace(folder, name)
        return text

    def line(self, line: str) -> str:
        try:
            return json.dumps(self._value(json.loads(line)), ensure_ascii=False, separators=(",", ":"))
        except ValueError:
            return self.text(line)

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)[:LONGEST]
        if isinstance(value, dict):
            return {key: self._value(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._value(item) for item in value[:3]]
        return value


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
