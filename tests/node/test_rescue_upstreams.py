"""A thousand streams that break off at random, and a thousand callers who leave at random, over real connections."""

from __future__ import annotations

import contextlib
import gc
import os
import random
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import trio
from shoal.node.routing.candidate import Candidate
from shoal.node.routing.limits import RoutingLimits
from shoal.node.routing.router import Router
from shoal.providers import openai_compat
from shoal.providers.base import GenerateRequest, Provider
from shoal.providers.settings import BuildContext

from tests.providers.fake_upstream import FakeUpstream

from .fakes_router import Told, ask, routing

STREAMS = 1000
AT_ONCE = 20


def provider(name: str, base_url: str, **keys: Any) -> Provider:
    told = {"base_url": base_url, "models": ["stub"], "max_concurrent": AT_ONCE, **keys}
    settings = msgspec.convert(told, openai_compat.Settings)
    return openai_compat.build(name, settings, BuildContext(Path("unused"), {}))


@contextlib.asynccontextmanager
async def over(*parts: tuple[str, str, bool], upstream: FakeUpstream) -> AsyncGenerator[Router]:
    """A router over (name, scenario, whether it continues a prefix)."""
    candidates = []
    async with contextlib.AsyncExitStack() as stack:
        for name, scenario, continues in parts:
            made = provider(name, upstream.url(scenario), continues=continues)
            await stack.enter_async_context(made.running())
            candidates.append(Candidate(provider=made, name=name, model="stub", continues=continues))
        yield await stack.enter_async_context(
            routing(*candidates, limits=RoutingLimits(retry_min_s=0.0, retry_max_s=0.01))
        )


async def test_a_thousand_streams_that_break_off_anywhere_arrive_whole() -> None:
    """Each is cut after a random token by two upstreams in a row, in pieces that split characters and events."""
    dice = random.Random(4)
    wrong: list[Told] = []
    broken = 0

    async def some(count: int, router: Router) -> None:
        nonlocal broken
        for _ in range(count):
            words = [dice.choice(("漢字", "naïve", "🐟🐠", "a", '"q"', "\\n")) for _ in range(dice.randint(1, 12))]
            text = " ".join([str(dice.random()), *words])
            request = GenerateRequest.of(text, model="stub", temperature=dice.choice((0.0, 0.7)))
            told = await ask(router, request)
            broken += sum(outcome == "interrupted" for _, outcome in told.outcomes)
            if told.text != f"ECHO<{text}>" or told.error is not None:
                wrong.append(told)

    async with (
        FakeUpstream(keep=False) as upstream,
        over(
            ("first", "dies+each+shred", False), ("second", "dies+each+shred", True), ("third", "ok+each+shred", True),
            upstream=upstream,
        ) as router,
    ):  # fmt: skip
        # Two in three streams break off, which is what this is about: no breaker shall spare them.
        router.health.failed = lambda *_: None  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(some, STREAMS // AT_ONCE, router)
        await upstream.until(idle=True)
    assert not wrong
    assert broken > STREAMS / 2


async def test_a_thousand_callers_who_leave_at_random_leave_nothing_behind() -> None:
    dice = random.Random(5)

    async def some(count: int, router: Router) -> None:
        for i in range(count):
            with trio.move_on_after(dice.uniform(0, 0.03)):
                await ask(router, GenerateRequest.of(f"{dice.random()} {i} two three four", model="stub"))

    async with (
        FakeUpstream(keep=False) as upstream,
        over(("first", "slow5+cut+each", False), ("second", "slow5+each", True), upstream=upstream) as router,
    ):
        await some(20, router)
        await upstream.until(idle=True)
        gc.collect()
        tasks, files = trio.lowlevel.current_statistics().tasks_living, len(os.listdir("/proc/self/fd"))
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(some, STREAMS // AT_ONCE, router)
        with trio.fail_after(1):
            while router.in_flight:
                await trio.sleep(0.01)
        await upstream.until(idle=True, within=1)
        assert len(router.flights) == 0
        assert len(router.alarms) < 300
        # Connections that are kept for the next request, on both sides of them, are all that may have come.
        kept = 2 * 2 * AT_ONCE
        assert len(os.listdir("/proc/self/fd")) <= files + kept
        assert trio.lowlevel.current_statistics().tasks_living <= tasks + kept
