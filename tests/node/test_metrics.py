"""What /metrics says, read by the reference client's parser; and what an OpenTelemetry collector is sent."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from shoal.node.rpc.metrics import MAX_SERIES, Counter, Histogram, Point, exposition, gauge
from shoal.node.rpc.metrics_otlp import Otlp, extra_headers, spans_of
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.server import serve
from shoal.providers.base import ErrorKind, ModelInfo, Status, Usage

from .fakes_router import ME, Pause, Scripted, fails, says
from .fakes_rpc import Door, door

PROMPT, ANSWER = "a-secret-question", "a-secret-answer"


def parsed(text: str) -> dict[str, Family]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(family: Family, suffix: str = "", **labels: str) -> list[float]:
    return [
        s.value for s in family.samples if s.name == family.name + suffix and labels.items() <= dict(s.labels).items()
    ]


async def scraped(node: Door) -> dict[str, Family]:
    reply = await node.ask("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parsed(reply.body.decode())


# -- the text --------------------------------------------------------------------------------------------------


@given(st.text(max_size=60), st.floats(allow_nan=False, allow_infinity=False))
def test_whatever_a_label_holds_it_comes_back_as_it_was(value: str, number: float) -> None:
    text = exposition([gauge("shoal.test", "A test.", [Point((("shoal.name", value),), number)])])
    (sample,) = parsed(text)["shoal_test"].samples
    expected = value.encode(errors="replace").decode().replace("\r", " ")
    assert sample.labels == {"shoal_name": expected}
    assert sample.value == number


def test_a_histogram_counts_what_is_at_or_below_each_bound() -> None:
    made = Histogram("shoal.test.time", "s", "A test.", (0.1, 1.0), ("shoal.who",))
    for value in (0.05, 0.1, 0.5, 7.0):
        made.observe(value, ("a",))
    family = parsed(exposition([made.metric()]))["shoal_test_time_seconds"]
    assert [(s.labels["le"], s.value) for s in family.samples if s.name.endswith("_bucket")] == [
        ("0.1", 2),
        ("1", 3),
        ("+Inf", 4),
    ]
    assert samples(family, "_count") == [4]
    assert math.isclose(samples(family, "_sum")[0], 7.65)


def test_names_made_up_by_callers_cannot_grow_a_metric_without_end() -> None:
    counts = Counter("shoal.test", "A test.", ("gen_ai.request.model",))
    for number in range(3 * MAX_SERIES):
        counts.add((f"model-{number}",))
    points = counts.metric().points
    assert len(points) == MAX_SERIES + 1
    assert sum(point.value for point in points) == 3 * MAX_SERIES
    assert points[-1].labels == (("gen_ai.request.model", "other"),)


# -- requests --------------------------------------------------------------------------------------------------


async def test_a_request_is_measured_by_provider_and_model_under_the_conventions_names() -> None:
    said = ["Cold", Pause(0.03), " water", *says("", usage=Usage(7, 3))[1:]]
    async with door(Scripted("first", said)) as node:
        await node.chat(model="m1")
        found = await scraped(node)
    who = {"gen_ai_provider_name": "first", "gen_ai_response_model": "m1", "shoal_from": "here"}
    assert samples(found["gen_ai_server_request_duration_seconds"], "_count", **who) == [1]
    assert samples(found["gen_ai_server_time_to_first_token_seconds"], "_count", **who) == [1]
    assert samples(found["gen_ai_server_time_per_output_token_seconds"], "_count", **who) == [1]
    assert 0.014 < samples(found["gen_ai_server_time_per_output_token_seconds"], "_sum", **who)[0] < 1
    usage = found["gen_ai_client_token_usage"]
    assert samples(usage, "_sum", gen_ai_token_type="input") == [7]
    assert samples(usage, "_sum", gen_ai_token_type="output") == [3]


async def test_a_failed_attempt_and_an_answer_from_memory_are_told_apart() -> None:
    async with door(Scripted("first", fails(ErrorKind.UPSTREAM)), Scripted("second", says("Cold."))) as node:
        for _ in range(3):
            await node.chat()
        found = await scraped(node)
    attempts = found["shoal_attempts"]
    assert samples(attempts, "_total", gen_ai_provider_name="second", shoal_outcome="ok") == [1]
    assert samples(attempts, "_total", gen_ai_provider_name="first", shoal_outcome="upstream")[0] >= 1
    took = samples(found["shoal_attempts_duration_seconds"], "_total", gen_ai_provider_name="first")
    assert 0 <= sum(took) < 5
    assert took
    assert samples(found["gen_ai_server_request_duration_seconds"], "_count", shoal_from="memory") == [2]
    assert samples(found["shoal_answers"], "_total", shoal_cache="memory") == [2]
    assert samples(found["shoal_cache_hits"], "_total", shoal_tier="memory") == [2]
    assert samples(found["shoal_provider_failures"], "_total", gen_ai_provider_name="first")[0] >= 1


async def test_a_refused_key_shows_as_a_breaker_that_is_open() -> None:
    async with door(Scripted("first", fails(ErrorKind.AUTH))) as node:
        await node.chat()
        found = await scraped(node)
        told = (await events(node))["providers"]["providers"]
    assert samples(found["shoal_breaker_held"], gen_ai_provider_name="first", shoal_state="open") == [1]
    assert told[0]["waits"][0]["kind"] == "auth"


async def test_who_gets_no_flight_is_counted_with_the_reason() -> None:
    async with door(Scripted("first", says("Cold."))) as node:
        await node.chat({"cache-control": "only-if-cached"})
        found = await scraped(node)
    assert samples(found["shoal_requests_refused"], "_total", error_type="not_cached") == [1]


async def test_a_caller_that_leaves_is_an_error_of_its_own_kind() -> None:
    async with door(Scripted("first", ["Cold", Pause(3600)])) as node:
        with trio.move_on_after(0.3):
            await node.chat()
        with trio.fail_after(5):
            while not samples(
                (await scraped(node)).get("gen_ai_server_request_duration_seconds", Family("x", "", "histogram")),
                "_count", error_type="cancelled",
            ):  # fmt: skip
                await trio.sleep(0.02)
        found = await scraped(node)
    assert samples(found["shoal_attempts"], "_total", shoal_outcome="cancelled") == [1]
    assert samples(found["shoal_requests_live"]) == [0]


async def test_no_word_of_what_was_asked_or_said_is_in_metrics_or_events() -> None:
    async with door(Scripted("first", says(ANSWER)), Scripted("bad", fails(ErrorKind.UPSTREAM))) as node:
        await node.chat(messages=[{"role": "user", "content": PROMPT}])
        text = (await node.ask("GET", "/metrics")).body + json.dumps(await events(node)).encode()
    assert PROMPT.encode() not in text
    assert ANSWER.encode() not in text
    assert b"first" in text


async def test_metrics_tell_of_peers_providers_and_the_process() -> None:
    down = Status(ready=False, reason="no key", models=(ModelInfo("m3"),))
    async with door(Scripted("first", says("x")), Scripted("second", says("x"), status=down)) as node:
        found = await scraped(node)
    assert samples(found["shoal_peers"], shoal_state="connected") == [1]
    assert samples(found["shoal_provider_ready"], gen_ai_provider_name="second") == [0]
    assert samples(found["process_resident_memory_bytes"])[0] > 1e6
    assert samples(found["process_cpu_seconds"], "_total")[0] > 0
    assert all(s.labels.get("version") for s in found["shoal_build_info"].samples)


async def events(node: Door) -> dict[str, Any]:
    """The first event of each section of the feed."""
    found: dict[str, Any] = {}
    async with await node.open() as stream:
        await stream.send_all(node.head("GET", "/shoal/v1/events", {}, b""))
        data = b""
        with trio.fail_after(5):
            while data.count(b"event: ") < 6 or not data.endswith(b"\n\n\r\n"):
                data += await stream.receive_some(65536)
    for line in data.decode().split("event: ")[1:]:
        name, _, rest = line.partition("\n")
        found[name] = json.loads(rest.removeprefix("data: ").split("\n\n")[0])
    return found


# -- OpenTelemetry ---------------------------------------------------------------------------------------------


class Collector:
    """Takes what is posted to it."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.status = 200

    async def __call__(self, exchange: Exchange) -> None:
        self.bodies.append((exchange.path, json.loads(exchange.body)))
        self.headers = dict(exchange.headers)
        await exchange.respond(self.status, b"{}")

    def of(self, path: str) -> Any:
        return next(body for where, body in self.bodies if where == path)


