"""Engines of this machine that offer the same model are timed once, so that the faster one can be asked first.

What requests show is measured anyway (routing/rates.py); but who comes second in the order is never asked, and so
never known. When nobody asks for anything, each such engine writes one short answer, and what it took is kept with its
date like any other rate. Nothing is done where only one engine has a model, where the owner has set an order, or for
an engine that would break off somebody else's answer (`Provider.disturbs`).

    trials = Trials(source, registry, rates, idle=lambda: router.in_flight == 0, after_s=20)
    await trials.run()              # until cancelled
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import trio

from ..providers.base import Finish, GenerateRequest, Provider, ProviderError, Status, TextDelta, Usage
from .routing.rates import Rates

log = logging.getLogger(__name__)

LOOK_S = 20.0
"""Seconds between two looks whether something is to be timed."""
TRIAL_S = 60.0
"""Seconds that one trial may take, with the loading of the model."""
AGAIN_S = 7 * 24 * 3600.0
"""Seconds after which what was measured is too old."""
RETRY_S = 3600.0
"""Seconds after which an engine that failed is timed again."""
WARM_TOKENS, TIMED_TOKENS = 2, 48
GREETING = "Hello."
QUESTION = "Write a long story about a journey by train through the mountains."


class Source(Protocol):
    """What is wanted of routing/candidates.py."""

    @property
    def statuses(self) -> Mapping[str, Status]: ...
    async def refresh(self) -> None: ...


class Trials:
    """See the module. providers: by name. idle: whether nobody asks for anything now. after_s: 0 never begins."""

    def __init__(
        self,
        source: Source,
        providers: Mapping[str, Provider],
        rates: Rates,
        *,
        idle: Callable[[], bool],
        after_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source, self._providers, self._rates = source, providers, rates
        self._idle, self._after_s, self._clock = idle, after_s, clock
        self._failed: dict[tuple[str, str], float] = {}

    async def run(self) -> None:
        """Time what is due, until cancelled."""
        if not self._after_s:
            return
        await trio.sleep(self._after_s)
        while True:
            await self.look()
            await trio.sleep(LOOK_S)

    async def look(self) -> None:
        """Time all that is due now, one after the other, as long as nobody asks for anything."""
        timed = False
        for name, model in list(self.due()):
            if not self._idle():
                break
            timed = await self._time(name, model) or timed
        if timed:
            await self._source.refresh()

    def due(self) -> Iterator[tuple[str, str]]:
        """(provider, model) of engines here that share a model and were not timed lately."""
        offers: dict[str, list[str]] = {}
        for name, status in self._source.statuses.items():
            provider = self._providers.get(name)
            if provider is None or not provider.runs_here or not status.ready:
                continue
            for model in status.models:
                if model.capabilities.writes:
                    offers.setdefault(model.name, []).append(name)
        now = self._clock()
        for model_name, names in offers.items():
            if len(names) < 2:
                continue
            for name in names:
                place = (name, model_name)
                known = self._rates.known(*place)
                fresh = known is not None and known.decode_tps is not None and now - known.at < AGAIN_S
                waits = now - self._failed.get(place, float("-inf")) < RETRY_S
                if not fresh and not waits and not self._providers[name].disturbs:
                    yield place

    async def _time(self, name: str, model: str) -> bool:
        """Two answers: the first loads what must be loaded, the second counts. False when that fails."""
        provider, why = self._providers[name], f"no answer within {TRIAL_S:g} s"
        with trio.move_on_after(TRIAL_S):
            try:
                await self._answer(provider, model, GREETING, WARM_TOKENS)
                first_s, rest_s, tokens = await self._answer(provider, model, QUESTION, TIMED_TOKENS)
                if tokens > 1 and rest_s > 0:
                    self._rates.timed(name, model, (tokens - 1) / rest_s, 1000 * first_s)
                    log.info("timed %s with %s: %.0f tokens/s", name, model, (tokens - 1) / rest_s)
                    return True
                why = "its answer was too short to tell"
            except ProviderError as error:
                why = str(error.kind)
        log.info("%s with %s could not be timed: %s", name, model, why)
        self._failed[(name, model)] = self._clock()
        return False

    async def _answer(self, provider: Provider, model: str, text: str, most: int) -> tuple[float, float, int]:
        """Seconds to the first text, from there to the last, and tokens."""
        request = GenerateRequest.of(text, model=model, max_tokens=most, temperature=0.0)
        began = last = trio.current_time()
        first: float | None = None
        pieces = tokens = 0
        async with provider.generate(request) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    pieces, last = pieces + 1, trio.current_time()
                    first = last if first is None else first
                elif isinstance(event, Usage):
                    tokens = event.completion_tokens
                elif isinstance(event, Finish):
                    break
        first = last if first is None else first
        return first - began, last - first, tokens or pieces
