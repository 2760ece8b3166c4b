"""The local model on a GPU in one table: its engines beside transformers' `generate` and the library's own manager.

    python -m benchmarks gpu

SmolLM2-135M, in the numbers that the device computes in, all in one run and one process. SHOAL_BENCH_DEVICE=cpu tries
it without a GPU; SHOAL_BENCH_MODEL is another folder of safetensors. Quote ratios of one run.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from .table import show

STREAMS = (1, 4, 16, 64)
TIMED = {"tokens": 64, "rounds": 3, "most": 64, "prefill": 512}
"""Tokens of an answer, how often each is timed (the best counts), most streams, and tokens of the long prompt."""
PROMPT = 32


class Row:
    """What one way of computing does. decode: tokens a second of all streams; first_s: of one after a short prompt."""

    def __init__(self) -> None:
        self.decode: dict[int, float] = {}
        self.prefill = 0.0
        self.first_s = 0.0


def streams() -> list[int]:
    """How many are tried."""
    return [rows for rows in STREAMS if rows <= TIMED["most"]]


def prompt(length: int, salt: int = 0) -> list[int]:
    return [(31 * salt + 7 * at + at * at) % 900 + 20 for at in range(length)]


def ours(make: Callable[[], Any], wait: Callable[[], None]) -> Row:
    """An engine, driven as the worker does it."""
    from shoal.providers.hf_worker.engine import Sequence
    from shoal.providers.hf_worker.sampling import Sampler

    engine, row = make(), Row()

    def answered(rows: int, tokens: int, length: int, salt: int) -> tuple[float, float]:
        """Seconds until each has its first token, and from then until each has all."""
        left = dict.fromkeys(range(rows), tokens)
        wait()
        began = time.perf_counter()
        for id_ in left:
            engine.add(Sequence(id_, prompt(length, salt + id_), tokens, Sampler(0.0)))
        first = 0.0
        begun: set[int] = set()
        while left:
            for id_, _ in engine.step(lambda _: False):
                begun.add(id_)
                if id_ in left:
                    left[id_] -= 1
                    if not left[id_]:
                        del left[id_]
                        engine.remove(id_)
            if not first and len(begun) == rows:
                wait()
                first = time.perf_counter() - began
        wait()
        return first, time.perf_counter() - began - first

    for rows in streams():
        took = [answered(rows, TIMED["tokens"], PROMPT, 100 * at) for at in range(TIMED["rounds"] + 1)]
        del took[0]  # kernels are chosen and graphs captured in it
        row.decode[rows] = rows * (TIMED["tokens"] - 1) / min(rest for _, rest in took)
        if rows == 1:
            row.first_s = min(first for first, _ in took)
    long = TIMED["prefill"]
    row.prefill = long / min(answered(1, 1, long, 7000 + at)[0] for at in range(TIMED["rounds"] + 1))
    engine.close()
    return row


def generate(model: Any, device: str, wait: Callable[[], None]) -> Row:
    """transformers' own loop: a fixed batch that starts and ends together."""
    import torch

    row = Row()

    def run(rows: int, tokens: int, length: int, salt: int) -> float:
        ids = torch.tensor([prompt(length, salt + at) for at in range(rows)], device=device)
        options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        wait()
        began = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        wait()
        return time.perf_counter() - began

    run(1, 4, PROMPT, 1)
    for rows in streams():
        first = min(run(rows, 1, PROMPT, 100 * at) for at in range(TIMED["rounds"]))
        whole = min(run(rows, TIMED["tokens"], PROMPT, 100 * at) for at in range(TIMED["rounds"]))
        row.decode[rows] = rows * (TIMED["tokens"] - 1) / (whole - first)
        if rows == 1:
            row.first_s = first
    row.prefill = TIMED["prefill"] / min(run(1, 1, TIMED["prefill"], at) for at in range(TIMED["rounds"]))
    return row


def manager(model: Any) -> Row | None:
    """The library's continuous batching by its own loop, prompts included; None where it does not run."""
    import transformers

    row = Row()
    options = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=TIMED["tokens"])
    batching = transformers.ContinuousBatchingConfig(
        page_size=32, num_blocks=512, max_batch_tokens=512, max_requests_per_batch=64, auto_switch_to_flash=False
    )
    try:
        for rows in streams():
            best = 0.0
            for at in range(TIMED["rounds"]):
                inputs = [prompt(PROMPT, 100 * at + salt) for salt in range(rows)]
                began = time.perf_counter()
                out = model.generate_batch(
                    inputs=inputs, generation_config=options, continuous_batching_config=batching, progress_bar=False
                )
                count = sum(len(each.generated_tokens) for each in out.values())
                best = max(best, count / (time.perf_counter() - began))
            row.decode[rows] = best
    except Exception as fault:  # it is young, and differs between versions
        print(f"the library's manager does not run here ({type(fault).__name__}: {fault})", file=sys.stderr)
        return None
    return row


def main() -> None:
    import torch
    from shoal.providers import weights
    from shoal.providers.hf_worker.device import about, choose, missing
    from shoal.providers.hf_worker.frames import Load
    from shoal.providers.hf_worker.hf_model import engines_for, loaded

    device = choose(os.environ.get("SHOAL_BENCH_DEVICE", "cuda"))
    if reason := missing(device):
        print(f"no figures of a GPU: {reason.partition(';')[0]}")
        return
    folder = os.environ.get("SHOAL_BENCH_MODEL") or str(weights.install("smollm2", weights.models_dir(os.environ)))
    if device == "cpu":
        TIMED.update(tokens=4, rounds=1, most=4, prefill=64)
        print("a trial without a GPU: few streams and tokens, once")
    model, _ = loaded(Load("smollm2", folder, device=device), device)
    _, made = engines_for(model, Load("smollm2", folder, kv_tokens=16_384), device)

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    rows: dict[str, Row | None] = {}
    for name, make in made.items():
        try:
            rows[f"shoal, {name}"] = ours(lambda make=make: make(16_384), wait)  # type: ignore[misc]
        except Exception as fault:
            print(f"the engine {name} does not run here ({type(fault).__name__}: {fault})", file=sys.stderr)
    rows["transformers generate, fixed batch"] = generate(model, device, wait)
    rows["transformers generate_batch, prompts included"] = manager(model)
    numbers = str(model.dtype).removeprefix("torch.")
    show(
        f"Local model, {about(device)}, {numbers}, torch {torch.__version__}: tokens a second",
        (
            "",
            *(f"{rows} stream{'s' if rows > 1 else ''}" for rows in streams()),
            f"prefill {TIMED['prefill']}",
            "first token, ms",
        ),
        [
            (
                name,
                *(f"{row.decode[count]:.0f}" for count in streams()),
                f"{row.prefill:.0f}" if row.prefill else "-",
                f"{1000 * row.first_s:.1f}" if row.first_s else "-",
            )
            for name, row in rows.items()
            if row is not None
        ],
    )


if __name__ == "__main__":
    main()
