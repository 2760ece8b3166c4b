"""A thousand streams through a swarm whose nodes are killed at random: is every character there, and what did it cost?

gap         the longest silence of a stream, for those that were rescued and for those that were not
extra       what of it is neither the upstream's own pace nor the new provider's own first token: noticing and choosing

A node is killed as soon as another one is connected that could go on; it is started again half a second later, so the
machine starts nodes all the time beside the streams. The streams that never broke show what that costs alone.
"""

from __future__ import annotations

import random
import tempfile
from functools import partial
from pathlib import Path

import trio
from shoal.protocols.http.client import Client

from benchmarks.table import show
from tests.chaos.caller import PACE_S, Outcome, ask, quantile
from tests.chaos.nodes import NO_MODEL, Mortal, Upstream, giving, offering, until_known
from tests.e2e.node_process import NodeProcess

STREAMS = 1000
CALLERS = 10
GIVERS = 3
KILL_EVERY_S = 1.5


async def measure(folder: Path, upstream: Upstream) -> list[Outcome]:
    dice, outcomes, deaths = random.Random(9), list[Outcome](), [0]
    asker = await trio.to_thread.run_sync(partial(NodeProcess, folder / "asker", config=NO_MODEL, ready_within=60))
    config = giving(upstream.url("slow10+each"), continues=True)
    givers = [Mortal(folder / f"giver{i}", config, [asker.invite]) for i in range(GIVERS)]

    async def caller(client: Client, count: int) -> None:
        for _ in range(count):
            words = " ".join(dice.choice(("漢字", "naïve", "🐟", "word")) for _ in range(dice.randint(20, 60)))
            outcomes.append(await ask(client, asker.rpc, f"{dice.random()} {words}"))

    async def revive(giver: Mortal) -> None:
        await trio.sleep(0.5)
        await giver.start()

    async def kill() -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(dice.uniform(0.5, 1.5) * KILL_EVERY_S)
                alive = [giver for giver in givers if giver.node is not None]
                if len(alive) > 1 and await trio.to_thread.run_sync(offering, asker) == len(alive):
                    victim = dice.choice(alive)
                    victim.kill()
                    deaths[0] += 1
                    nursery.start_soon(revive, victim)

    client = Client()
    try:
        for giver in givers:
            await giver.start()
        await until_known(asker, GIVERS)
        async with client.running(), trio.open_nursery() as killing:
            killing.start_soon(kill)
            async with trio.open_nursery() as nursery:
                for _ in range(CALLERS):
                    nursery.start_soon(caller, client, STREAMS // CALLERS)
            killing.cancel_scope.cancel()
    finally:
        for node in (asker, *(giver.node for giver in givers)):
            if node is not None:
                node.kill()
    print(f"{deaths[0]} kills among {GIVERS} nodes during {len(outcomes)} streams")
    return outcomes


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Upstream() as upstream:
        outcomes = trio.run(measure, Path(folder), upstream)
    rows = []
    for name, chosen in (
        ("never broken", [o for o in outcomes if not o.rescued and o.kind == "whole"]),
        ("rescued", [o for o in outcomes if o.rescued and o.kind == "whole"]),
    ):
        gaps = [outcome.gap * 1000 for outcome in chosen]
        beyond = [max(0.0, outcome.gap - max(PACE_S, outcome.first_s)) * 1000 for outcome in chosen]
        rows.append((name, len(chosen), f"{quantile(gaps, 0.5):.0f}", f"{quantile(gaps, 0.99):.0f}",
                     f"{quantile(beyond, 0.5):.0f}", f"{quantile(beyond, 0.99):.0f}"))  # fmt: skip
    bad = [outcome for outcome in outcomes if outcome.kind != "whole"]
    rows.append(("lost, wrong or refused", len(bad), "", "", "", ""))
    head = ("streams", "number", "gap p50 ms", "p99", "extra p50 ms", "p99")
    show("Peers killed mid-stream (gate: 1 s extra gap p99, aim 250 ms p50; 0 lost)", head, rows)
    for outcome in bad[:5]:
        print(f"{outcome.kind}: {outcome.error[:300]}")


if __name__ == "__main__":
    main()
