"""A line that delivers nothing while every socket stays open: noticed, gone around, and used again when it is whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from tests.e2e.fixtures import NO_MODEL, fast
from tests.e2e.test_rescue import WHOLE, Stream, read
from tests.nat.lab import PORT, PUBLIC, Lab, LabNode

pytestmark = pytest.mark.nat

NOTICED_S = 2.0


async def offering(asker: LabNode) -> set[str]:
    """The connected peers that offer the model."""
    said = await asker.do(asker.shoal, "peers", "--json")
    return {p["peer"] for p in json.loads(said.stdout)["peers"] if p["connected"] and p["models"]}


async def until_offered(asker: LabNode, peers: set[str], within: float) -> None:
    with trio.fail_after(within):
        while not peers <= await offering(asker):
            await trio.sleep(0.1)


async def test_a_partition_costs_two_seconds_and_no_character_and_the_peer_is_used_again_when_it_heals(
    lab: Lab,
) -> None:
    lab.up("cone", "cone")
    config = "continues = true\n"
    async with lab.upstream("relay") as one, lab.upstream("relay2") as two:
        givers = {
            name: await lab.node(
                name,
                "--listen",
                f"/ip4/{PUBLIC[name]}/tcp/{PORT}",
                config=fast(upstream.url("slow10+each"), share=True) + config,
            )
            for name, upstream in (("relay", one), ("relay2", two))
        }
        joins = [arg for giver in givers.values() for arg in ("--join", giver.invite)]
        asker = await lab.node("nodea", *joins, config=NO_MODEL)
        everybody = {giver.peer_id for giver in givers.values()}
        try:
            await until_offered(asker, everybody, within=15)
            stream: Any = await asker.do(Stream, asker)
            await read(stream, until_chars=40)
            name = next(name for name, giver in givers.items() if giver.peer_id == stream.peer)
            lab.cut(f"a:{PUBLIC[name]}")
            with trio.fail_after(20):
                await read(stream)
            assert stream.text == WHOLE
            assert [attempt["outcome"] for attempt in stream.shoal["route"]] == ["interrupted", "ok"]
            assert max(stream.gaps) < NOTICED_S + 1.0  # and what the next one needs to begin
            told = await asker.do(asker.shoal, "route", "last", "--json")
            assert "lost" in told.stdout, "it was noticed by silence: nothing has closed the connection"
            lab.heal()
            await until_offered(asker, everybody, within=30)
            # The other one cannot be reached now: the healed one has to answer.
            other = next(other for other in givers if other != name)
            lab.cut(f"a:{PUBLIC[other]}")
            again: Any = await asker.do(Stream, asker)
            with trio.fail_after(30):
                await read(again)
            assert again.text == WHOLE
            assert again.shoal["peer"] == givers[name].peer_id
        finally:
            for node in (asker, *givers.values()):
                node.kill()
