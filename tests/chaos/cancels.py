"""Callers who leave at random, at the node that works and at one that forwards: `python -m tests.chaos.cancels`.

Two real nodes. One has an upstream and a command-line tool whose every call is a tree of three processes, and lends
both; the other has nothing of its own. Each caller asks one of them for one of the two, and leaves after a random time.
In the end nothing may be left of it on either node: no generation, task, process or descriptor. Exit status 1
otherwise.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import trio
from msgspec import Struct
from shoal.protocols.http.client import Client, ClientError

from tests.chaos.nodes import Upstream, giving, status, until_known
from tests.e2e.node_process import NodeProcess
from tests.providers.fake_tools import script

AT_ONCE = 10
LEAVES_S = 0.4
GONE_S = 1.0
SETTLE_S = 3.0
TREE = """
open({begun!r}, "a").write("x")
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    time.sleep(600)
time.sleep(600)
"""


def lending(folder: Path, url: str) -> str:
    """The configuration of a node that lends an upstream and a tool that never says a word, and counts its calls."""
    folder.mkdir(parents=True, exist_ok=True)
    tool = script(folder, TREE.format(begun=str(folder / "begun")))
    key = folder / "key"
    key.write_text("sk-fake-0001\n")
    key.chmod(0o600)
    return giving(url, continues=False) + (
        f'[providers.gemini_cli]\nbinary = "{tool}"\napi_key_file = "{key}"\nmodels = ["tree"]\n'
        f"share = true\nmax_concurrent = 8\nmax_queue = 64\n"
    )


class Left(Struct, frozen=True):
    """What one node holds."""

    generations: int
    tasks: int
    processes: int
    descriptors: int

    @property
    def works(self) -> int:
        return self.generations + self.processes

    @classmethod
    async def of(cls, node: NodeProcess) -> Left:
        told: dict[str, Any] = await trio.to_thread.run_sync(status, node)
        process = psutil.Process(node.process.pid)
        return cls(
            told["requests"]["in_flight"],
            int(told["tasks"]),
            len(process.children(recursive=True)),
            process.num_fds(),
        )


async def leave(client: Client, rpc: str, model: str, seconds: float, text: str) -> None:
    """Ask, and be gone after so many seconds."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True, "temperature": 0}
    headers = [("content-type", "application/json"), ("cache-control", "no-store")]
    with trio.move_on_after(seconds):
        try:
            async with client.request(
                "POST", f"{rpc}/v1/chat/completions", headers=headers, body=json.dumps(body).encode()
            ) as response:
                async for _ in response:
                    pass
        except ClientError:
            return


async def run(folder: Path, upstream: Upstream, count: int, seed: int = 1) -> bool:
    """Whether nothing was left. The figures are printed."""
    dice = random.Random(seed)
    config = lending(folder / "tools", upstream.url("slow20+each"))
    start = partial(NodeProcess, ready_within=60)
    giver = await trio.to_thread.run_sync(partial(start, folder / "giver", config=config))
    asker = await trio.to_thread.run_sync(
        partial(start, folder / "asker", "--join", giver.invite, config="[providers.local_hf]\nenabled = false\n")
    )
    nodes = (giver, asker)
    client, asked = Client(), [0]

    async def some(times: int) -> None:
        for _ in range(times):
            asked[0] += 1
            node, model = dice.choice(nodes), dice.choice(("echo", "tree"))
            await leave(client, node.rpc, model, dice.uniform(0, LEAVES_S), f"{asked[0]} {'word ' * 50}")

    async def crowd(times: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(some, times // AT_ONCE)

    try:
        await until_known(asker, 1)
        async with client.running():
            await crowd(4 * AT_ONCE)
            await trio.sleep(SETTLE_S)
            before = [await Left.of(node) for node in nodes]
            await crowd(count)
            left_at = trio.current_time()
            with trio.move_on_after(10):
                while any(now.works > was.works for now, was in await _now(nodes, before)):
                    await trio.sleep(0.01)
            gone_s = trio.current_time() - left_at
        await trio.sleep(SETTLE_S)
        after = [await Left.of(node) for node in nodes]
        state = upstream.state()
        working, asked_upstream = state["in_flight"] - 1, state["count"]  # without this question itself
    finally:
        for node in nodes:
            node.kill()
    trees = len((folder / "tools/begun").read_text())
    print(f"{count} callers left, {trees} process trees and {asked_upstream} answers were begun; "
          f"the last work was gone {gone_s * 1000:.0f} ms later; at the upstream: {working}")  # fmt: skip
    for name, was, now in zip(("giver", "asker"), before, after, strict=True):
        print(f"{name}: before {was}; after {now}")
    kept = AT_ONCE * 2  # connections that wait for the next request, and the tasks that serve them
    clean = all(
        now.generations == 0
        and now.processes <= was.processes
        and now.tasks <= was.tasks + kept
        and now.descriptors <= was.descriptors + kept
        for was, now in zip(before, after, strict=True)
    )
    return clean and working <= 0 and gone_s <= GONE_S and trees > 0


async def _now(nodes: tuple[NodeProcess, ...], before: list[Left]) -> list[tuple[Left, Left]]:
    return [(await Left.of(node), was) for node, was in zip(nodes, before, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.cancels", description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Upstream() as upstream:
        held = trio.run(run, Path(folder), upstream, arguments.count, arguments.seed)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
