"""What the local model is measured with, and what is measured of a worker as a node runs it. `local.py` prints it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import trio
from shoal.providers.base import GenerateRequest, TextDelta, Usage
from shoal.providers.local_hf import LocalHf, Settings, build
from shoal.providers.settings import BuildContext

from .local_prompts import ANSWER_TOKENS, JAPAN, LONG_PROMPT, PREFILL, ROUNDS, STORY, STREAMS, TOKENS, questions


async def consume(provider: LocalHf, prompt: str, tokens: int) -> tuple[Usage, float]:
    """What the answer took in tokens, and seconds to its first event."""
    began, first, usage = trio.current_time(), 0.0, Usage(0, 0)
    async with provider.generate(GenerateRequest.of(prompt, max_tokens=tokens, temperature=0)) as events:
        async for event in events:
            first = first or trio.current_time() - began
            if isinstance(event, Usage):
                usage = event
    return usage, first


async def streams(provider: LocalHf, worker: psutil.Process, rows: int) -> tuple[float, float]:
    """Tokens per second of `rows` streams together, and CPU milliseconds per token; the best of some rounds."""
    best = (0.0, 0.0)
    for _ in range(ROUNDS):
        counts: list[int] = []

        async def one(counts: list[int] = counts) -> None:
            counts.append((await consume(provider, STORY, TOKENS))[0].completion_tokens)

        began, before = trio.current_time(), sum(worker.cpu_times()[:2])
        async with trio.open_nursery() as nursery:
            for _ in range(rows):
                nursery.start_soon(one)
        wall, cpu = trio.current_time() - began, sum(worker.cpu_times()[:2]) - before
        best = max(best, (sum(counts) / wall, 1000 * cpu / sum(counts)))
    return best


async def cancelled(provider: LocalHf, prompt: str, after_s: float) -> float:
    """Seconds from leaving an answer until the worker says that nothing is done for it any more."""
    async with provider.generate(GenerateRequest.of(prompt, max_tokens=500)) as call:
        if after_s:
            await trio.sleep(after_s)
        else:
            await anext(aiter(call))
    began = trio.current_time()
    await call.over.wait()  # type: ignore[attr-defined]
    return trio.current_time() - began


def memory_mb(worker: psutil.Process) -> float:
    return float(worker.memory_info().rss) / 1e6


async def answers(provider: LocalHf) -> list[str]:
    """Greedy answers to the questions, eight at a time."""
    found: dict[str, str] = {}
    limit = trio.CapacityLimiter(8)

    async def one(question: str) -> None:
        asked = GenerateRequest.of(question, max_tokens=ANSWER_TOKENS, temperature=0.0)
        async with limit, provider.generate(asked) as events:
            found[question] = "".join([event.text async for event in events if isinstance(event, TextDelta)])

    async with trio.open_nursery() as nursery:
        for question in questions():
            nursery.start_soon(one, question)
    return [found[question] for question in questions()]


async def prefill(provider: LocalHf) -> float:
    """Tokens of a prompt a second, over the whole way: the first token of an answer is the end. The best of some."""
    best = 0.0
    for at in range(ROUNDS):  # each begins in another way, so that nothing is reused
        usage, first = await consume(provider, f"{at} " + "word " * (PREFILL - 33), 1)
        best = max(best, usage.prompt_tokens / first)
    return best


async def measure(store: Path, folder: Path) -> dict[str, Any]:
    """All figures of a worker with SmolLM2 from `store`; times in seconds, memory in MB."""
    threads = len(os.sched_getaffinity(0))
    settings = Settings(models_dir=str(store), max_concurrent=16)
    provider = build("local_hf", settings, BuildContext(data_dir=folder, environ=os.environ))
    found: dict[str, Any] = {"threads": threads, "decode": {}, "cpu_ms": {}}
    async with provider.running():
        _, found["first_token_s"] = await consume(provider, JAPAN, 8)
        link = provider.keeper.link
        assert link is not None
        assert link.info is not None
        worker = psutil.Process(link.pid)
        found["dtype"], found["load_s"] = link.info.dtype, link.info.load_s
        await trio.sleep(1)  # what drafts is made beside the first answer
        found["memory_mb"] = memory_mb(worker)
        for rows in STREAMS:
            found["decode"][rows], found["cpu_ms"][rows] = await streams(provider, worker, rows)
        found["prefill"] = await prefill(provider)
        found["warm_first_s"] = min([(await consume(provider, JAPAN, 1))[1] for _ in range(5)])
        found["leave_s"] = max([await cancelled(provider, STORY, 0) for _ in range(10)])
        prompts = [f"{at} {LONG_PROMPT}" for at in range(10)]
        found["cancel_s"] = max([await cancelled(provider, text, 0.3 + 0.05 * at) for at, text in enumerate(prompts)])
        found["answers"] = await answers(provider)
        found["memory_after_mb"] = memory_mb(worker)
    return found
