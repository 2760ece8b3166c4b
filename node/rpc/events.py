"""What the node is doing now: the requests in flight and the last ones, without a word of what was asked or said.

A watcher of the router (routing/watcher.py). Rows are made only when somebody looks; until then a request costs one
entry in a table.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from typing import Any

import trio
from msgspec import Struct

from ..routing.ask import Ask
from ..routing.attempt import ANSWERED, Attempt
from ..routing.flight import Flight
from ..routing.no_answer import NoAnswer
from ..routing.recording import Found
from ..routing.router import RouteNote
from .metrics_gen_ai import first_token_ms

RECENT = 40
"""Finished requests that are remembered."""
MAX_LIVE = 100
"""Requests in flight that are told of, the newest; the number is told whole."""
MAX_REASON_CHARS = 200


class _Live(Struct):
    id: int
    ask: Ask
    flight: Flight


class Activity:
    """live: how many requests are in flight. finished: how many have ended, by outcome."""

    def __init__(self) -> None:
        self.finished: Counter[str] = Counter()
        self.output_tokens = 0
        self._live: dict[int, _Live] = {}
        self._recent: deque[tuple[Any, ...]] = deque(maxlen=RECENT)
        self._ids = itertools.count(1)
        self.version = 0
        """Changes with every request that comes or goes."""

    @property
    def live(self) -> int:
        return len(self._live)

    # -- what the router tells ---------------------------------------------------------------------------------

    def boarded(self, ask: Ask, flight: Flight) -> None:
        self.version += 1
        self._live[id(ask)] = _Live(next(self._ids), ask, flight)

    def left(self, ask: Ask, flight: Flight, note: RouteNote) -> None:
        self.version += 1
        self.finished[note.outcome] += 1
        live = self._live.pop(id(ask), None)
        usage = flight.usage
        tokens = usage.completion_tokens if usage is not None else len(flight.events)
        if note.cache in ("miss", "bypass"):
            self.output_tokens += tokens
        reason = _sentence(flight.failure.message) if flight.failure is not None else ""
        self._recent.append((live.id if live is not None else next(self._ids), note, tokens, reason))

    def peeked(self, ask: Ask, found: Found) -> None:
        self.version += 1
        self.finished[ANSWERED] += 1
        last = self._recent[-1] if self._recent else None
        if last is not None and isinstance(last[1], Found) and last[1].cid == found.cid:
            self._recent[-1] = (last[0], found, time.time(), last[3] + 1)  # one row, however often it is asked
        else:
            self._recent.append((next(self._ids), found, time.time(), 1))

    def refused(self, ask: Ask, why: NoAnswer) -> None:
        self.version += 1
        self.finished[str(why.kind)] += 1
        self._recent.append((next(self._ids), why, time.time(), ask.request.model))

    # -- what people see ---------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """The requests, the newest first, those in flight before those that have ended.

        {"id", "at", "state": "live" or the outcome, "model", "provider", "peer", "caller", "cache", "cid", "ms",
        "first_token_ms", "tokens", "tokens_per_s", "route", "times", "reason"}. While a request is live `tokens`
        counts its deltas. `times` counts hits in a row. `reason`: why nobody answered, in a sentence.
        """
        now = trio.current_time()
        newest = list(self._live.values())[-MAX_LIVE:]
        return [_live_row(live, now) for live in reversed(newest)] + [_row(entry) for entry in reversed(self._recent)]

    def tokens_per_s(self) -> float:
        """Of all requests in flight together, each measured since its first token."""
        now = trio.current_time()
        return round(sum(_live_row(live, now)["tokens_per_s"] or 0.0 for live in self._live.values()), 1)


def _live_row(live: _Live, now: float) -> dict[str, Any]:
    flight, ms = live.flight, round((now - live.ask.began) * 1000, 1)
    route = list(flight.route)
    first = first_token_ms(route) if route and route[-1].first_token_ms is not None else None
    tokens = len(flight.events)
    rate = _rate(tokens, ms - first) if first is not None else None
    return {
        "id": live.id,
        "at": time.time() - ms / 1000,
        "state": "live",
        "caller": live.ask.caller,
        "model": flight.model or live.ask.request.model,
        "provider": flight.provider,
        "peer": flight.peer,
        "cache": flight.cache,
        "cid": None,
        "ms": ms,
        "first_token_ms": first,
        "tokens": tokens,
        "tokens_per_s": rate,
        "route": [_attempt(a, live=not flight.ended and a is route[-1]) for a in route],
    }


def _row(entry: tuple[Any, ...]) -> dict[str, Any]:
    number, what = entry[0], entry[1]
    row: dict[str, Any] = {
        "id": number, "at": 0.0, "state": ANSWERED, "caller": "local", "model": None, "provider": None, "peer": None,
        "cache": "", "cid": None, "ms": 0.0, "first_token_ms": None, "tokens": None, "tokens_per_s": None, "route": [],
        "reason": "",
    }  # fmt: skip
    if isinstance(what, Found):
        row |= {"at": entry[2], "model": what.model, "provider": what.provider, "peer": what.peer, "cache": what.tier}
        return row | {"cid": what.cid, "times": entry[3]}
    if isinstance(what, NoAnswer):
        route, reason = [_attempt(a) for a in what.route], _sentence(what.message)
        return row | {"at": entry[2], "state": str(what.kind), "model": entry[3], "route": route, "reason": reason}
    note: RouteNote = what
    attempts = note.attempts
    made = note.cache in ("miss", "bypass")
    first = first_token_ms(attempts) if made and attempts and attempts[-1].first_token_ms is not None else None
    return row | {
        "at": note.at,
        "state": note.outcome,
        "caller": note.caller,
        "model": note.model or note.asked_model,
        "provider": note.provider,
        "peer": note.peer,
        "cache": note.cache,
        "cid": note.cid,
        "ms": note.ms,
        "first_token_ms": first,
        "tokens": entry[2] if made else None,
        "tokens_per_s": _rate(entry[2], note.ms - first) if first is not None else None,
        "route": [_attempt(a) for a in attempts],
        "reason": entry[3],
    }


def _attempt(attempt: Attempt, *, live: bool = False) -> dict[str, Any]:
    return {
        "provider": attempt.name,
        "model": attempt.model,
        "peer": attempt.peer,
        "outcome": "live" if live else attempt.outcome,
        "ms": attempt.ms,
        "reason": attempt.reason[:MAX_REASON_CHARS],
    }


def _sentence(message: str) -> str:
    return message if len(message) <= MAX_REASON_CHARS else message[: MAX_REASON_CHARS - 1] + "…"


def _rate(tokens: int, ms: float) -> float | None:
    """Tokens a second after the first."""
    return round((tokens - 1) * 1000 / ms, 1) if tokens > 1 and ms > 1 else None
