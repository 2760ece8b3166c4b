"""What each tool costs, and what Shoal adds: python -m tests.providers_real.figures [KIND...]

Against a fake vendor that answers at once. alone: the tool by itself, from start to exit; through: the same as a
provider, until its home is gone; first: until the first token, cold and with one kept started; memory: of the whole
tree (PSS, which counts shared pages once), at the first token; cancel: from leaving the call to no process and no home.
Medians of five, taken in turns; times on a machine that does other work as well are upper bounds.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import trio
from shoal.providers.base import GenerateRequest
from shoal.providers.cli.process import ToolProcess, _descendants
from shoal.providers.cli.provider import CliProvider
from shoal.providers.cli.talk import Asked
from shoal.providers.cli.tool import Place, environ_of_call

from tests.providers.fake_vendors import FakeVendors
from tests.providers_real.tools import KEY, PLACE, TOOLS, Real, converse

ROUNDS = 5
REQUEST = GenerateRequest.of("say hello there friend")


async def alone(real: Real, vendors: FakeVendors) -> float:
    tool = real.tool(vendors, "ok")
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), PLACE / "cache")
        asked = Asked(prompt="say hello there friend", system="Answer.", model="stub", key=KEY)
        command = tool.command(tool.found() or Path(), asked, place)
        for name, text in command.files.items():
            (place.home / name).parent.mkdir(parents=True, exist_ok=True)
            (place.home / name).write_text(text)
        place.work.mkdir()
        (place.home / "tmp").mkdir()
        talk = tool.talk(real.kind, asked, place)
        start = time.monotonic()
        process = ToolProcess(command.argv, environ_of_call(tool.environ, place, command), place.work)
        async with trio.open_nursery() as nursery:
            process.start()
            nursery.start_soon(process.serve)
            await converse(process, talk)
            await process.ended()
            took = time.monotonic() - start
            await process.kill()
        return took


async def through(provider: CliProvider) -> float:
    start = time.monotonic()
    async with provider.generate(REQUEST) as events:
        async for _ in events:
            pass
    return time.monotonic() - start


async def first(provider: CliProvider) -> tuple[float, float, float]:
    """(seconds to the first token, MB of memory then, seconds from leaving to nothing left)."""
    before = set(_descendants(os.getpid()))
    start = time.monotonic()
    async with provider.generate(REQUEST) as events:
        await anext(events)
        took = time.monotonic() - start
        memory = sum(pss(pid) for pid in set(_descendants(os.getpid())) - before)
        left = time.monotonic()
    return took, memory / 1e6, time.monotonic() - left


def pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


async def main(kinds: list[str]) -> None:
    print("| tool | alone ms | through ms | first, cold ms | first, kept started ms | memory MB | cancel ms |")
    print("|---|---|---|---|---|---|---|")
    async with FakeVendors() as vendors:
        for kind in kinds or TOOLS:
            with tempfile.TemporaryDirectory() as folder:
                print(await row(TOOLS[kind], vendors, Path(folder)), flush=True)


async def row(real: Real, vendors: FakeVendors, data_dir: Path) -> str:
    (data_dir / "cli").mkdir()
    (data_dir / "cli/cache").symlink_to(PLACE / "cache")
    cold, warm = real.provider(vendors, "ok", data_dir), real.provider(vendors, "ok", data_dir, warm_s=60)
    stall = real.provider(vendors, "stall", data_dir)
    times: dict[str, list[float]] = {name: [] for name in ("alone", "through", "cold", "warm", "memory", "cancel")}
    async with cold.running(), stall.running():
        for _ in range(ROUNDS):
            times["alone"].append(await alone(real, vendors))
            times["through"].append(await through(cold))
            times["cold"].append((await first(cold))[0])
            _, memory, left = await first(stall)
            times["memory"].append(memory / 1000)
            times["cancel"].append(left)
    if cold._tool.warms:
        async with warm.running():
            for i in range(ROUNDS + 1):
                took, _, _ = await first(warm)
                if i:
                    times["warm"].append(took)
                await trio.sleep(5)  # until the next one has started
    shown = [f"{statistics.median(v) * 1000:.0f}" if v else "-" for v in times.values()]
    return f"| {real.kind} | {' | '.join(shown)} |"


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
