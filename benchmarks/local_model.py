"""The local model: tokens a second at 1, 4 and 16 streams, first token, prompts, cancelling, memory.

    python -m benchmarks local_model

SmolLM2-135M in a worker as a node runs it, driven through the provider. Beside it, in a process of its own, the
library's `generate` on the same weights, dtype and threads: quote the ratio to it, as times differ between machines
and with their load. CPU is the worker's user + system time per token. Installs the weights when they are missing.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import psutil
import trio
from shoal.providers import weights
from shoal.providers.base import GenerateRequest, Usage
from shoal.providers.hf_worker.link import worker_environ
from shoal.providers.local_hf import LocalHf, Settings, build
from shoal.providers.settings import BuildContext

from .table import show

STORY = "Write a long story about a dragon."
TOKENS = 48
LONG_PROMPT = "word " * 1200
ROUNDS = 3

PLAIN = """
import json, sys, time, torch, transformers
transformers.logging.set_verbosity_error(); transformers.logging.disable_progress_bar()
path, threads, tokens, prompt = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(threads)
tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
model = transformers.AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32).eval()
turns = [{"role": "user", "content": prompt}]
text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
out = {}
for rows in (1, 4, 16):
    batch = ids.repeat(rows, 1)
    best = (9e9, 9e9)
    options = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False}
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        model.generate(batch, attention_mask=torch.ones_like(batch), **options)
        best = min(best, (time.perf_counter() - wall, time.process_time() - cpu))
    out[rows] = [rows * tokens / best[0], 1000 * best[1] / (rows * tokens)]
print(json.dumps(out))
"""


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


async def measure(store: Path, folder: Path) -> None:
    threads = len(os.sched_getaffinity(0))
    settings = Settings(models_dir=str(store), threads=threads, max_concurrent=16)
    provider = build("local_hf", settings, BuildContext(data_dir=folder, environ=os.environ))
    async with provider.running():
        _, cold = await consume(provider, "What is the capital of Japan?", 8)
        link = provider.keeper.link
        assert link is not None
        assert link.info is not None
        worker = psutil.Process(link.pid)
        loaded = memory_mb(worker)
        firsts = sorted([(await consume(provider, "What is the capital of Japan?", 1))[1] for _ in range(5)])
        ours = {rows: await streams(provider, worker, rows) for rows in (1, 4, 16)}
        decoding = [await cancelled(provider, STORY, 0) for _ in range(10)]
        prompts = [await cancelled(provider, LONG_PROMPT, 0.3 + 0.05 * at) for at in range(10)]
        long_usage, long_first = await consume(provider, LONG_PROMPT, 1)
        long_tokens = long_usage.prompt_tokens
        after = memory_mb(worker)
        dtype, load_s = link.info.dtype, link.info.load_s
    command = [sys.executable, "-c", PLAIN, str(store / "smollm2"), str(threads), str(TOKENS), STORY]
    done = await trio.run_process(command, env=worker_environ(os.environ, threads), capture_stdout=True)
    plain = json.loads(done.stdout)
    show(
        f"SmolLM2-135M-Instruct, {dtype}, {threads} threads, {TOKENS} tokens a stream, best of {ROUNDS}",
        ("streams", "tokens/s", "library's generate", "ratio", "CPU ms a token", "library's"),
        [
            (
                str(rows),
                f"{ours[rows][0]:.1f}",
                f"{plain[str(rows)][0]:.1f}",
                f"{ours[rows][0] / plain[str(rows)][0]:.2f}",
                f"{ours[rows][1]:.1f}",
                f"{plain[str(rows)][1]:.1f}",
            )
            for rows in ours
        ],
    )
    show(
        "Waiting, leaving, memory",
        ("what", "figure"),
        [
            ("no worker to first token", f"{cold:.2f} s (of it loading {load_s:.2f} s)"),
            ("first token, 37 tokens of prompt", f"{1000 * firsts[2]:.0f} ms"),
            (f"first token, {long_tokens} tokens of prompt", f"{long_first:.2f} s ({long_tokens / long_first:.0f}/s)"),
            ("cancel while decoding, worst of 10", f"{1000 * max(decoding):.0f} ms"),
            ("cancel in a prompt, worst of 10", f"{1000 * max(prompts):.0f} ms"),
            ("memory, loaded", f"{loaded:.0f} MB"),
            ("memory, after all this", f"{after:.0f} MB"),
        ],
    )


def main() -> None:
    store = weights.models_dir(os.environ)
    weights.install("smollm2", store)
    with tempfile.TemporaryDirectory() as folder:
        trio.run(measure, store, Path(folder))


if __name__ == "__main__":
    main()
