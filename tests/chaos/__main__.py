"""Real nodes under load while a part of them is killed and started again: `make chaos`.

    python -m tests.chaos --nodes 10 --seconds 600 --kills-per-minute 3 --callers 8
    python -m tests.chaos --nodes 4 --seconds 60

Of ten nodes three are asked and seven answer. Any of them is killed with SIGKILL, by default 30 % of all nodes a
minute, and comes back. A caller whose own node dies loses his connection, whatever the rest does: what he has got by
then must be right, and he asks another node. Every character of every answer is compared. Exit status 1 when one answer
was lost or wrong, or when a generation is left.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import trio
from shoal.protocols.http.client import Client

from tests.chaos.caller import Outcome, ask, quantile
from tests.chaos.nodes import NO_MODEL, Holding, Mortal, Upstream, giving, until_known

SETTLE_S = 8.0


class Run:
    """One run; `outcomes` fills while it goes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.dice = random.Random(arguments.seed)
        self.outcomes: list[Outcome] = []
        self.kills = self.retries = 0
        self._asked = 0

    async def run(self, folder: Path, upstream: Upstream) -> bool:
        arguments = self.arguments
        entries = max(2, arguments.nodes * 3 // 10)
        url = upstream.url("slow10+each")
        asked = [Mortal(folder / f"entry{i}", NO_MODEL) for i in range(entries)]
        givers = [
            Mortal(folder / f"giver{i}", giving(url, continues=bool(i % 2))) for i in range(arguments.nodes - entries)
        ]
        nodes = asked + givers
        try:
            for node in nodes:
                await node.start()
                for other in asked:  # whoever comes back looks for those who are asked
                    if other is not node and other.node is not None:
                        node.meet(other.node.invite)
            for node in asked:
                assert node.node is not None
                for other in asked:
                    if other is not node and other.node is not None:
                        node.meet(other.node.invite)
                await until_known(node.node, len(givers))
            client = Client()
            async with client.running():
                await self._load(client, asked, seconds=3.0)  # everything that is loaded late is loaded
                self.outcomes.clear()
                await trio.sleep(SETTLE_S)
                before = [await Holding.of(node) for node in nodes]
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._kill, asked, givers)
                    await self._load(client, asked, seconds=arguments.seconds)
                    nursery.cancel_scope.cancel()
            for node in nodes:
                if node.node is None:
                    await node.start()
            await trio.sleep(SETTLE_S)
            after = [await Holding.of(node) for node in nodes]
            left = upstream.state()["in_flight"] - 1  # this question itself
            return self.report(nodes, before, after, left)
        finally:
            for node in nodes:
                node.kill()

    async def _load(self, client: Client, asked: list[Mortal], *, seconds: float) -> None:
        end = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            for _ in range(self.arguments.callers):
                nursery.start_soon(self._caller, client, asked, end)

    async def _caller(self, client: Client, asked: list[Mortal], end: float) -> None:
        while trio.current_time() < end:
            self._asked += 1
            words = [self.dice.choice(("漢字", "naïve", "🐟", "word")) for _ in range(self.dice.randint(5, 60))]
            text, store = " ".join([f"q{self._asked}", *words]), self.dice.random() < 0.2
            while True:
                entry = self.dice.choice([entry for entry in asked if entry.node is not None])
                deaths = entry.deaths
                assert entry.node is not None
                outcome = await ask(client, entry.node.rpc, text, store=store)
                if outcome.kind != "lost" or entry.deaths == deaths:
                    self.outcomes.append(outcome)
                    break
                self.retries += 1  # his own node has died

    async def _kill(self, asked: list[Mortal], givers: list[Mortal]) -> None:
        pause = 60.0 / self.arguments.kills_per_minute if self.arguments.kills_per_minute else float("inf")
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(pause * self.dice.uniform(0.7, 1.3))
                # One of each kind stays: without any there is nobody to ask, or nobody to answer.
                victims = [
                    node for kind in (asked, givers) for node in kind if sum(n.node is not None for n in kind) > 1
                ]
                victims = [node for node in victims if node.node is not None]
                if victims:
                    victim = self.dice.choice(victims)
                    victim.kill()
                    self.kills += 1
                    nursery.start_soon(self._revive, victim)

    async def _revive(self, node: Mortal) -> None:
        await trio.sleep(self.dice.uniform(0.5, 3.0))
        await node.start()

    def report(self, nodes: list[Mortal], before: list[Holding], after: list[Holding], left: int) -> bool:
        kinds = Counter(outcome.kind for outcome in self.outcomes)
        rescued = [outcome for outcome in self.outcomes if outcome.rescued]
        bad = kinds["lost"] + kinds["wrong"]
        print(f"{self.arguments.nodes} nodes, {self.arguments.seconds:g} s, {self.kills} kills; "
              f"{self.retries} callers lost their own node and asked another")  # fmt: skip
        print(f"requests {len(self.outcomes)}: {kinds['whole']} whole ({len(rescued)} of them rescued), "
              f"{kinds['refused']} refused with an error, {kinds['lost']} lost, {kinds['wrong']} wrong")  # fmt: skip
        for name, chosen in (("all", self.outcomes), ("rescued", rescued)):
            extra = [outcome.extra * 1000 for outcome in chosen if outcome.kind == "whole"]
            gaps = [outcome.gap * 1000 for outcome in chosen if outcome.kind == "whole"]
            print(f"{name:8} extra time ms p50 {quantile(extra, 0.5):.0f} p99 {quantile(extra, 0.99):.0f}; "
                  f"longest gap ms p50 {quantile(gaps, 0.5):.0f} p99 {quantile(gaps, 0.99):.0f}")  # fmt: skip
        print("ways", dict(Counter(outcome.way for outcome in rescued)))
        for node, was, now in zip(nodes, before, after, strict=True):
            print(f"{node.name}: before {was}; after {now}; killed {node.deaths} times")
        print(f"generations left at the upstream: {left}")
        for error, times in Counter(o.error for o in self.outcomes if o.error).most_common(8):
            print(f"  {times} x {error[:300]}")
        return bad == 0 and left <= 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--kills-per-minute", type=float, default=None, help="default: 30 %% of the nodes")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.kills_per_minute is None:
        arguments.kills_per_minute = 0.3 * arguments.nodes
    with tempfile.TemporaryDirectory() as folder, Upstream() as upstream:
        held = trio.run(Run(arguments).run, Path(folder), upstream)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
