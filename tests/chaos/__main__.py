"""Real nodes under load while a part of them is killed and started again: `make chaos`.

    python -m tests.chaos --nodes 10 --seconds 600 --kills-per-minute 3 --callers 8
    python -m tests.chaos --nodes 4 --seconds 60

Callers ask nodes that stay (a caller whose own node dies has lost his connection, whatever the rest does); the nodes
that answer are killed with SIGKILL, by default 30 % of all nodes a minute, and come back. Every character of every
answer is compared. Exit status 1 when one answer was lost or wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import trio
from shoal.protocols.http.client import Client

from tests.chaos.caller import Outcome, ask, quantile
from tests.chaos.nodes import NO_MODEL, Giver, Holding, Upstream, giving, until_known
from tests.e2e.node_process import NodeProcess

SETTLE_S = 8.0


class Run:
    """One run; `outcomes` fills while it goes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.dice = random.Random(arguments.seed)
        self.outcomes: list[Outcome] = []
        self.kills = 0
        self._asked = 0

    async def run(self, folder: Path, upstream: Upstream) -> bool:
        arguments = self.arguments
        entries = max(1, arguments.nodes * 3 // 10)
        count = arguments.nodes - entries
        askers = []
        for i in range(entries):
            start = partial(NodeProcess, folder / f"entry{i}", config=NO_MODEL, ready_within=60)
            askers.append(await trio.to_thread.run_sync(start))
        invites = [asker.invite for asker in askers]
        url = upstream.url("slow10+each")
        givers = [Giver(folder / f"giver{i}", giving(url, continues=bool(i % 2)), invites) for i in range(count)]
        try:
            for giver in givers:
                await giver.start()
            for asker in askers:
                await until_known(asker, count)
            client = Client()
            async with client.running():
                await self._load(client, askers, seconds=3.0)  # everything that is loaded late is loaded
                self.outcomes.clear()
                await trio.sleep(SETTLE_S)
                before = [Holding.of(asker) for asker in askers]
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._kill, givers)
                    await self._load(client, askers, seconds=arguments.seconds)
                    nursery.cancel_scope.cancel()
            await trio.sleep(SETTLE_S)
            after = [Holding.of(asker) for asker in askers]
            left = upstream.state()["in_flight"] - 1  # this question itself
            return self.report(before, after, left)
        finally:
            for node in (*askers, *(giver.node for giver in givers)):
                if node is not None:
                    node.kill()

    async def _load(self, client: Client, askers: list[NodeProcess], *, seconds: float) -> None:
        end = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            for i in range(self.arguments.callers):
                nursery.start_soon(self._caller, client, askers[i % len(askers)], end)

    async def _caller(self, client: Client, asker: NodeProcess, end: float) -> None:
        while trio.current_time() < end:
            self._asked += 1
            words = [self.dice.choice(("漢字", "naïve", "🐟", "word")) for _ in range(self.dice.randint(5, 60))]
            text = " ".join([f"q{self._asked}", *words])
            self.outcomes.append(await ask(client, asker.rpc, text, store=self.dice.random() < 0.2))

    async def _kill(self, givers: list[Giver]) -> None:
        pause = 60.0 / self.arguments.kills_per_minute if self.arguments.kills_per_minute else float("inf")
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(pause * self.dice.uniform(0.7, 1.3))
                alive = [giver for giver in givers if giver.node is not None]
                if len(alive) < 2:
                    continue
                victim = self.dice.choice(alive)
                victim.kill()
                self.kills += 1
                nursery.start_soon(self._revive, victim)

    async def _revive(self, giver: Giver) -> None:
        await trio.sleep(self.dice.uniform(0.5, 3.0))
        await giver.start()

    def report(self, before: list[Holding], after: list[Holding], left: int) -> bool:
        kinds = Counter(outcome.kind for outcome in self.outcomes)
        rescued = [outcome for outcome in self.outcomes if outcome.rescued]
        bad = kinds["lost"] + kinds["wrong"]
        print(f"{self.arguments.nodes} nodes, {self.arguments.seconds:g} s, {self.kills} kills")
        print(f"requests {len(self.outcomes)}: {kinds['whole']} whole ({len(rescued)} of them rescued), "
              f"{kinds['refused']} refused with an error, {kinds['lost']} lost, {kinds['wrong']} wrong")  # fmt: skip
        for name, chosen in (("all", self.outcomes), ("rescued", rescued)):
            extra = [outcome.extra * 1000 for outcome in chosen if outcome.kind == "whole"]
            gaps = [outcome.gap * 1000 for outcome in chosen if outcome.kind == "whole"]
            print(f"{name:8} extra time ms p50 {quantile(extra, 0.5):.0f} p99 {quantile(extra, 0.99):.0f}; "
                  f"longest gap ms p50 {quantile(gaps, 0.5):.0f} p99 {quantile(gaps, 0.99):.0f}")  # fmt: skip
        print("ways", dict(Counter(outcome.way for outcome in rescued)))
        for i, (was, now) in enumerate(zip(before, after, strict=True)):
            print(f"entry {i}: before {was}; after {now}")
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