async def test_a_collector_gets_metrics_and_a_span_for_each_attempt() -> None:
    collector = Collector()
    usage = Usage(7, 3)
    providers = Scripted("first", fails(ErrorKind.RATE_LIMITED)), Scripted("second", says(ANSWER, usage=usage))
    async with trio.open_nursery() as nursery, door(*providers) as node:
        server = await nursery.start(serve, collector, ("127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.addresses[0][1]}/"
        headers = {"OTEL_EXPORTER_OTLP_HEADERS": "x-key=a%20b,bad,Other=1"}
        otlp = Otlp(url, node.rpc.telemetry.collect, node=ME.peer_id, environ=headers)
        node.router.watchers.append(otlp)
        await node.chat(model="m1", messages=[{"role": "user", "content": PROMPT}])
        await otlp.flush()
        assert (otlp.sent, otlp.failed, otlp.dropped) == (2, 0, 0)
        nursery.cancel_scope.cancel()
    assert (collector.headers["x-key"], collector.headers["other"]) == ("a b", "1")
    resource = collector.of("/v1/metrics")["resourceMetrics"][0]
    about = {a["key"]: a["value"]["stringValue"] for a in resource["resource"]["attributes"]}
    assert (about["service.name"], about["service.instance.id"]) == ("shoal", ME.peer_id)
    metrics = {m["name"]: m for m in resource["scopeMetrics"][0]["metrics"]}
    duration = metrics["gen_ai.server.request.duration"]
    assert duration["unit"] == "s"
    assert duration["histogram"]["aggregationTemporality"] == 2
    point = duration["histogram"]["dataPoints"][0]
    assert len(point["bucketCounts"]) == len(point["explicitBounds"]) + 1
    assert point["count"] == "1"
    assert metrics["shoal.answers"]["sum"]["isMonotonic"]
    spans = collector.of("/v1/traces")["resourceSpans"][0]["scopeSpans"][0]["spans"]
    root, first, second = spans[0], spans[1], spans[-1]
    assert root["name"] == "chat m1"
    assert {span["parentSpanId"] for span in spans[1:]} == {root["spanId"]}
    assert {span["traceId"] for span in spans} == {root["traceId"]}
    assert [span["status"]["code"] for span in (root, first, second)] == [1, 2, 1]
    assert {"key": "gen_ai.usage.output_tokens", "value": {"intValue": "3"}} in root["attributes"]
    assert {"key": "error.type", "value": {"stringValue": "rate_limited"}} in first["attributes"]
    assert int(root["startTimeUnixNano"]) <= int(first["startTimeUnixNano"]) <= int(root["endTimeUnixNano"])
    text = json.dumps(collector.bodies)
    assert PROMPT not in text
    assert ANSWER not in text


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("sent", "trace", "parent"),
    [
        (f"00-{TRACE}-{SPAN}-01", TRACE, SPAN),
        (f"01-{TRACE}-{SPAN}-01-what a later version adds", TRACE, SPAN),
        (f"00-{TRACE}-{SPAN}-01-more", None, None),
        (f"ff-{TRACE}-{SPAN}-01", None, None),
        (f"00-{'0' * 32}-{SPAN}-01", None, None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None, None),
        ("nonsense", None, None),
    ],
)
async def test_a_request_belongs_to_its_callers_trace(sent: str, trace: str | None, parent: str | None) -> None:
    async with door(Scripted("first", says("Cold."))) as node:
        otlp = Otlp("http://127.0.0.1:9", node.rpc.telemetry.collect, node=ME.peer_id, environ={})
        node.router.watchers.append(otlp)
        node.router.traced = True
        await node.chat({"traceparent": sent})
        (noted,) = otlp._waiting
    root, attempt = spans_of(*noted)
    assert root.get("parentSpanId") == parent
    assert root["traceId"] == attempt["traceId"]
    assert (root["traceId"] == trace) == (trace is not None)
    assert attempt["parentSpanId"] == root["spanId"]


async def test_a_trace_that_its_caller_does_not_record_is_not_told() -> None:
    async with door(Scripted("first", says("Cold."))) as node:
        otlp = Otlp("http://127.0.0.1:9", node.rpc.telemetry.collect, node=ME.peer_id, environ={})
        node.router.watchers.append(otlp)
        node.router.traced = True
        await node.chat({"traceparent": f"00-{TRACE}-{SPAN}-00"})
    assert not otlp._waiting


async def test_a_collector_that_is_away_costs_nothing() -> None:
    async with door(Scripted("first", says("Cold."))) as node:
        otlp = Otlp("http://127.0.0.1:9", node.rpc.telemetry.collect, node=ME.peer_id, environ={})
        node.router.watchers.append(otlp)
        assert (await node.chat()).status == 200
        await otlp.flush()
    assert (otlp.sent, otlp.failed, otlp.dropped, len(otlp._waiting)) == (0, 1, 0, 1)


def test_headers_for_a_collector_are_read_as_the_specification_says() -> None:
    assert list(extra_headers("a=1, b=x%2Cy ,,=z,c")) == [("a", "1"), ("b", "x,y")]
