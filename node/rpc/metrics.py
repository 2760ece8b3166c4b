"""Counting, and the Prometheus text of what was counted. Knows nothing of requests or nodes; see metrics_gen_ai.py.

A name is OpenTelemetry's (`gen_ai.server.request.duration`), and Prometheus' form of it is made by the rules of the
OpenTelemetry specification (compatibility/prometheus_and_openmetrics): dots become underscores, the unit and
`_total` are appended. Observing costs about a microsecond; text is made when somebody scrapes.

    durations = Histogram("gen_ai.server.request.duration", "s", "Time of a request.", SECONDS, (PROVIDER,))
    durations.observe(0.25, ("openrouter",))
    text = exposition([durations.metric()])
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text"
MAX_SERIES = 256
"""Label sets of one metric; names come from callers and peers, so what goes beyond is counted as `other`."""
MAX_LABEL_CHARS = 120

_UNITS = {"s": "seconds", "By": "bytes", "1": "ratio"}
_NOT_A_NAME = re.compile(r"[^a-zA-Z0-9_:]")


class Point(Struct, frozen=True):
    """One series of a metric. buckets: for a histogram, how many values fell into each (the last has no bound)."""

    labels: tuple[tuple[str, str], ...]
    value: float = 0.0
    buckets: tuple[int, ...] = ()


class Metric(Struct, frozen=True):
    """A metric as it stands now. bounds: a histogram's upper bounds. A histogram point's `value` is its sum."""

    name: str
    unit: str
    kind: Literal["counter", "gauge", "histogram"]
    about: str
    points: list[Point]
    bounds: tuple[float, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """Without the `_total` that a counter's sample has."""
        unit = _UNITS.get(self.unit, "")
        if self.unit == "1" and self.kind != "gauge":
            unit = ""
        name = _NOT_A_NAME.sub("_", self.name)
        return name if not unit or name.endswith("_" + unit) else f"{name}_{unit}"


def counter(name: str, about: str, points: Iterable[Point], unit: str = "") -> Metric:
    """What only grows, read from where it is counted."""
    return Metric(name, unit, "counter", about, list(points))


def gauge(name: str, about: str, points: Iterable[Point], unit: str = "") -> Metric:
    """What there is now."""
    return Metric(name, unit, "gauge", about, list(points))


def by(label: str, counts: Mapping[str, float]) -> list[Point]:
    """A point for each entry, bounded in number."""
    entries = sorted(counts.items())[:MAX_SERIES]
    return [Point(((label, name),), float(value)) for name, value in entries]


def one(value: float) -> list[Point]:
    """A metric without labels."""
    return [Point((), float(value))]


class Series:
    """What counters and histograms share: label sets, bounded in number."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = tuple(labels)
        self._other = ("other",) * len(self._labels)

    def _pairs(self, values: Sequence[str]) -> tuple[tuple[str, str], ...]:
        return tuple(pair for pair in zip(self._labels, values, strict=True) if pair[1])


class Counter(Series):
    """Counts by label values, in the order of `labels`; an empty value leaves its label out."""

    def __init__(self, name: str, about: str, labels: Sequence[str], unit: str = "") -> None:
        super().__init__(labels)
        self._name, self._about, self._unit = name, about, unit
        self._counts: dict[tuple[str, ...], list[float]] = {}

    def of(self, values: tuple[str, ...]) -> list[float]:
        """The count for these label values, in a list of one, to add to; from MAX_SERIES on, one for all others."""
        count = self._counts.get(values)
        if count is None:
            if len(self._counts) >= MAX_SERIES:
                values = self._other
            count = self._counts.setdefault(values, [0.0])
        return count

    def add(self, values: tuple[str, ...], count: float = 1) -> None:
        self.of(values)[0] += count

    def metric(self) -> Metric:
        points = (Point(self._pairs(values), count) for values, (count,) in self._counts.items())
        return counter(self._name, self._about, points, self._unit)


class Distribution:
    """One of a histogram's. counts: those of the buckets, then the sum of all that was observed."""

    __slots__ = ("_bounds", "counts")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0.0] * (len(bounds) + 2)

    def observe(self, value: float) -> None:
        counts = self.counts
        counts[bisect_left(self._bounds, value)] += 1
        counts[-1] += value


class Histogram(Series):
    """Distributions by label values. bounds: upper bounds of the buckets, ascending; a last one without is implied."""

    def __init__(self, name: str, unit: str, about: str, bounds: Sequence[float], labels: Sequence[str]) -> None:
        super().__init__(labels)
        self._name, self._unit, self._about, self._bounds = name, unit, about, tuple(bounds)
        self._series: dict[tuple[str, ...], Distribution] = {}

    def of(self, values: tuple[str, ...]) -> Distribution:
        """The distribution for these label values, to observe in; from MAX_SERIES on, one for all others."""
        series = self._series.get(values)
        if series is None:
            if len(self._series) >= MAX_SERIES:
                values = self._other
            series = self._series.setdefault(values, Distribution(self._bounds))
        return series

    def observe(self, value: float, values: tuple[str, ...]) -> None:
        self.of(values).observe(value)

    def metric(self) -> Metric:
        points = [
            Point(self._pairs(values), series.counts[-1], tuple(int(count) for count in series.counts[:-1]))
            for values, series in self._series.items()
            if any(series.counts)
        ]
        return Metric(self._name, self._unit, "histogram", self._about, points, self._bounds)


def exposition(metrics: Iterable[Metric], *, open_metrics: bool = False) -> str:
    """The text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/).

    open_metrics: OpenMetrics 1.0 (https://prometheus.io/docs/specs/om/open_metrics_spec/), which names a counter
    without `_total` in its head, says units, and ends with a mark.
    """
    lines: list[str] = []
    number = _float if open_metrics else _number
    for metric in metrics:
        if not metric.points:
            continue
        name = metric.prometheus_name
        sample = f"{name}_total" if metric.kind == "counter" else name
        head = name if open_metrics else sample
        lines += (f"# HELP {head} {_escape_help(metric.about, open_metrics)}", f"# TYPE {head} {metric.kind}")
        if open_metrics and (unit := _UNITS.get(metric.unit)) and name.endswith("_" + unit):
            lines.append(f"# UNIT {head} {unit}")
        for point in metric.points:
            labels = ",".join(f'{_NOT_A_NAME.sub("_", key)}="{_escape(value)}"' for key, value in point.labels)
            if metric.kind != "histogram":
                lines.append(
                    f"{sample}{{{labels}}} {_number(point.value)}" if labels else f"{sample} {_number(point.value)}"
                )
                continue
            comma, total = "," if labels else "", 0
            for bound, count in zip((*metric.bounds, math.inf), point.buckets, strict=True):
                total += count
                lines.append(f'{name}_bucket{{{labels}{comma}le="{number(bound)}"}} {total}')
            braces = f"{{{labels}}}" if labels else ""
            lines += (f"{name}_sum{braces} {_number(point.value)}", f"{name}_count{braces} {total}")
    if open_metrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _escape(value: str) -> str:
    """A label's value; it may come from a peer, so it is cut and stays on its line."""
    value = value[:MAX_LABEL_CHARS].encode(errors="replace").decode()
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"").replace("\r", " ")


def _escape_help(text: str, quotes: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _float(value: float) -> str:
    """As OpenMetrics writes a bucket's bound: always with a point."""
    text = _number(value)
    return f"{text}.0" if text.lstrip("-").isdigit() else text


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
