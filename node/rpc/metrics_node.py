"""What the node counts anyway, read when somebody scrapes: answers, providers, cache tiers, peers, the process.

And where it comes together: `Telemetry` watches the router, answers `/metrics`, and feeds the dashboard.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import psutil
import trio

from ...cache.tiers import AnswerCache
from ...protocols.http.exchange import Exchange
from ..routing.router import Router
from ..version import version
from .events import Activity
from .events_feed import PACE_S, Feed, Section
from .metrics import CONTENT_TYPE, MAX_SERIES, OPEN_METRICS, Metric, Point, by, counter, exposition, gauge, one
from .metrics_gen_ai import GenAi
from .models import Models
from .node_api import Node, ProviderFacts

DHT = {
    "peers": "Nodes that are known.",
    "records": "Announcements of others that are kept.",
    "searches": "Searches begun.",
    "asked": "Questions to other nodes.",
    "answered": "Questions that were answered.",
    "served": "Questions of others answered.",
    "dialled": "Nodes dialled for a search.",
    "provided": "Announcements that others took.",
    "violations": "Peers cut off for breaking the rules.",
}
"""Figures of a DHT (protocols/p2p/dht.py), and what they are."""


class Telemetry:
    """One for a node's life. Prompts, answers and keys never come here: only names, counts and times."""

    def __init__(
        self, router: Router, node: Node, providers: ProviderFacts, models: Models, cache: AnswerCache | None
    ) -> None:
        self._router, self._node, self._providers, self._models, self._cache = router, node, providers, models, cache
        self.activity, self.gen_ai = Activity(), GenAi()
        router.watchers += (self.activity, self.gen_ai)
        self._process: psutil.Process | None = None
        with contextlib.suppress(psutil.Error, OSError):  # where /proc is hidden nobody says
            self._process = psutil.Process()
        self.feed = Feed(
            [
                Section("node", self.node),
                Section("providers", self.providers),
                Section("peers", lambda: {"peers": node.peers()}),
                Section("models", lambda: {"data": list(models.listed().values())}),
                Section("cache", self.cache),
                Section("sharing", self.sharing),
                Section("requests", self.requests, PACE_S),
            ]
        )

    # -- sections of the feed ----------------------------------------------------------------------------------

    def node(self) -> dict[str, Any]:
        return self._node.status()

    def sharing(self) -> dict[str, Any]:
        """What is lent to peers, by which limits, and what each has had."""
        return {**self._node.sharing_view(), "shares": sorted(self._providers.shared)}

    def providers(self) -> dict[str, Any]:
        """The providers; `configured` is false for those that only could be."""
        failures, shared = self._router.health.failures, self._providers.shared
        held: dict[str, list[dict[str, Any]]] = {}
        for row in self._router.health.view(trio.current_time()):
            if row["state"] != "closed":
                waits = {"model": row["model"], "state": row["state"], "kind": row["kind"]}
                held.setdefault(row["provider"], []).append(waits | {"until_s": math.ceil(row["until_s"])})
        rows: list[dict[str, Any]] = []
        for name, status in self._providers.statuses.items():
            rows.append(
                {
                    "name": name,
                    "configured": True,
                    "ready": status.ready,
                    "reason": status.reason,
                    "share": name in shared,
                    "models": [msgspec.to_builtins(model) for model in status.models],
                    "failures": failures.get(name, 0),
                    "waits": held.get(name, [])[:8],
                }
            )
        for name, reason in sorted(self._providers.refused.items()):
            rows.append({"name": name, "configured": False, "ready": False, "reason": reason, "share": False})
        return {"providers": rows}

    def cache(self) -> dict[str, Any]:
        return {"enabled": False} if self._cache is None else {"enabled": True, **self._cache.stats()}

    def requests(self) -> dict[str, Any]:
        activity, router = self.activity, self._router
        return {
            "live": activity.live,
            "in_flight": router.in_flight,
            "finished": dict(activity.finished),
            "by_cache": dict(router.counts),
            "tokens_per_s": activity.tokens_per_s(),
            "output_tokens": activity.output_tokens,
            "requests": activity.rows(),
        }

    # -- metrics -----------------------------------------------------------------------------------------------

    async def metrics(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        """`GET /metrics`: Prometheus' text, or OpenMetrics for who asks for that."""
        wanted = OPEN_METRICS in headers.get("accept", "")
        kind = f"{OPEN_METRICS}; version=1.0.0; charset=utf-8" if wanted else CONTENT_TYPE
        text = exposition(self.collect(), open_metrics=wanted)
        await exchange.respond(200, text.encode(), [("content-type", kind)])

    def collect(self) -> Iterator[Metric]:
        """Everything, as it stands now."""
        yield gauge("shoal.build.info", "The version that runs.", [Point((("version", version()),), 1.0)])
        yield from self.gen_ai.metrics()
        yield from self._of_router()
        yield from self._of_cache()
        yield from self._of_swarm()
        yield from self._of_relays()
        yield from self._of_dht()
        yield from self._of_process()

    def _of_router(self) -> Iterator[Metric]:
        router = self._router
        yield gauge("shoal.requests.live", "Callers that wait for an answer.", one(self.activity.live))
        yield gauge("shoal.generations.live", "Generations under way.", one(router.in_flight))
        yield counter("shoal.answers", "Answers by where they came from.", by("shoal.cache", router.counts))
        yield counter("shoal.flights.joined", "Callers that shared a generation.", one(router.flights.joined))
        shared = router.together.counts if router.together is not None else {}
        yield counter("shoal.generations.shared", "Generations by their part in the swarm.", by("shoal.part", shared))
        yield counter("shoal.output.tokens", "Tokens generated.", one(self.activity.output_tokens))
        ready = {name: float(status.ready) for name, status in self._providers.statuses.items()}
        yield gauge("shoal.provider.ready", "Whether a provider could answer.", by("gen_ai.provider.name", ready))
        held = [(row["provider"], row["model"] or "", row["state"]) for row in router.health.view(trio.current_time())]
        labels = ("gen_ai.provider.name", "gen_ai.request.model", "shoal.state")
        points = [Point(tuple(zip(labels, row, strict=True)), 1.0) for row in held[:MAX_SERIES]]
        yield gauge("shoal.breaker.held", "Who is not asked for now: breakers that are not closed, pauses.", points)
        failed = router.health.failures
        yield counter("shoal.provider.failures", "Failures that count against it.", by("gen_ai.provider.name", failed))

    def _of_cache(self) -> Iterator[Metric]:
        if self._cache is None:
            return
        stats = self._cache.stats()
        yield counter("shoal.cache.hits", "Answers found, by tier.", by("shoal.tier", stats["hits"]))
        yield counter("shoal.cache.misses", "Look-ups in vain.", one(stats["misses"]))
        yield counter("shoal.cache.stored", "Answers taken in.", one(stats["remembered"]))
        yield counter("shoal.cache.refused", "Foreign records refused.", by("shoal.reason", stats["refused"]))
        tiers = {name: stats[name] for name in ("memory", "disk") if stats.get(name)}
        for field, unit, about in (
            ("answers", "", "Answers kept."),
            ("bytes", "By", "Bytes of answers kept."),
            ("max_bytes", "By", "Bytes that may be kept."),
        ):
            name = {"answers": "shoal.cache.answers", "bytes": "shoal.cache.size", "max_bytes": "shoal.cache.limit"}
            yield gauge(name[field], about, by("shoal.tier", {tier: of[field] for tier, of in tiers.items()}), unit)
        evicted = {tier: of["evicted"] for tier, of in tiers.items()}
        yield counter("shoal.cache.evicted", "Answers dropped for others.", by("shoal.tier", evicted))
        failed = {name: (stats.get("disk") or {}).get(name, 0) for name in ("dropped", "failed", "damaged")}
        yield counter("shoal.cache.disk.faults", "What the disk did not take or keep.", by("shoal.reason", failed))

    def _of_swarm(self) -> Iterator[Metric]:
        peers = self._node.peers()
        connected = [peer for peer in peers if peer.get("connected")]
        states = {"connected": len(connected), "away": len(peers) - len(connected)}
        yield gauge("shoal.peers", "Peers known, by state.", by("shoal.state", states))
        yield gauge(
            "shoal.sessions.calls", "Calls on sessions.", one(sum(peer.get("calls") or 0 for peer in connected))
        )
        counts = self._node.status().get("swarm", {}).get("counts") or {}
        refused = counts.get("adverts_refused") or {}
        yield counter("shoal.adverts.refused", "Adverts refused, by reason.", by("shoal.reason", refused))
        for name, about in (
            ("adverts_taken", "Adverts that held."),
            ("frames_received", "Frames that came on sessions."),
            ("frames_sent", "Frames that went out on sessions."),
            ("bytes_received", "Bytes that came on sessions."),
            ("bytes_sent", "Bytes that went out on sessions."),
            ("sessions_begun", "Sessions begun."),
        ):
            if name in counts:
                yield counter("shoal." + name.replace("_", "."), about, one(counts[name]))

    def _of_relays(self) -> Iterator[Metric]:
        relays = self._node.status().get("swarm", {}).get("relays") or {}
        if not relays:
            return
        yield gauge("shoal.relay.places", "Relays behind which this node has a place.", one(len(relays["places"])))
        yield counter("shoal.relay.lies", "Times that a relay led to another node.", one(sum(relays["lies"].values())))
        if (serves := relays["serves"]) is not None:
            yield gauge("shoal.relay.reservations", "Nodes with a place here.", one(serves["reservations"]))
            yield gauge("shoal.relay.circuits", "Connections carried now.", one(serves["circuits"]))
            yield counter("shoal.relay.carried", "Bytes carried for others.", one(serves["carried_bytes"]), "By")
            yield counter("shoal.relay.ended", "Connections ended, by why.", by("shoal.reason", serves["ended"]))
            yield counter("shoal.relay.refused", "Requests refused.", by("shoal.reason", serves["refused"]))

    def _of_dht(self) -> Iterator[Metric]:
        if self._router.beyond is not None:
            counts = self._router.beyond.counts
            asked = {str(tier): float(count.asked) for tier, count in counts.items()}
            yield counter("shoal.cache.beyond.asked", "Look-ups beyond this machine.", by("shoal.tier", asked))
            found = {str(tier): float(count.found) for tier, count in counts.items()}
            yield counter("shoal.cache.beyond.found", "Those that had the answer.", by("shoal.tier", found))
            spent = {str(tier): count.seconds for tier, count in counts.items()}
            yield counter("shoal.cache.beyond.time", "Seconds in them.", by("shoal.tier", spent), "s")
        for which, stats in (self._node.status().get("dht") or {}).items():
            name = "shoal.dht" if which == "swarm" else "shoal.ipfs.dht"
            for field, about in DHT.items():
                if field in stats:
                    make = gauge if field in ("peers", "records") else counter
                    yield make(f"{name}.{field}", about, one(stats[field]))
            sent = {"in": stats.get("bytes_received", 0), "out": stats.get("bytes_sent", 0)}
            yield counter(f"{name}.bytes", "Bytes of messages.", by("shoal.direction", sent), "By")
            yield counter(f"{name}.refused", "Records refused.", by("shoal.reason", stats.get("refused") or {}))

    def _of_process(self) -> Iterator[Metric]:
        """The names that every Prometheus client library gives these."""
        if process := self._process:
            with contextlib.suppress(psutil.Error), process.oneshot():
                cpu = process.cpu_times()
                yield counter("process.cpu", "CPU time, user and system.", one(cpu.user + cpu.system), "s")
                yield gauge("process.resident_memory", "Memory in RAM.", one(process.memory_info().rss), "By")
                yield gauge("process.start_time", "When it began (Unix time).", one(process.create_time()), "s")
                yield gauge("process.open_fds", "Open files and sockets.", one(process.num_fds()))
        yield gauge("shoal.scraped", "When this was read (Unix time).", one(time.time()), "s")
