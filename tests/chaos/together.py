"""The same question to five connected nodes at once, again and again: `python -m tests.chaos.together`.

Each node has a provider of its own, all of them the same upstream, which counts; then two have one and lend it, and
three have none. In each round a hundred callers ask something new within a moment; in every third the node that
generates is killed in the middle and started again later. A round may cost one generation, two with a kill, and every
caller must get every character. Exit status 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from shoal.protocols.http.client import Client

from tests.chaos.caller import Outcome, ask
from tests.chaos.nodes import Mortal, status
from tests.e2e.fixtures import NO_MODEL, fast
from tests.e2e.node_process import NodeProcess
from tests.providers.fake_upstream import FakeUpstream

NODES, CALLERS = 5, 100
WORDS = "一 zwei trois 🐟 " * 10


def own(upstream: FakeUpstream, i: int, scenario: str, **options: str) -> str:
    """A node with a provider of its own; the scenario's last figure tells which."""
    more = "".join(f"{key} = {value}\n" for key, value in options.items())
    return fast(upstream.url(f"{scenario}+slow1{i}")) + more


def connected(node: NodeProcess) -> int:
    with urllib.request.urlopen(f"{node.rpc}/shoal/v1/peers", timeout=10) as answer:
        return sum(peer["connected"] for peer in json.load(answer)["peers"])


async def until_connected(nodes: Sequence[Mortal], within: float = 30) -> None:
    """Returns when each is connected with every other."""
    with trio.fail_after(within):
        for mortal in nodes:
            while mortal.node is None or await trio.to_thread.run_sync(connected, mortal.node) < len(nodes) - 1:
                await trio.sleep(0.05)


@asynccontextmanager
async def swarm(folder: Path, configs: Sequence[str]) -> AsyncGenerator[list[Mortal]]:
    """Nodes of which each is connected with every other."""
    nodes: list[Mortal] = []
    try:
        for i, config in enumerate(configs):
            invites = [node.node.invite for node in nodes if node.node is not None]
            nodes.append(Mortal(folder / f"n{i}", config, invites))
            await nodes[-1].start()
        await until_connected(nodes)
        yield nodes
    finally:
        for node in nodes:
            node.kill()


class Crowd:
    """Callers who all ask the same; one whose node dies asks the next one."""

    def __init__(self, client: Client, nodes: Sequence[Mortal], text: str) -> None:
        self.client, self.nodes, self.text = client, nodes, text
        self.outcomes: list[Outcome] = []
        self.retries = 0

    @property
    def kinds(self) -> Counter[str]:
        return Counter(outcome.kind for outcome in self.outcomes)

    async def ask(self, count: int = CALLERS, within: float = 0.0, dice: random.Random | None = None) -> None:
        """within: seconds over which the callers come."""
        async with trio.open_nursery() as nursery:
            for i in range(count):
                nursery.start_soon(self._one, i, dice.uniform(0, within) if dice is not None else 0.0)

    async def _one(self, i: int, after: float) -> None:
        await trio.sleep(after)
        while True:
            mortal = self.nodes[i % len(self.nodes)]
            i += 1
            if mortal.node is None:
                continue
            deaths = mortal.deaths
            outcome = await ask(self.client, mortal.node.rpc, self.text, store=True)
            if outcome.kind != "lost" or mortal.deaths == deaths:
                self.outcomes.append(outcome)
                return
            self.retries += 1


async def run(folder: Path, rounds: int, seed: int = 1, lending: int = 0) -> bool:
    """lending: how many nodes have a provider and lend it; 0: all have one of their own."""
    dice, held = random.Random(seed), True
    spent = Counter[tuple[bool, int]]()
    async with FakeUpstream() as upstream:
        client = Client()
        configs = [own(upstream, i, "each", continues="true") for i in range(NODES)]
        if lending:
            lent = [config + "share = true\n" for config in configs[:lending]]
            configs = [config.replace("share = false\n", "") for config in lent] + [NO_MODEL] * (NODES - lending)
        async with swarm(folder, configs) as nodes, client.running():
            await trio.sleep(2)  # for their adverts
            for number in range(rounds):
                kills, before = number % 3 == 2, len(upstream.chats)
                crowd = Crowd(client, nodes, f"round {number} {WORDS}")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(crowd.ask, within=0.3, dice=dice))
                    if kills:
                        with trio.move_on_after(5):
                            while len(upstream.chats) == before:
                                await trio.sleep(0.005)
                        await trio.sleep(dice.uniform(0.1, 0.4))
                        nodes[int(upstream.chats[before].scenario[-1])].kill()
                cost = len(upstream.chats) - before
                spent[kills, cost] += 1
                if crowd.kinds != {"whole": CALLERS} or cost > 1 + kills:
                    held = False
                    print(f"round {number}: {dict(crowd.kinds)}, {cost} generations; {'killed' if kills else ''}")
                    print({outcome.error for outcome in crowd.outcomes if outcome.error})
                    parts = [status(node.node)["requests"]["shared"] for node in nodes if node.node is not None]
                    print("led, followed and missed since the start:", parts)
                for node in nodes:
                    if node.node is None:
                        await node.start()
                if kills:
                    with contextlib.suppress(trio.TooSlowError):
                        await until_connected(nodes)
    for (kills, cost), times in sorted(spent.items()):
        who = f"{lending} of them with a provider" if lending else "each with a provider"
        print(f"{times} rounds of {CALLERS} callers at {NODES} nodes, {who}{', one killed' if kills else ''}: "
              f"{cost} generation{'s' if cost > 1 else ''}")  # fmt: skip
    return held


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.together", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    held = []
    for lending in (0, 2):
        with tempfile.TemporaryDirectory() as folder:
            held.append(trio.run(run, Path(folder), arguments.rounds // 2, arguments.seed, lending))
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
