"""What a provider adds over the server that it asks: time to the first token, time to the end, CPU.

    python -m benchmarks providers

The upstream is the tests' fake one, in a process of its own; "itself" is the same request by our HTTP client with the
bytes read and thrown away, which is the floor of what any client pays. The two take turns, request by request, so that
the machine's moods meet both; a figure is the median, of `added` the median difference between neighbours. CPU is user
and system time of this process. `simple` asks a function that returns at once, so that its floor is nothing and what it
adds is the thread. The local model and the tools have benchmarks of their own.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import trio
from shoal.protocols.http.client import Client
from shoal.providers import backend_manager, openai_compat, openrouter
from shoal.providers.base import GenerateRequest, Provider, TextDelta
from shoal.providers.openai_wire import body_of
from shoal.providers.settings import BuildContext, ProviderSettings
from shoal.providers.simple import SimpleProvider

from .table import show

ROUNDS, COUNT = 10, 40
WORDS = 50
ASK = GenerateRequest.of("What is the opposite of hot?", model="stub", max_tokens=WORDS)
Way = Callable[[], Awaitable[tuple[float, float]]]
"""One request: seconds to the first token, seconds in all."""


@contextlib.contextmanager
def upstream() -> Any:
    """The fake upstream as a process; gives the base URL of a stream of WORDS tokens, each in a write of its own."""
    script = Path(__file__).parents[1] / "tests/providers/fake_upstream.py"
    process = subprocess.Popen([sys.executable, str(script), "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        yield f"http://127.0.0.1:{port}/s/words{WORDS}+each"
    finally:
        process.terminate()
        process.wait()


def direct(client: Client, url: str) -> Way:
    body = body_of(ASK, "stub")
    headers = [("content-type", "application/json"), ("authorization", "Bearer x")]

    async def ask() -> tuple[float, float]:
        began, first = time.perf_counter(), 0.0
        async with client.request("POST", f"{url}/chat/completions", headers=headers, body=body) as response:
            async for chunk in response:
                if not first and b'"content":"word' in chunk:
                    first = time.perf_counter() - began
        return first, time.perf_counter() - began

    return ask


def through(provider: Provider) -> Way:
    async def ask() -> tuple[float, float]:
        began, first = time.perf_counter(), 0.0
        async with provider.generate(ASK) as events:
            async for event in events:
                if not first and type(event) is TextDelta:
                    first = time.perf_counter() - began
        return first, time.perf_counter() - began

    return ask


class Quick:
    models = ("stub",)

    def generate(self, prompt: str, *, model_name: str | None = None, **options: Any) -> str:
        return "cold"


async def nothing() -> tuple[float, float]:
    await trio.lowlevel.checkpoint()
    return 0.0, 0.0


def providers(url: str) -> dict[str, Provider]:
    context = BuildContext(Path("unused"), {"OPENROUTER_API_KEY": "x", "SHOAL_OPENROUTER_BASE_URL": f"{url}/api/v1"})
    compat = openai_compat.Settings(base_url=f"{url}/v1", models=("stub",))
    made: dict[str, Provider] = {
        "openai_compat": openai_compat.build("openai_compat", compat, context),
        "openrouter": openrouter.build("openrouter", openrouter.Settings(any_model=True), context),
    }
    for strategy in ("round_robin", "least_loaded", "best_performance"):
        backends = {f"b{i}": {"base_url": f"{url}/v1", "models": ["stub"]} for i in range(3)}
        settings = msgspec.convert({"backends": backends, "strategy": strategy}, backend_manager.Settings)
        made[f"backend_manager, 3 x {strategy}"] = backend_manager.build("backend_manager", settings, context)
    return made


class Sample(NamedTuple):
    """One request, in seconds."""

    first: float
    whole: float
    cpu: float


async def timed(way: Way) -> Sample:
    cpu = time.process_time()
    first, whole = await way()
    return Sample(first, whole, time.process_time() - cpu)


@contextlib.asynccontextmanager
async def running(made: dict[str, Provider]) -> AsyncGenerator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for provider in made.values():
            await stack.enter_async_context(provider.running())
            await provider.probe()
        yield


async def measure(url: str) -> list[tuple[str, ...]]:
    client, made = Client(environ={}), providers(url)
    floor = direct(client, f"{url}/v1")
    simple = SimpleProvider("simple", Quick(), ProviderSettings())
    ways: dict[str, tuple[Way, Way]] = {name: (floor, through(provider)) for name, provider in made.items()}
    ways["simple (a function that returns at once)"] = (nothing, through(simple))
    pairs: dict[str, list[tuple[Sample, Sample]]] = {name: [] for name in ways}
    async with client.running(), running(made):
        for turn in range(ROUNDS + 1):
            for name, (itself, ours) in ways.items():
                seen = [(await timed(itself), await timed(ours)) for _ in range(COUNT)]
                if turn:  # the first round is to warm up
                    pairs[name] += seen
    return [_row(name, seen) for name, seen in pairs.items()]


def _row(name: str, pairs: list[tuple[Sample, Sample]]) -> tuple[str, ...]:
    def itself(i: int) -> float:
        return statistics.median(pair[0][i] for pair in pairs)

    def added(i: int) -> float:
        return statistics.median(pair[1][i] - pair[0][i] for pair in pairs)

    return (name, *(_ms(value) for i in range(3) for value in (itself(i), added(i))))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"


def main() -> None:
    with upstream() as url:
        rows = trio.run(measure, url)
    head = ("ms; p50", "first token", "added", "whole answer", "added", "CPU", "added")
    show(f"A request through a provider, {WORDS} tokens each in a write of its own", head, rows)


if __name__ == "__main__":
    main()
