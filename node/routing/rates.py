"""How fast each model of this node's own providers has been, for adverts, status and the router; kept over restarts.

A watcher of the router: every answer that was generated here, whole, in one piece and from its beginning, counts. What
is told changes only when it is off by a fifth or an hour old, so that adverts are not renewed with every request.
Where a provider measures its model itself (the local one does), its own figures go before these.

    book = Rates()
    router.watchers.append(book)
    book.rated("local_hf", status)      # the status with what was measured
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from ...providers.base import ModelInfo, Status, Usage
from . import kept_file
from .attempt import ANSWERED, Attempt

if TYPE_CHECKING:
    from .ask import Ask
    from .flight import Flight
    from .no_answer import NoAnswer
    from .recording import Found
    from .router import RouteNote

WRITE_S = 10.0
"""Seconds between two looks whether something has changed."""
MAX_BYTES = 1024 * 1024
MAX_ENTRIES = 512
ENOUGH_TOKENS = 16
"""Tokens of an answer that make its speed worth something."""
ENOUGH_PROMPT = 128
"""Tokens of a prompt, without those that were known already, that do so for the speed of prompts."""
OFF_BY, OLD_S = 0.2, 3600.0
_WEIGHT = 0.3  # of the newest measurement
_ODD = 4.0
"""A first token that came so many times as late as usual, or as early, tells of something else than the speed."""


class Rate(Struct, omit_defaults=True):
    """Of one model at one provider: tokens a second, milliseconds to the first event, and when (Unix time, seconds)."""

    provider: str
    model: str
    decode_tps: float | None = None
    prefill_tps: float | None = None
    first_token_ms: float | None = None
    at: float = 0.0


class _File(Struct):
    rates: list[Rate]
    v: int = 1


class Rates:
    """See the module. version: grows with each change."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.version = 0
        self._clock = clock
        self._measured: dict[tuple[str, str], Rate] = {}
        self._told: dict[tuple[str, str], Rate] = {}
        self._announced: dict[tuple[str, str], Rate] = {}  # as measured, without what providers say themselves
        self._providers: set[str] = set()
        self.on_news: Callable[[], None] = lambda: None
        """Called when something else is to be told than before."""
        self._counted: deque[Flight] = deque(maxlen=16)  # several callers may leave one flight

    # -- a watcher of the router (watcher.py) ------------------------------------------------------------------

    def boarded(self, ask: Ask, flight: Flight) -> None:
        pass

    def peeked(self, ask: Ask, found: Found) -> None:
        pass

    def refused(self, ask: Ask, why: NoAnswer) -> None:
        pass

    def left(self, ask: Ask, flight: Flight, note: RouteNote) -> None:
        if not flight.ended or flight.failure is not None or flight.peer is not None or flight.cache != "miss":
            return
        if not flight.route or flight in self._counted:
            return
        self._counted.append(flight)
        usage = next((event for event in reversed(flight.events) if isinstance(event, Usage)), None)
        self.answered(flight.route[-1], flight.model, usage)

    def answered(self, attempt: Attempt, model: str | None, usage: Usage | None) -> None:
        """Take in one whole answer."""
        if attempt.outcome != ANSWERED or attempt.peer is not None or attempt.way or attempt.first_token_ms is None:
            return
        model = model or attempt.model
        if model is None:
            return
        first_ms, rest_s = attempt.first_token_ms, (attempt.ms - attempt.first_token_ms) / 1000
        rate = self._of(attempt.provider, model)
        rate.first_token_ms = _usual(rate.first_token_ms, first_ms)
        if usage is not None and usage.completion_tokens >= ENOUGH_TOKENS and rest_s > 0:
            rate.decode_tps = _lately(rate.decode_tps, (usage.completion_tokens - 1) / rest_s)
        fresh = usage.prompt_tokens - usage.cached_tokens if usage is not None else 0
        if fresh >= ENOUGH_PROMPT and first_ms > 0:
            rate.prefill_tps = _lately(rate.prefill_tps, 1000 * fresh / first_ms)
        self._changed(rate)

    def timed(self, provider: str, model: str, decode_tps: float, first_token_ms: float) -> None:
        """What a trial found (node/trials.py); it counts for all that was known before."""
        rate = self._of(provider, model)
        rate.decode_tps, rate.first_token_ms = decode_tps, first_token_ms
        self._changed(rate)

    def known(self, provider: str, model: str) -> Rate | None:
        """What was measured of a model; None when nothing was."""
        return self._measured.get((provider, model))

    def _changed(self, rate: Rate) -> None:
        rate.at = self._clock()
        self.version += 1
        place = (rate.provider, rate.model)
        announced = self._announced.get(place)
        if announced is None or _differs(announced, rate):
            self._announced[place] = msgspec.structs.replace(rate)
            self.on_news()

    def _of(self, provider: str, model: str) -> Rate:
        rate = self._measured.pop((provider, model), None) or Rate(provider, model)
        if len(self._measured) >= MAX_ENTRIES:
            gone = next(iter(self._measured))  # the one that was not used for longest
            del self._measured[gone]
            self._told.pop(gone, None)
            self._announced.pop(gone, None)
        self._measured[(provider, model)] = rate
        self._providers.add(provider)
        return rate

    # -- what is told ------------------------------------------------------------------------------------------

    def rated(self, provider: str, status: Status) -> Status:
        """The status with what was measured of each of its models."""
        if provider not in self._providers:
            return status
        models = tuple(self._with(provider, model) for model in status.models)
        return status if models == status.models else msgspec.structs.replace(status, models=models)

    def _with(self, provider: str, model: ModelInfo) -> ModelInfo:
        key = (provider, model.name)
        measured = self._measured.get(key)
        if measured is None:
            return model
        now = msgspec.structs.replace(
            measured,
            decode_tps=model.decode_tps or measured.decode_tps,
            prefill_tps=model.prefill_tps or measured.prefill_tps,
        )
        told = self._told.get(key)
        if told is None or _differs(told, now):
            told = self._told[key] = _rounded(now)
        return msgspec.structs.replace(
            model,
            decode_tps=told.decode_tps,
            prefill_tps=told.prefill_tps,
            first_token_ms=told.first_token_ms,
            measured_at=told.at,
        )

    def view(self) -> list[dict[str, Any]]:
        """All of it for `shoal status`, the newest first."""
        found = sorted(self._measured.values(), key=lambda rate: -rate.at)
        return [msgspec.to_builtins(_rounded(rate)) for rate in found]

    # -- over a restart ----------------------------------------------------------------------------------------

    def dump(self) -> bytes:
        return msgspec.json.encode(_File(list(self._measured.values())))

    def load(self, data: bytes) -> None:
        """What `dump` gave. Raises ValueError; entries that make no sense are passed over."""
        try:
            found = msgspec.json.decode(data, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(str(error)) from None
        for rate in found.rates[-MAX_ENTRIES:]:
            figures = (rate.decode_tps, rate.prefill_tps, rate.first_token_ms)
            if rate.at <= self._clock() and all(each is None or 0 < each < 1e7 for each in figures):
                self._measured[(rate.provider, rate.model)] = rate
                self._providers.add(rate.provider)


def kept(rates: Rates, path: Path) -> AbstractAsyncContextManager[None]:
    """Read at the beginning, written shortly after a change until the end; a file that cannot be used is ignored."""
    return kept_file.kept(rates, path, what="what was measured of speeds", every_s=WRITE_S, max_bytes=MAX_BYTES)


def _lately(before: float | None, now: float) -> float:
    return now if before is None else before + _WEIGHT * (now - before)


def _usual(before: float | None, now: float) -> float:
    """As `_lately`, but one that took several times as long (the model was loaded first) hardly counts."""
    if before is None or now < before / _ODD:
        return now
    return before + (_WEIGHT / 10 if now > _ODD * before else _WEIGHT) * (now - before)


def _differs(told: Rate, now: Rate) -> bool:
    return (
        _off(told.first_token_ms, now.first_token_ms)
        or _off(told.decode_tps, now.decode_tps)
        or _off(told.prefill_tps, now.prefill_tps)
        or now.at - told.at > OLD_S
    )


def _off(old: float | None, new: float | None) -> bool:
    if old is None or new is None:
        return old is not new
    return abs(new - old) > OFF_BY * old


def _rounded(rate: Rate) -> Rate:
    """Three digits are more than such figures hold."""
    figures = {name: getattr(rate, name) for name in ("decode_tps", "prefill_tps", "first_token_ms")}
    shown = {name: None if value is None else float(f"{value:.3g}") for name, value in figures.items()}
    return msgspec.structs.replace(rate, at=round(rate.at), **shown)
