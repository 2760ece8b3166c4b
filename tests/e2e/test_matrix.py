"""Everything an upstream can do wrong, through a real node's RPC: the whole answer once, or the right clean error.

The rows are those of tests/node/test_router_matrix.py. One node has a provider for each of them and one that works; a
route for each leads to the one that fails first, and to the one that works then.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio
from shoal.protocols.http.client import Client
from shoal.protocols.http.sse import SseParser

from tests.e2e.fixtures import NO_MODEL, start
from tests.e2e.node_process import NodeProcess
from tests.node.test_router_matrix import REPLY, ROWS, WORDS, Row
from tests.providers.fake_upstream import FakeUpstream

SEEN = {"refused", "drop", "garbage", "hang"}
"""Upstreams whose fault the node's probe may see before any request does: then they are not tried at all."""
PATIENCE_S = 2.5
"""For a first token, and the next: all rows are asked at once, and a busy machine makes good upstreams slow."""
LATER = {"slow900": "slow5000"}
"""What is too slow for that."""
STATUS = {"bad_request": 400, "content_filter": 400}


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


def name(row: Row) -> str:
    return "p-" + row.scenario.replace("+", "-")


def configuration(upstream: FakeUpstream) -> str:
    tables = [NO_MODEL, f"[router]\nfirst_token_s = {PATIENCE_S}\nidle_s = {PATIENCE_S}\n"]
    for row in ROWS:
        listed = "+listed" if row.scenario[:2] in ("s4", "s5") else ""  # its list of models is there all the same
        url = (
            "http://127.0.0.1:1/v1"
            if row.scenario == "refused"
            else upstream.url(LATER.get(row.scenario, row.scenario) + listed)
        )
        tables.append(f'[providers.{name(row)}]\ntype = "openai_compat"\nbase_url = "{url}"\nmodels = ["stub"]\n')
    url = upstream.url("ok+each")
    tables.append(f'[providers.good]\ntype = "openai_compat"\nbase_url = "{url}"\nmodels = ["stub"]\n[routes]\n')
    for row in ROWS:
        context = "context_length = 8192, " if row.scenario == "s400ctx" else ""
        first = f'{{ provider = "{name(row)}", {context}model = "stub" }}'
        second = '{ provider = "good", model = "stub", context_length = 16384 }'
        tables.append(f'"{name(row)}" = [{first}, {second}]\n')
    return "".join(tables)


class Told:
    """What a caller got. error: the one in the answer, or in the stream."""

    def __init__(self) -> None:
        self.status, self.text, self.ends = 0, "", 0
        self.error: dict[str, Any] | None = None
        self.usage: dict[str, Any] = {}
        self.model = ""
        self.route: list[dict[str, Any]] = []
        self.header = ""


async def ask(client: Client, node: NodeProcess, model: str, *, stream: bool) -> Told:
    told = Told()
    body = {
        "model": model,
        "messages": [{"role": "user", "content": WORDS}],
        "temperature": 0,
        "stream": stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
    }
    headers = [("content-type", "application/json"), ("cache-control", "no-store")]
    url = f"{node.rpc}/v1/chat/completions"
    async with client.request("POST", url, headers=headers, body=json.dumps(body).encode()) as response:
        told.status = response.status
        told.header = dict(response.headers).get("x-shoal-route", "")
        if not stream or response.status != 200:
            take(told, json.loads(await response.read(1 << 20)), whole=True)
            return told
        parser = SseParser()
        async for data in response:
            for event in parser.feed(data):
                if event.data == "[DONE]":
                    told.ends += 1
                elif event.data:
                    take(told, json.loads(event.data), whole=False)
    return told


def take(told: Told, said: dict[str, Any], *, whole: bool) -> None:
    told.error = said.get("error") or told.error
    told.usage = said.get("usage") or told.usage
    told.model = said.get("model") or told.model
    told.route = (said.get("shoal") or {}).get("route") or told.route
    for choice in said.get("choices") or ():
        told.text += choice["message" if whole else "delta"].get("content") or ""


async def test_whatever_the_first_upstream_does_a_caller_of_the_node_gets_the_whole_answer_or_the_right_error(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    for stream in (False, True):  # each with a node that has no memory of failures
        node = await start(tmp_path / f"n{stream}", config=configuration(upstream))
        try:
            await all_rows(node, upstream, stream=stream)
        finally:
            node.kill()


async def all_rows(node: NodeProcess, upstream: FakeUpstream, *, stream: bool) -> None:
    client, told = Client(), dict[str, Told]()
    async with client.running():
        plain = await ask(client, node, name(next(row for row in ROWS if row.scenario == "ok")), stream=stream)

        async def one(row: Row) -> None:
            with trio.fail_after(20):
                told[row.scenario] = await ask(client, node, name(row), stream=stream)

        async with trio.open_nursery() as nursery:
            for row in ROWS:
                nursery.start_soon(one, row)
        await upstream.until(idle=True)
    for row in ROWS:
        got = told[row.scenario]
        where = f"{row.scenario}: {got.header} {got.route} {got.error}"
        if row.error is not None:
            assert (got.status, got.text) == (STATUS[str(row.error)], ""), where
            assert got.error is not None, where
            assert got.header.startswith(f"{name(row)};{row.error}"), where
            continue
        assert (got.error, got.text, got.model) == (None, REPLY, "stub"), where
        assert not stream or got.ends == 1, where
        outcomes = [attempt.get("outcome", "ok") for attempt in got.route]
        assert outcomes[-1] == "ok", where
        assert outcomes[0] == row.outcomes[0] or row.scenario in SEEN, where
        assert len(outcomes) <= 3, where
        assert got.route[-1]["provider"] == (name(row) if row.outcomes == ("ok",) else "good"), where
        assert got.usage["completion_tokens"] >= plain.usage["completion_tokens"], where
        if row.way:  # the prompt was paid for each time, and so were the words before the break
            assert got.usage["prompt_tokens"] == len(outcomes) * plain.usage["prompt_tokens"], where
            assert got.usage["completion_tokens"] > plain.usage["completion_tokens"], where
