"""The local model in one table: what transformers' own loop does, what ours does, llama.cpp where it was built.

    python -m benchmarks local

SmolLM2-135M in a worker as a node runs it, driven through the provider; beside it, one after the other in the same run,
transformers' `generate` in fp32 on the same weights and threads, and llama.cpp (scripts/install_llama_cpp.sh builds
it). Quote ratios: times differ between machines and with their load. Installs the weights when they are missing.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trio
from shoal.providers import weights
from shoal.providers.hf_worker.link import worker_environ

from . import llama_cpp_row
from .local_model import measure
from .local_prompts import PREFILL, STREAMS, TEXT
from .local_prompts import questions as questions
from .table import show


def plain(folder: Path, threads: int) -> dict[str, Any]:
    """The figures of transformers' own loop; see `local_transformers.py`."""
    command = [sys.executable, "-m", "benchmarks.local_transformers", str(folder), str(threads)]
    began = time.perf_counter()
    environ, root = worker_environ(os.environ, threads), Path(__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, cwd=root) as process:
        assert process.stdout is not None
        process.stdout.readline()
        first = time.perf_counter() - began
        found: dict[str, Any] = json.loads(process.stdout.readline())
    return found | {"first_token_s": first}


def perplexity(model: Any) -> float:
    """Of the lean model, over the text beside this file."""
    import torch
    from shoal.providers.hf_worker.llama import Segment
    from shoal.providers.hf_worker.slot_memory import SlotMemory

    tokens, lean = model.prompter.tokens(TEXT.read_text(encoding="utf-8")), model.engine._model
    with torch.inference_mode():
        segment = Segment(SlotMemory(lean.memory_shape).values, 0, len(tokens))
        logits = lean(tokens, [segment], list(range(len(tokens))))
        return math.exp(float(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]))))


def second_turn(model: Any, sequence: Any) -> tuple[int, float, float]:
    """Tokens of history, and CPU seconds to the first token of a second turn with it kept and without."""
    history = [1000 + at * 7 % 5000 for at in range(1000)]
    new = [2000 + at for at in range(20)]

    def first(id_: int, tokens: list[int]) -> float:
        model.engine.add(sequence(id_, tokens, 2))
        began = time.process_time()
        while not model.engine.step(lambda id_: False):
            pass
        spent = time.process_time() - began
        model.engine.remove(id_)
        return spent

    first(9000, history)
    kept = first(9001, history + new)
    return len(history), kept, first(9002, [5, *history[1:], *new])


def in_this_process(folder: Path) -> dict[str, Any]:
    """Figures of the model without its worker: perplexity, and what a second turn costs."""
    from shoal.providers.hf_worker.engine import Sequence
    from shoal.providers.hf_worker.frames import Load
    from shoal.providers.hf_worker.model import load
    from shoal.providers.hf_worker.sampling import Sampler

    model = load(Load("smollm2", str(folder), len(os.sched_getaffinity(0)), kv_tokens=8192))
    history, kept, fresh = second_turn(model, lambda id_, tokens, room: Sequence(id_, tokens, room, Sampler(0.0)))
    return {"perplexity": perplexity(model), "history": history, "second_turn": fresh / kept}


