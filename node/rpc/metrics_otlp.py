"""Metrics and traces for an OpenTelemetry collector: OTLP over HTTP in its JSON form, sent by the node's own client.

One span for a request, one below it for each attempt; names and attributes are the semantic conventions' for generative
AI. No prompt, no answer, no CID. Source of the format: opentelemetry-proto 1.5 and its JSON mapping (ids as hex, 64-bit
integers as text). Needs no package, and runs beside the requests. While the collector is away the spans wait, bounded
in number, and it is asked at growing intervals, as the OTLP specification wants it (failures, OTLP/HTTP throttling);
what it refuses for good, or what there is no room for, is dropped and counted.

    otlp = Otlp("http://127.0.0.1:4318", telemetry, node=peer_id)
    nursery.start_soon(otlp.run)
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import msgspec
import trio

from ...protocols.http.client import Client, ClientError
from ...providers.trace import Trace
from ..routing.ask import Ask
from ..routing.attempt import ANSWERED, Attempt
from ..routing.flight import Flight
from ..routing.no_answer import NoAnswer
from ..routing.recording import Found
from ..routing.router import RouteNote
from ..version import version
from .metrics import MAX_LABEL_CHARS, Metric, Point
from .metrics_gen_ai import first_token_ms, operation

log = logging.getLogger("shoal.telemetry")

SEND_S = 10.0
MAX_WAITING = 2048
"""Requests whose spans wait to be sent; more are dropped."""
BATCH = 512
"""Requests whose spans go in one body."""
MAX_PAUSE_S = 300.0
AGAIN = frozenset({408, 429, 502, 503, 504})
"""Statuses after which the same may be sent again."""
MAX_ANSWER_BYTES = 1 << 20
CUMULATIVE = 2
SERVER, CLIENT = 2, 3
OK, ERROR = 1, 2

_JSON = ("content-type", "application/json")


class Outcome(enum.Enum):
    """What became of a body: taken, to be sent again, or refused for good."""

    TAKEN = 0
    AGAIN = 1
    REFUSED = 2


class Otlp:
    """endpoint: the collector's base address; `/v1/metrics` and `/v1/traces` are appended. interval_s: between sends.

    collect: the metrics as they stand. node: this node's peer id. environ: OTEL_EXPORTER_OTLP_HEADERS may hold the
    headers that a collector wants. max_waiting: requests whose spans are kept while the collector is away. Add it to
    `Router.watchers` for the traces.
    """

    def __init__(
        self,
        endpoint: str,
        collect: Callable[[], Iterable[Metric]],
        *,
        node: str,
        interval_s: float = 15.0,
        max_waiting: int = MAX_WAITING,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._endpoint, self._collect, self._interval_s = endpoint.rstrip("/"), collect, interval_s
        self._headers = [_JSON, *extra_headers(environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""))]
        self._client = Client()
        self._resource = {"attributes": attributes(resource(node))}
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[RouteNote, int, int | None, int | None, str, Trace | None]] = deque()
        self._unsent: list[list[dict[str, Any]]] = []  # the batch that goes next, so that its ids stay as they are
        self._asked_to_wait_s = 0.0
        self._sending = trio.Lock()
        self._began = time.time_ns()
        self._problem = ""
        self.sent = self.failed = self.dropped = 0

    async def run(self) -> None:
        """Sends until cancelled."""
        failures = 0
        async with self._client.running():
            while True:
                await trio.sleep(self._pause_s(failures))
                failures = 0 if await self.flush() else failures + 1

    def _pause_s(self, failures: int) -> float:
        """Seconds until the next send: longer with every failure, and never the same for all nodes of a collector."""
        if not failures:
            return self._interval_s
        longer = min(self._interval_s * 2.0 ** min(failures, 10), max(MAX_PAUSE_S, self._interval_s))
        return max(longer * random.uniform(0.5, 1.0), self._asked_to_wait_s)  # noqa: S311  (no secret)

    async def flush(self) -> bool:
        """Send what there is now. False when the collector took not all of it. Raises nothing of the network's."""
        async with self._sending:
            return await self._flush()

    async def _flush(self) -> bool:
        body = metrics_body(self._resource, self._collect(), self._began, time.time_ns())
        outcome = await self._post("/v1/metrics", body)
        whole = outcome is Outcome.TAKEN  # one that refuses metrics may take traces
        while outcome is not Outcome.AGAIN and (self._unsent or self._waiting):
            if not self._unsent:
                notes = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                self._unsent = [list(spans_of(*note)) for note in notes]
            spans = [span for request in self._unsent for span in request]
            outcome = await self._post("/v1/traces", traces_body(self._resource, spans))
            if outcome is Outcome.REFUSED:
                self.dropped += len(self._unsent)
            if outcome is not Outcome.AGAIN:
                self._unsent = []
            whole = whole and outcome is Outcome.TAKEN
        return whole

    async def _post(self, path: str, body: Any) -> Outcome:
        problem, outcome, self._asked_to_wait_s = "it did not answer in time", Outcome.AGAIN, 0.0
        with trio.move_on_after(SEND_S):
            try:
                call = self._client.request(
                    "POST", self._endpoint + path, headers=self._headers, body=msgspec.json.encode(body)
                )
                async with call as response:
                    answer = await response.read(MAX_ANSWER_BYTES)
                    if response.status < 300:
                        problem, outcome = refused_part(answer), Outcome.TAKEN
                    else:
                        problem = f"it answered with status {response.status}"
                        outcome = Outcome.AGAIN if response.status in AGAIN else Outcome.REFUSED
                        self._asked_to_wait_s = seconds(response.header("retry-after"))
            except ClientError as error:
                problem = str(error)
        if problem != self._problem:
            if problem:
                log.warning("telemetry cannot be sent to %s: %s", self._endpoint, problem)
            else:
                log.info("telemetry is sent to %s again", self._endpoint)
        self._problem = problem
        taken = outcome is Outcome.TAKEN
        self.sent, self.failed = self.sent + taken, self.failed + (not taken)
        return outcome

    # -- what the router tells ---------------------------------------------------------------------------------

    def boarded(self, ask: Ask, flight: Flight) -> None:
        """Told when it ends."""

    def peeked(self, ask: Ask, found: Found) -> None:
        """A look into memory is no span; the metrics count it."""

    def refused(self, ask: Ask, why: NoAnswer) -> None:
        """The metrics count it."""

    def left(self, ask: Ask, flight: Flight, note: RouteNote) -> None:
        parent = ask.trace
        if parent is not None and not parent.sampled:
            return
        if len(self._waiting) + len(self._unsent) >= self._max_waiting:
            self.dropped += 1
            return
        usage = flight.usage
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else (None, None)
        self._waiting.append((note, time.time_ns(), *tokens, operation(ask), parent))


