"""A node is killed or frozen in the middle of an answer: another goes on, and the caller sees each character once."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.fixtures import NO_MODEL, client, fast, in_thread, question, start, until
from tests.e2e.node_process import NodeProcess
from tests.providers.fake_upstream import FakeUpstream

WORDS = " ".join(f"word{i}" for i in range(60)) + " 漢字 🐟"
WHOLE = f"ECHO<{WORDS}>"


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


async def swarm(folder: Path, *configs: str) -> list[NodeProcess]:
    """An asker without a provider that knows a giver for each configuration; the asker comes first."""
    givers = [await start(folder / f"giver{i}", config=config) for i, config in enumerate(configs)]
    asker = await start(folder / "asker", config=NO_MODEL)
    for giver in givers:
        await in_thread(asker.shoal, "join", giver.invite)

    def all_offer(said: Any) -> bool:
        offering = [p for p in said["peers"] if any(m["name"] == "echo" for m in p["models"])]
        return len(offering) == len(givers)

    await until(asker, ("peers",), all_offer)
    return [asker, *givers]


class Stream:
    """An answer as it comes; `gaps` are seconds between two pieces of text."""

    def __init__(self, node: NodeProcess, **options: Any) -> None:
        self.text, self.gaps, self.last = "", list[float](), 0.0
        raw = client(node).chat.completions.with_raw_response.create(**question(WORDS, stream=True, **options))
        self.peer = raw.headers["x-shoal-peer"]
        self._chunks = iter(raw.parse())
        self.shoal: Any = None

    def more(self) -> bool:
        for chunk in self._chunks:
            self.shoal = getattr(chunk, "shoal", None) or self.shoal
            if chunk.choices and chunk.choices[0].delta.content:
                self.text += chunk.choices[0].delta.content
                return True
        return False


async def read(stream: Stream, *, until_chars: int | None = None) -> None:
    while (until_chars is None or len(stream.text) < until_chars) and await in_thread(stream.more):
        now = trio.current_time()
        if stream.last:
            stream.gaps.append(now - stream.last)
        stream.last = now


@pytest.mark.parametrize(
    ("continues", "temperature", "way"), [("false", 0, "replay"), ("true", 0.7, "prefix")], ids=["replay", "prefix"]
)
async def test_a_peer_killed_mid_stream_costs_a_gap_and_not_a_character(
    tmp_path: Path, upstream: FakeUpstream, continues: str, temperature: float, way: str
) -> None:
    config = fast(upstream.url("slow10+each"), share=True) + f"continues = {continues}\n"
    asker, *givers = nodes = await swarm(tmp_path, config, config)
    try:
        stream = await in_thread(Stream, asker, temperature=temperature)
        await read(stream, until_chars=40)
        victim = next(giver for giver in givers if giver.peer_id == stream.peer)
        victim.kill()
        with trio.fail_after(20):
            await read(stream)
        assert stream.text == WHOLE
        route = stream.shoal["route"]
        assert [attempt["outcome"] for attempt in route] == ["interrupted", "ok"]
        assert route[1]["way"] == way
        assert stream.shoal["peer"] == next(g.peer_id for g in givers if g is not victim)
        # A replay says what the caller has again, at 10 ms a word; beside that the gap is the time to notice.
        assert max(stream.gaps) < 2
        assert (stream.shoal["cid"] is not None) == (way == "replay")
    finally:
        for node in nodes:
            node.kill()


async def test_a_frozen_peer_is_left_within_two_seconds_and_the_answer_goes_on(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    config = fast(upstream.url("slow10+each"), share=True) + "continues = true\n"
    asker, *givers = nodes = await swarm(tmp_path, config, config)
    frozen = None
    try:
        stream = await in_thread(Stream, asker)
        await read(stream, until_chars=40)
        frozen = next(giver for giver in givers if giver.peer_id == stream.peer)
        os.kill(frozen.process.pid, signal.SIGSTOP)
        with trio.fail_after(20):
            await read(stream)
        assert stream.text == WHOLE
        assert max(stream.gaps) < 3
    finally:
        if frozen is not None:
            os.kill(frozen.process.pid, signal.SIGCONT)
        for node in nodes:
            node.kill()


async def test_breakers_are_shown_and_outlive_a_restart(tmp_path: Path, upstream: FakeUpstream) -> None:
    config = fast(upstream.url("s402+listed"))
    with await start(tmp_path / "n", config=config) as node:
        with pytest.raises(Exception, match="quota"):
            await in_thread(client(node).chat.completions.create, **question())
        status = await until(node, ("status",), lambda said: bool(said["breakers"]))
        (row,) = status["breakers"]
        assert (row["provider"], row["kind"], row["state"]) == ("fast", "quota", "open")
    with await start(tmp_path / "n", config=config) as node:
        status = await until(node, ("status",), lambda said: True)
        assert [row["kind"] for row in status["breakers"]] == ["quota"]