def rows(ours: dict[str, Any], theirs: dict[str, Any], engine: dict[str, Any] | None) -> list[tuple[str, ...]]:
    """The table: figure, transformers, ours, llama.cpp alone and in our worker, gate, aim."""
    mine = engine["ours"] if engine else {}
    own = engine["llama.cpp"] if engine else {}
    table: list[tuple[str, ...]] = []

    def add(name: str, their: str, our: str, gate: str, aim: str, library: str = "-", extra: str = "-") -> None:
        table.append((name, their, our, library, extra, gate, aim))

    for count, gate, aim in zip(STREAMS, ("1.4x", "1.6x", "1.0x"), ("2x", "2x", "1.2x"), strict=True):
        their, our = theirs["decode"][str(count)], ours["decode"][count]
        library, extra = (each.get("decode", {}).get(str(count)) for each in (own, mine))
        add(
            f"decode, {count} stream{'s' if count > 1 else ''}, tokens/s",
            f"{their:.1f}",
            f"{our:.1f} ({our / their:.2f}x)",
            gate,
            aim + ("; extra 0.95x of llama.cpp" if count == 1 else ""),
            f"{library:.1f}" if library else "-",
            f"{extra:.1f} ({extra / library:.2f}x)" if library and extra else "-",
        )
        batched = theirs.get("manager", {}).get(str(count))
        if count > 1:
            ratio = f"({our / batched:.2f}x)" if batched else ""
            add("  beside the library's continuous batching", f"{batched:.1f}" if batched else "-", ratio, "", "")
        add("  CPU ms a token", f"{theirs['cpu_ms'][str(count)]:.1f}", f"{ours['cpu_ms'][count]:.1f}", "", "")
    expected = theirs["answers"]
    equal = sum(a.strip() == b.strip() for a, b in zip(ours["answers"], expected, strict=True))
    its = str(mine["equal"]) if "equal" in mine else "-"
    add(
        f"answers equal to fp32 on the GGUF's own values, of {len(expected)}",
        str(len(expected)),
        str(equal),
        "48",
        "50",
        extra=its,
    )
    add("perplexity", f"{theirs['perplexity']:.3f}", f"{ours['perplexity']:.3f}", "", "")
    ratio = ours["prefill"] / theirs["prefill"]
    library, extra = (f"{each['prefill']:.0f}" if each.get("prefill") else "-" for each in (own, mine))
    add(
        f"prefill {PREFILL}, tokens/s",
        f"{theirs['prefill']:.0f}",
        f"{ours['prefill']:.0f} ({ratio:.2f}x)",
        "0.9x",
        "1x",
        library,
        extra,
    )
    for name, key, gate, aim in (
        ("process start to first token, s", "first_token_s", "4", "2.5"),
        ("cancel in a prompt of 1,200, s (worst)", "cancel_s", "0.5", "0.25"),
        ("memory with the model loaded, MB", "memory_mb", "900", "450"),
    ):
        form = "{:.0f}" if key == "memory_mb" else "{:.2f}"
        extra = form.format(mine[key]) if key in mine else "-"
        add(name, form.format(theirs[key]), form.format(ours[key]), gate, aim, extra=extra)
    return table


def main() -> None:
    store = weights.models_dir(os.environ)
    folder = weights.install("smollm2", store)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as data:
        ours = trio.run(measure, store, Path(data))
    theirs = plain(folder, ours["threads"])
    ours |= in_this_process(folder)
    built = (llama_cpp_row.BUILT / "venv/bin/python").is_file()
    engine = llama_cpp_row.rows(expected=theirs["answers"]) if built else None
    show(
        f"SmolLM2-135M-Instruct, {ours['threads']} cores, load {before:.1f} to {os.getloadavg()[0]:.1f}",
        ("figure", "transformers fp32", f"ours ({ours['dtype']})", "llama.cpp", "extra llama-cpp", "gate", "aim"),
        rows(ours, theirs, engine),
    )
    if not built:
        print("llama.cpp: not built here; scripts/install_llama_cpp.sh builds it")
    show(
        "Beside the gates",
        ("what", "figure"),
        [
            ("of the first token: loading", f"{ours['load_s']:.2f} s"),
            ("first token, worker up, 37 tokens of prompt", f"{1000 * ours['warm_first_s']:.0f} ms"),
            ("leaving while decoding, worst of 10", f"{1000 * ours['leave_s']:.0f} ms"),
            (f"second turn after {ours['history']} tokens, CPU saved", f"{ours['second_turn']:.1f}x"),
            ("memory after all this", f"{ours['memory_after_mb']:.0f} MB"),
        ],
    )


if __name__ == "__main__":
    main()