def refused_part(answer: bytes) -> str:
    """What a collector that took the rest says it did not (ExportTracePartialSuccess); "" when it took all."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, AttributeError, RecursionError):
        part = msgspec.json.decode(answer).get("partialSuccess") or {}
        number = part.get("rejectedSpans") or part.get("rejectedDataPoints")
        if number and str(number) != "0":
            return f"it refused {str(number)[:20]} of what was sent: {str(part.get('errorMessage'))[:MAX_LABEL_CHARS]}"
    return ""


def seconds(retry_after: str | None) -> float:
    """Retry-After where it is a number of seconds, at most `MAX_PAUSE_S`; else 0."""
    text = retry_after or ""
    return min(float(text), MAX_PAUSE_S) if text.isascii() and text.isdigit() else 0.0


def resource(node: str) -> dict[str, Any]:
    return {"service.name": "shoal", "service.version": version(), "service.instance.id": node}


def extra_headers(text: str) -> Iterator[tuple[str, str]]:
    """OTEL_EXPORTER_OTLP_HEADERS: `name=value` pairs between commas, values percent-encoded."""
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if equals and name.strip():
            yield name.strip().lower(), unquote(value.strip())


# -- metrics ---------------------------------------------------------------------------------------------------


def metrics_body(resource: Any, metrics: Iterable[Metric], began: int, now: int) -> dict[str, Any]:
    """An ExportMetricsServiceRequest. began, now: nanoseconds since 1970."""
    told = [_metric(metric, began, now) for metric in metrics if metric.points]
    return {"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"scope": _scope(), "metrics": told}]}]}


def _metric(metric: Metric, began: int, now: int) -> dict[str, Any]:
    times = {"startTimeUnixNano": str(began), "timeUnixNano": str(now)}
    points = [_point(point, metric.bounds) | times for point in metric.points]
    body: dict[str, Any] = {"dataPoints": points}
    if metric.kind != "gauge":
        body["aggregationTemporality"] = CUMULATIVE
    if metric.kind == "counter":
        body["isMonotonic"] = True
    kind = {"counter": "sum", "gauge": "gauge", "histogram": "histogram"}[metric.kind]
    return {"name": metric.name, "unit": metric.unit, "description": metric.about, kind: body}


def _point(point: Point, bounds: tuple[float, ...]) -> dict[str, Any]:
    told: dict[str, Any] = {"attributes": attributes(dict(point.labels))}
    if not point.buckets:
        return told | {"asDouble": point.value}
    counts = [str(count) for count in point.buckets]
    return told | {
        "count": str(sum(point.buckets)),
        "sum": point.value,
        "bucketCounts": counts,
        "explicitBounds": list(bounds),
    }


# -- traces ----------------------------------------------------------------------------------------------------


def traces_body(resource: Any, spans: list[dict[str, Any]]) -> dict[str, Any]:
    """An ExportTraceServiceRequest."""
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": _scope(), "spans": spans}]}]}


def spans_of(
    note: RouteNote,
    ended: int,
    prompt: int | None,
    completion: int | None,
    does: str = "chat",
    parent: Trace | None = None,
) -> Iterator[dict[str, Any]]:
    """A request's span and its attempts'. ended: nanoseconds since 1970; prompt, completion: tokens, where known.

    does: the operation's name. parent: the caller's span; without one the request begins a trace.
    """
    trace = parent.trace if parent is not None else secrets.token_hex(16)
    root = parent.own if parent is not None and parent.own else secrets.token_hex(8)
    began = ended - _ns(note.ms)
    first = first_token_ms(note.attempts) if note.attempts and note.attempts[-1].first_token_ms is not None else None
    about = {
        "gen_ai.operation.name": does,
        "gen_ai.provider.name": note.provider,
        "gen_ai.request.model": note.asked_model,
        "gen_ai.response.model": note.model,
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.output_tokens": completion,
        "shoal.cache": note.cache,
        "shoal.peer": note.peer,
        "shoal.caller": note.caller,
        "shoal.time_to_first_token_ms": first,
    }
    name, above = f"{does} {note.asked_model or ''}".strip(), parent.span if parent is not None else None
    yield _span(trace, root, above, name, SERVER, began, ended, about, note.outcome)
    at = began
    for attempt in note.attempts:
        until = min(at + _ns(attempt.ms), ended) if attempt.ms else ended
        yield _attempt(trace, root, attempt, at, until, does)
        at = until


def _attempt(trace: str, parent: str, attempt: Attempt, began: int, ended: int, does: str) -> dict[str, Any]:
    about = {
        "gen_ai.operation.name": does,
        "gen_ai.provider.name": attempt.provider,
        "gen_ai.request.model": attempt.model,
        "shoal.peer": attempt.peer,
    }
    name = f"{does} {attempt.model or ''}".strip()
    return _span(trace, secrets.token_hex(8), parent, name, CLIENT, began, ended, about, attempt.outcome)


def _span(
    trace: str,
    number: str,
    parent: str | None,
    name: str,
    kind: int,
    began: int,
    ended: int,
    about: dict[str, Any],
    outcome: str,
) -> dict[str, Any]:
    if outcome != ANSWERED:
        about = about | {"error.type": outcome}
    told: dict[str, Any] = {
        "traceId": trace,
        "spanId": number,
        "name": name[:MAX_LABEL_CHARS],
        "kind": kind,
        "startTimeUnixNano": str(began),
        "endTimeUnixNano": str(ended),
        "attributes": attributes(about),
        "status": {"code": OK if outcome == ANSWERED else ERROR},
    }
    return told if parent is None else told | {"parentSpanId": parent}


def attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """OTLP's key-value list; what is None is left out."""
    return [{"key": key, "value": _value(value)} for key, value in values.items() if value is not None]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": str(value)[:MAX_LABEL_CHARS]}


def _scope() -> dict[str, str]:
    return {"name": "shoal", "version": version()}


def _ns(ms: float) -> int:
    return int(ms * 1_000_000)
