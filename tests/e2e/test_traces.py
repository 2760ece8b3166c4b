"""A node that ends tells its collector first; and a request belongs to the trace that its caller named, wherever it
goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import trio
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.server import Server, serve

from tests.e2e.fixtures import NO_MODEL, client, fast, in_thread, question, start, until_a_peer_offers
from tests.providers.fake_upstream import FakeUpstream

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


async def test_the_last_spans_are_sent_before_the_end_and_carry_the_callers_trace(tmp_path: Path) -> None:
    told: list[tuple[str, Any]] = []

    async def collect(exchange: Exchange) -> None:
        told.append((exchange.path, json.loads(exchange.body)))
        await exchange.respond(200, b"{}")

    async with trio.open_nursery() as nursery, FakeUpstream() as upstream:
        collector: Server = await nursery.start(serve, collect, ("127.0.0.1", 0))
        address = f"http://127.0.0.1:{collector.addresses[0][1]}"
        telemetry = f'[telemetry]\notlp = "{address}"\ninterval_s = 600\n'
        node = await start(tmp_path, config=fast(upstream.url()) + telemetry)
        with node:
            headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
            await in_thread(client(node).chat.completions.create, **question(extra_headers=headers))
            assert await in_thread(node.stop) == 0
        nursery.cancel_scope.cancel()
    (traces,) = [body for path, body in told if path == "/v1/traces"]
    spans = traces["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert {span["traceId"] for span in spans} == {TRACE}
    assert spans[0]["parentSpanId"] == SPAN
    assert spans[1]["parentSpanId"] == spans[0]["spanId"]


async def test_a_trace_goes_on_through_a_peer_to_the_peers_upstream(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        giver = await start(tmp_path / "giver", config=fast(upstream.url(), share=True))
        with giver:
            asker = await start(tmp_path / "asker", "--join", giver.invite, config=NO_MODEL)
            with asker:
                await until_a_peer_offers(asker, "echo")
                headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}
                await in_thread(client(asker).chat.completions.create, **question(extra_headers=headers))
        (asked,) = upstream.chats
    assert (asked.headers["traceparent"], asked.headers["tracestate"]) == (f"00-{TRACE}-{SPAN}-01", "vendor=1")
