"""What goes out, read by the packages of those who made the formats: Prometheus' and OpenTelemetry's."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import trio
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus
from shoal.node.rpc.metrics import MAX_SERIES, Point, counter, exposition, gauge
from shoal.node.rpc.metrics_otlp import Otlp, refused_part
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.server import Server, serve
from shoal.providers.base import ErrorKind, ModelInfo, Usage
from shoal.providers.base import Status as Ready

from .fakes_router import ME, Pause, Scripted, fails, says
from .fakes_rpc import Door, door

USAGE = Usage(7, 3)
CONVENTIONS = {
    # gen-ai/gen-ai-metrics of the semantic conventions: name -> unit, bucket bounds, required attributes
    "gen_ai.server.request.duration": (
        "s",
        [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92],
        {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"},
    ),
    "gen_ai.server.time_to_first_token": (
        "s",
        [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0],
        {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"},
    ),
    "gen_ai.server.time_per_output_token": (
        "s",
        [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5],
        {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"},
    ),
    "gen_ai.client.token.usage": (
        "{token}",
        [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864],
        {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.token.type"},
    ),
}


class Collector:
    """Answers with the statuses in turn, the last one for ever, and keeps what it was sent."""

    def __init__(self, *statuses: int, answer: bytes = b"{}") -> None:
        self.statuses, self.answer = list(statuses) or [200], answer
        self.taken: list[tuple[str, Any]] = []
        self.asked: list[str] = []

    async def __call__(self, exchange: Exchange) -> None:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        self.asked.append(exchange.path)
        if status == 200:
            self.taken.append((exchange.path, json.loads(exchange.body)))
        await exchange.respond(status, self.answer, [("retry-after", "7")] if status == 429 else [])

    def traces(self) -> list[Any]:
        return [body for path, body in self.taken if path == "/v1/traces"]


def decoded(kind: Any, body: Any) -> Any:
    """OTLP's JSON as the official message. Its one difference to protobuf's own JSON is undone: ids are hex there."""

    def plain(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: plain(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [plain(inner) for inner in value]
        if key in ("traceId", "spanId", "parentSpanId"):
            return base64.b64encode(bytes.fromhex(value)).decode()
        return value

    return json_format.ParseDict(plain(body), kind())  # raises for a name or a type that the format does not have


def told(attributes: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


async def asked(node: Door, url: str, **options: Any) -> Otlp:
    otlp = Otlp(url, node.rpc.telemetry.collect, node=ME.peer_id, environ={}, **options)
    node.router.watchers.append(otlp)
    node.router.traced = True
    return otlp


async def test_the_official_package_reads_what_a_collector_is_sent() -> None:
    collector, said = Collector(), ["Cold", Pause(0.02), *says(" water", usage=USAGE)]
    providers = Scripted("first", fails(ErrorKind.RATE_LIMITED)), Scripted("second", said)
    async with trio.open_nursery() as nursery, door(*providers) as node:
        server: Server = await nursery.start(serve, collector, ("127.0.0.1", 0))
        otlp = await asked(node, f"http://127.0.0.1:{server.addresses[0][1]}")
        await node.chat(model="m1")
        await otlp.flush()
        nursery.cancel_scope.cancel()
    bodies = dict(collector.taken)
    metrics = decoded(ExportMetricsServiceRequest, bodies["/v1/metrics"]).resource_metrics[0]
    assert told(metrics.resource.attributes)["service.name"] == "shoal"
    found = {metric.name: metric for metric in metrics.scope_metrics[0].metrics}
    for name, (unit, bounds, required) in CONVENTIONS.items():
        metric = found[name]
        assert metric.unit == unit
        point = metric.histogram.data_points[0]
        assert list(point.explicit_bounds) == bounds
        assert len(point.bucket_counts) == len(bounds) + 1
        assert point.count == sum(point.bucket_counts)
        assert point.start_time_unix_nano <= point.time_unix_nano
        assert required <= told(point.attributes).keys()
    assert found["shoal.answers"].sum.is_monotonic
    spans = decoded(ExportTraceServiceRequest, bodies["/v1/traces"]).resource_spans[0].scope_spans[0].spans
    root, *attempts = spans
    assert (root.kind, {span.kind for span in attempts}) == (Span.SPAN_KIND_SERVER, {Span.SPAN_KIND_CLIENT})
    assert (len(root.trace_id), len(root.span_id)) == (16, 8)
    assert {span.parent_span_id for span in attempts} == {root.span_id}
    assert [span.status.code for span in spans] == [
        Status.STATUS_CODE_OK,
        Status.STATUS_CODE_ERROR,
        Status.STATUS_CODE_OK,
    ]
    assert told(root.attributes)["gen_ai.usage.output_tokens"] == 3
    assert told(attempts[0].attributes)["error.type"] == "rate_limited"


async def test_spans_wait_for_a_collector_that_is_away_and_arrive_once_as_they_were() -> None:
    collector = Collector(503, 200, 503, 200)
    async with trio.open_nursery() as nursery, door(Scripted("first", says("Cold."))) as node:
        server: Server = await nursery.start(serve, collector, ("127.0.0.1", 0))
        otlp = await asked(node, f"http://127.0.0.1:{server.addresses[0][1]}")
        await node.chat()
        assert not await otlp.flush()  # 503 for the metrics: the traces are not even tried
        assert not await otlp.flush()  # 503 for the traces
        assert await otlp.flush()
        assert await otlp.flush()
        nursery.cancel_scope.cancel()
    assert collector.asked == ["/v1/metrics", "/v1/metrics", "/v1/traces", "/v1/metrics", "/v1/traces", "/v1/metrics"]
    assert len(collector.traces()) == 1
    assert otlp.dropped == 0


async def test_what_is_refused_for_good_is_dropped_and_what_waits_is_bounded() -> None:
    collector = Collector(200, 400)
    async with trio.open_nursery() as nursery, door(Scripted("first", *[says("Cold.") for _ in range(5)])) as node:
        server: Server = await nursery.start(serve, collector, ("127.0.0.1", 0))
        otlp = await asked(node, f"http://127.0.0.1:{server.addresses[0][1]}", max_waiting=2)
        for number in range(5):
            await node.chat(messages=[{"role": "user", "content": str(number)}])
        assert (len(otlp._waiting), otlp.dropped) == (2, 3)
        await otlp.flush()
        assert (len(otlp._waiting), otlp.dropped) == (0, 5)
        nursery.cancel_scope.cancel()


async def test_it_asks_less_and_less_often_and_as_late_as_it_is_told_to() -> None:
    otlp = Otlp("http://127.0.0.1:9", list, node="me", interval_s=10, environ={})
    assert otlp._pause_s(0) == 10
    assert 10 <= otlp._pause_s(1) <= 20
    assert 40 <= otlp._pause_s(3) <= 80
    assert 150 <= otlp._pause_s(99) <= 300
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(serve, Collector(429), ("127.0.0.1", 0))
        busy = Otlp(f"http://127.0.0.1:{server.addresses[0][1]}", list, node="me", interval_s=0.01, environ={})
        await busy.flush()
        assert busy._pause_s(1) == 7
        nursery.cancel_scope.cancel()


def test_a_collector_that_took_only_a_part_is_quoted() -> None:
    part = b'{"partialSuccess": {"rejectedSpans": "3", "errorMessage": "too old"}}'
    assert refused_part(part) == "it refused 3 of what was sent: too old"
    for whole in (
        b"{}",
        b"",
        b"[]",
        b"no json",
        b'{"partialSuccess": {}}',
        b'{"partialSuccess": {"rejectedSpans": "0"}}',
    ):
        assert refused_part(whole) == ""


# -- Prometheus ------------------------------------------------------------------------------------------------


async def busy_text(accept: str = "") -> str:
    said = ["Cold", Pause(0.02), *says(" water", usage=USAGE)]
    async with door(Scripted("bad", fails(ErrorKind.AUTH)), Scripted("first", said)) as node:
        node.node.status = lambda: {  # type: ignore[method-assign]
            "swarm": {"counts": {"adverts_refused": {"stale": 1}, "frames_received": 9, "frames_sent": 8}}
        }
        node.cache._refused["signature"] += 1
        await node.chat()
        await node.chat({"cache-control": "only-if-cached"}, messages=[{"role": "user", "content": "other"}])
        reply = await node.ask("GET", "/metrics", headers={"accept": accept} if accept else None)
        assert reply.headers["content-type"].startswith(accept.split(";")[0] or "text/plain; version=0.0.4")
        return reply.body.decode()


async def test_who_asks_for_open_metrics_gets_it() -> None:
    text = await busy_text("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in open_metrics(text)}
    assert text.endswith("# EOF\n")
    assert families["gen_ai_server_request_duration_seconds"].unit == "seconds"
    assert families["shoal_answers"].type == "counter"


async def test_names_are_what_prometheus_expects() -> None:
    for family in prometheus(await busy_text()):
        assert family.documentation
        assert re.fullmatch(r"(gen_ai|shoal|process)_[a-z0-9_]+", family.name)
        assert not re.search(r"_(ms|millis|milliseconds|kb|mb|minutes|percent)(_|$)", family.name)
        assert family.type != "gauge" or not family.name.endswith("_total")
        for sample in family.samples:
            assert family.type != "counter" or sample.name.endswith("_total")
            assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in sample.labels)
        if family.type == "histogram":
            assert any(s.labels.get("le") == "+Inf" for s in family.samples)


@given(st.text(), st.floats(0, 1e12))
def test_open_metrics_holds_whatever_a_label_says(value: str, number: float) -> None:
    metrics = [
        gauge("shoal.x", 'A "quoted" \\ thing.', [Point((("label", value),), number)], "By"),
        counter("shoal.y", "y", [Point((("label", value),), number)]),
    ]
    found = list(open_metrics(exposition(metrics, open_metrics=True)))
    assert [family.name for family in found] == ["shoal_x_bytes", "shoal_y"]
    assert found[0].samples[0].value == pytest.approx(number)


async def test_ten_thousand_invented_models_make_a_bounded_number_of_series() -> None:
    any_model = Ready(ready=True, any_model=True, models=(ModelInfo("m1"),), default_model="m1")
    async with door(Scripted("any", *[says("x") for _ in range(400)], status=any_model), Scripted("other")) as node:
        for number in range(400):
            await node.chat(model=f"invented-{number}")
        watcher, (note, *_) = node.rpc.telemetry.gen_ai, node.router.notes
        for number in range(10_000):
            watcher._duration.observe(0.1, ("chat", "any", f"more-{number}", f"more-{number}", "here", ""))
        assert note is not None
        families = list(prometheus((await node.ask("GET", "/metrics")).body.decode()))
    for family in families:
        series = {tuple(sorted((k, v) for k, v in s.labels.items() if k != "le")) for s in family.samples}
        assert len(series) <= MAX_SERIES + 1, family.name


# -- the board in configs/ -------------------------------------------------------------------------------------


async def test_the_board_asks_for_metrics_and_labels_that_there_are_and_is_whole() -> None:
    board = json.loads((Path(__file__).parents[2] / "configs" / "grafana.json").read_text())
    text = await busy_text()
    labels: dict[str, set[str]] = {}
    for family in prometheus(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    tiers = set(re.findall(r'shoal_cache_hits_total\{shoal_tier="(\w+)"', text))
    spots: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        covers = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covers & spots, f"{panel['title']} lies on another panel"
        spots |= covers
        for target in panel.get("targets", ()):
            query = target["expr"]
            promql_parser.parse(query.replace("$__rate_interval", "5m"))  # ValueError where Prometheus would refuse it
            names = re.findall(r"\b((?:gen_ai|shoal|process)_\w+)\{", query)
            assert names, query
            grouped = {part.strip() for group in re.findall(r"by \(([^)]*)\)", query) for part in group.split(",")}
            matched = set(re.findall(r"(\w+)(?:=~|!~|!=|=)", query)) - {"instance"}
            for label in grouped | matched:
                known = {"error_type"} | set().union(*(labels[name] for name in names))
                assert label in known, (query, label)
            for hits in re.findall(r'shoal_cache=~"([^"]*)"', query):
                assert set(hits.split("|")) == tiers, "a tier is left out"
