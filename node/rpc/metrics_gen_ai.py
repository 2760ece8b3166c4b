"""What requests cost in time and tokens, under OpenTelemetry's names for generative AI.

Names, attributes and bucket bounds are those of the semantic conventions (gen-ai/gen-ai-metrics, version 1.37); what
is Shoal's own has its own prefix. Of a request nothing is kept but who answered, how long and how many tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ...providers.base import Usage
from ..routing.ask import Ask
from ..routing.attempt import ANSWERED, Attempt
from ..routing.flight import Flight
from ..routing.no_answer import NoAnswer
from ..routing.recording import Found
from ..routing.router import RouteNote
from .metrics import MAX_SERIES, Counter, Distribution, Histogram, Metric

REQUEST_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(float(4**power) for power in range(14))

COUNTED_AT_ONCE = 64
"""Requests that have ended are counted so many at a time, and when somebody looks."""
EMBEDDINGS = "embeddings"

WHO = (
    *("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.response.model"),
    "shoal.from",
)
"""shoal.from: "here", "peer", or the cache's tier. A model that was asked for, and that nobody has, is not named."""


class GenAi:
    """A watcher of the router (routing/watcher.py), and the metrics that it keeps."""

    def __init__(self) -> None:
        self._duration = Histogram(
            "gen_ai.server.request.duration", "s", "Time of a request, from its arrival to its end.",
            REQUEST_S, (*WHO, "error.type"),
        )  # fmt: skip
        self._first_token = Histogram(
            "gen_ai.server.time_to_first_token", "s", "Time to the first token, failed attempts included.",
            FIRST_TOKEN_S, WHO,
        )  # fmt: skip
        self._per_token = Histogram(
            "gen_ai.server.time_per_output_token", "s", "Time of a token after the first.", PER_TOKEN_S, WHO
        )
        self._tokens = Histogram(
            "gen_ai.client.token.usage", "{token}", "Tokens of a request, as the provider counted them.",
            TOKENS, (*WHO, "gen_ai.token.type"),
        )  # fmt: skip
        self._attempts = Counter(
            "shoal.attempts", "Tries at a provider or peer, by outcome.", ("gen_ai.provider.name", "shoal.outcome")
        )
        self._attempt_s = Counter(
            "shoal.attempts.duration",
            "Time that tries took, by outcome.",
            ("gen_ai.provider.name", "shoal.outcome"),
            "s",
        )
        self._kept: dict[tuple[str, ...], _Kept] = {}
        self._ended: list[_Ended] = []
        self._refused = Counter("shoal.requests.refused", "Questions that nobody was asked.", ("error.type",))

    def metrics(self) -> Iterator[Metric]:
        self._count()
        for kept in (
            *(self._duration, self._first_token, self._per_token, self._tokens),
            *(self._attempts, self._attempt_s, self._refused),
        ):
            yield kept.metric()

    # -- what the router tells -----------------------------------------------------------------------------------

    def boarded(self, ask: Ask, flight: Flight) -> None:
        """Counted when it ends."""

    def peeked(self, ask: Ask, found: Found) -> None:
        """An answer from memory: its time is below what the buckets tell apart."""
        asked = (ask.asked or ask.request).model or ""
        self._duration.observe(0.0, (operation(ask), found.provider, asked, found.model or "", "memory", ""))

    def refused(self, ask: Ask, why: NoAnswer) -> None:
        self._refused.add((why.code or str(why.kind),))

    def left(self, ask: Ask, flight: Flight, note: RouteNote) -> None:
        self._ended.append((operation(ask), note, flight.usage, flight.ended, flight.readers == 0))
        if len(self._ended) >= COUNTED_AT_ONCE or not flight.ended:
            self._count()

    # -- counting ------------------------------------------------------------------------------------------------

    def _count(self) -> None:
        """What has ended since the last time; many together cost half of one by one."""
        ended, self._ended = self._ended, []
        for each in ended:
            self._count_one(*each)

    def _count_one(self, about: str, note: RouteNote, usage: Usage | None, ended: bool, last: bool) -> None:
        where = note.cache if note.cache not in ("miss", "bypass") else "peer" if note.peer else "here"
        asked = note.asked_model if note.provider else None
        who = (about, note.provider or "none", asked or "", note.model or "", where)
        kept = self._kept.get(who) or self._keep(who)
        ok = note.outcome == ANSWERED
        if ok:
            kept.duration.observe(note.ms / 1000)
        else:
            self._duration.observe(note.ms / 1000, (*who, note.outcome))
        if where not in ("here", "peer"):
            return
        kept.observe_tokens(note, usage if ok else None, text=about != EMBEDDINGS)
        if last:  # the attempts are the flight's, not each caller's
            for attempt in note.attempts:
                over = attempt.ms > 0 or ended or attempt is not note.attempts[-1]
                labels = (attempt.provider, attempt.outcome if over else "cancelled")
                self._attempts.of(labels)[0] += 1
                self._attempt_s.of(labels)[0] += attempt.ms / 1000

    def _keep(self, who: tuple[str, ...]) -> _Kept:
        if len(self._kept) >= MAX_SERIES:
            self._kept.clear()
        kept = self._kept[who] = _Kept(
            self._duration.of((*who, "")),
            self._first_token.of(who),
            self._per_token.of(who),
            self._tokens.of((*who, "input")),
            self._tokens.of((*who, "output")),
        )
        return kept


_Ended = tuple[str, RouteNote, Usage | None, bool, bool]
"""The operation, what the router notes, the count of tokens; whether the flight has ended, and its last reader left."""


class _Kept(NamedTuple):
    """The distributions of requests with the same labels, found once."""

    duration: Distribution
    first_token: Distribution
    per_token: Distribution
    input: Distribution
    output: Distribution

    def observe_tokens(self, note: RouteNote, usage: Usage | None, *, text: bool) -> None:
        """usage: of an answer that is whole, where it was counted."""
        last = note.attempts[-1] if note.attempts else None
        if last is None or last.first_token_ms is None:
            return
        if text:
            self.first_token.observe(first_token_ms(note.attempts) / 1000)
        if usage is None:
            return
        self.input.observe(usage.prompt_tokens)
        if text:
            self.output.observe(usage.completion_tokens)
        if usage.completion_tokens > 1 and last.ms > last.first_token_ms:
            self.per_token.observe((last.ms - last.first_token_ms) / 1000 / (usage.completion_tokens - 1))


def operation(ask: Ask) -> str:
    """The name of the conventions for what is asked."""
    if ask.request.embed is not None:
        return EMBEDDINGS
    return "chat" if (ask.asked or ask.request).completion is None else "text_completion"


def first_token_ms(attempts: list[Attempt]) -> float:
    """Milliseconds from the first attempt's start to the last one's first token."""
    first = attempts[-1].first_token_ms or 0.0
    return first if len(attempts) == 1 else sum(attempt.ms for attempt in attempts[:-1]) + first
