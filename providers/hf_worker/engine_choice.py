"""Which engine computes a model of transformers on a device: timed there once, kept on disk, or as the owner says.

On a GPU it is timed when a model is loaded there for the first time, in some seconds. On a CPU the answer is known (see
`ON_CPU`) and costs no start; `shoal models calibrate` times it all the same.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .calibration import keep, read
from .cores import usable_cores
from .engine import Engine, Sequence

FILE = ".engines.json"
"""In the store of models: which engine was fastest for each, by device."""
ENGINES = ("graphs", "paged", "slots")
"""`graph_engine.py`, `paged_engine.py`, `slots.py`; of equally fast ones the first is taken."""
ON_CPU = "graphs"
"""SmolLM2-135M in fp32 on one thread, milliseconds of CPU time a token at 1/4/16 streams: graphs (without graphs, but
with its one memory) 66/27/11, slots 66/27/10, paged 79/30/12. The first also reuses what prompts begin with alike."""
STREAMS = (1, 4, 16)
PROMPT_TOKENS = 32
WARM_STEPS = 3
"""Steps before the clock starts: kernels are chosen and graphs captured in them."""
TIMED_STEPS = 16
TRIAL_POSITIONS = 4096
"""Positions of the engines that are timed."""
WORTH = 1.1
"""How many times as fast as what is known to be good another engine must be."""
ROUNDS = 2
"""Times that each number of streams is timed; the best counts, so that another process's moment does not."""
TRIAL_S = 3.0
"""Seconds that the timed steps of one engine with one number of streams may take."""


def key(model: str, dtype: str, about: str) -> str:
    """What the choice depends on. dtype: as asked for; about: `device.about`."""
    if about == "cpu":
        about = f"cpu with {usable_cores()} cores"
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "llama-cpp-python"))
    return f"{model} {dtype} on {about}, {versions}"


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def known(file: Path, of: str) -> str | None:
    """The engine that was fastest: one of ENGINES, "lean" or "llama_cpp"; None when none was timed."""
    found = read(file).get(of)
    engine = found.get("engine") if isinstance(found, dict) else None
    return engine if engine in (*ENGINES, "lean", "llama_cpp") else None


def timed(engine: Engine, sampler: Callable[[], Any], streams: int, *, vocabulary: int = 1000) -> float:
    """Tokens per second that so many greedy streams get together."""
    ids = range(streams)
    for id_ in ids:
        tokens = [(31 * id_ + 7 * at) % (vocabulary - 1) + 1 for at in range(PROMPT_TOKENS)]
        engine.add(Sequence(id_, tokens, WARM_STEPS + TIMED_STEPS + streams + 8, sampler()))
    begun: set[int] = set()
    while len(begun) < streams:  # the prompts
        begun |= {id_ for id_, _ in engine.step(_stays)}
    for _ in range(WARM_STEPS):
        engine.step(_stays)
    count, began = 0, time.perf_counter()
    for _ in range(TIMED_STEPS):
        count += len(engine.step(_stays))
        if time.perf_counter() - began > TRIAL_S:
            break
    taken = time.perf_counter() - began
    for id_ in ids:
        engine.remove(id_)
    return count / taken


def compare(makers: Mapping[str, Callable[[], Engine]], sampler: Callable[[], Any]) -> dict[str, dict[int, float]]:
    """Engine -> streams -> tokens per second, for each engine that takes the model; one after the other."""
    found: dict[str, dict[int, float]] = {}
    for name, make in makers.items():
        try:
            engine = make()
        except Exception as fault:  # one that does not run here is no candidate
            print(f"the engine {name} is no candidate ({type(fault).__name__})", file=sys.stderr)
            continue
        try:
            found[name] = {streams: max(timed(engine, sampler, streams) for _ in range(ROUNDS)) for streams in STREAMS}
        except Exception as fault:
            print(f"the engine {name} is no candidate ({type(fault).__name__})", file=sys.stderr)
            found.pop(name, None)
        finally:
            close = getattr(engine, "close", None)
            if close is not None:
                close()
    return found


def best(found: Mapping[str, Mapping[int, float]], known: str = "") -> str | None:
    """The engine with the highest product of its rates: one stream counts as much as sixteen. None without any.

    known: what is taken without trials; another must be faster by `WORTH`.
    """
    worth = {
        name: math.prod(max(rate, 1e-9) for rate in rates.values()) ** (1 / len(STREAMS))
        for name, rates in found.items()
    }
    if not worth:
        return None
    fastest = max(worth, key=worth.__getitem__)
    return known if known in worth and worth[fastest] < WORTH * worth[known] else fastest


def write(file: Path, of: str, found: Mapping[str, Mapping[int, float]], chosen: str | None) -> None:
    """Keep what was timed and chosen, beside what is known of others."""
    rates = {name: {str(streams): round(rate, 1) for streams, rate in each.items()} for name, each in found.items()}
    keep(file, of, {"engine": chosen, "tokens_s": rates, "at": int(time.time())})


def _stays(_: int) -> bool:
    return False
