"""The local model by llama.cpp, in the worker of the extra `llama-cpp`, beside llama.cpp itself: same GGUF and threads.

    scripts/install_llama_cpp.sh && python -m benchmarks.llama_cpp_row

Both run in the environment that scripts/install_llama_cpp.sh builds. "llama.cpp" is the library alone: batches into
`llama_decode`, the likeliest token taken, nothing else; "ours" is the provider over its worker, as a node has it.
Decoding is timed from the first token to the last. They take turns within one run, and each counts with its best
round: quote the ratio, as times differ with the load.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .table import show

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "build/llama-cpp"
TOKENS = 48
ROUNDS = 3
STREAMS = (1, 4, 16)
PREFILL = 512
ANSWER_TOKENS = 24


def rows(environment: Path = BUILT / "venv", expected: Sequence[str] | None = None) -> dict[str, Any]:
    """The figures of both. environment: where llama-cpp-python is. expected: fp32's answers to `local.questions()`,
    of 24 tokens each; without them transformers makes them here, which takes a minute.

    {"ours": {"decode": {"1": tokens/s, ...}, "prefill": tokens/s, "memory_mb", "first_token_s", "cancel_s",
    "equal", "of"}, "llama.cpp": {"decode": {...}, "prefill", "load_s"}}. Raises CalledProcessError.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "expected.json"
        given.write_text(json.dumps(expected))
        command = [str(environment / "bin/python"), "-m", "benchmarks.llama_cpp_row", "--inside", str(given)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, env=_environ())
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _environ() -> dict[str, str]:
    from shoal.providers.hf_worker.link import SPINS

    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    return {"GOMP_SPINCOUNT": SPINS["llama_cpp"], **kept, "SHOAL_MODELS_DIR": str(BUILT / "models")}


# -- in that environment -----------------------------------------------------------------------------------------


class Own:
    """llama.cpp alone: sequences that all have the same prompt."""

    def __init__(self, file: Path, threads: int) -> None:
        from shoal.providers.hf_worker.llama_cpp_model import LlamaCpp

        began = time.perf_counter()
        self._model = LlamaCpp(file, threads=threads, positions=8192, gpu=False)
        self.load_s = time.perf_counter() - began

    def decode(self, prompt: list[int], streams: int) -> float:
        """Tokens a second of all streams together, without the prompt."""
        from shoal.providers.hf_worker.llama_cpp_engine import Piece

        model = self._model
        model.forget(-1)
        [logits] = model.compute([Piece(0, 0, prompt)], [len(prompt) - 1])
        following = [int(logits.argmax())] * streams
        for other in range(1, streams):
            model.copy(0, other, len(prompt))
        began = time.perf_counter()
        for at in range(TOKENS):
            pieces = [Piece(stream, len(prompt) + at, [token]) for stream, token in enumerate(following)]
            following = [int(row.argmax()) for row in model.compute(pieces, list(range(streams)))]
        return streams * TOKENS / (time.perf_counter() - began)

    def prefill(self, tokens: list[int]) -> float:
        from shoal.providers.hf_worker.llama_cpp_engine import Piece

        self._model.forget(-1)
        began = time.perf_counter()
        self._model.compute([Piece(0, 0, tokens)], [len(tokens) - 1])
        return len(tokens) / (time.perf_counter() - began)


async def paced(provider: Any, streams: int) -> float:
    """Tokens a second of all streams together, from the first token of any of them to the last of all."""
    import trio
    from shoal.providers.base import GenerateRequest, TextDelta, Usage

    from .local_model import STORY

    firsts: list[float] = []
    tokens: list[int] = []

    async def one() -> None:
        asked = GenerateRequest.of(STORY, max_tokens=TOKENS + 1, temperature=0.0)
        first = 0.0
        async with provider.generate(asked) as events:
            async for event in events:
                if isinstance(event, TextDelta) and not first:
                    first = trio.current_time()
                elif isinstance(event, Usage):
                    tokens.append(event.completion_tokens)
        firsts.append(first)

    async with trio.open_nursery() as nursery:
        for _ in range(streams):
            nursery.start_soon(one)
    return (sum(tokens) - streams) / (trio.current_time() - min(firsts))


async def measure(expected: list[str] | None) -> dict[str, Any]:
    import psutil
    from shoal.providers import weights
    from shoal.providers.base import GenerateRequest, TextDelta
    from shoal.providers.hf_worker.frames import Load
    from shoal.providers.hf_worker.llama_cpp_model import load_gguf
    from shoal.providers.local_hf import Settings, build
    from shoal.providers.settings import BuildContext

    from .local import questions
    from .local_model import LONG_PROMPT, STORY, cancelled, consume, memory_mb

    store = weights.models_dir(os.environ)
    gguf = weights.resolve("smollm2", store).gguf
    assert gguf is not None, "the model came without its GGUF"
    threads = len(os.sched_getaffinity(0))
    settings = Settings(models_dir=str(store), threads=threads, max_concurrent=16, kv_tokens=8192, engine="llama_cpp")
    provider = build("local_hf", settings, BuildContext(data_dir=store, environ=os.environ))
    ours: dict[str, Any] = {"decode": {}, "threads": threads}
    own: dict[str, Any] = {"decode": {}}

    def best(found: dict[str, float], name: str, value: float) -> None:
        found[name] = round(max(found.get(name, 0.0), value), 1)

    async with provider.running():
        ours["first_token_s"] = round((await consume(provider, "What is the capital of Japan?", 1))[1], 2)
        link = provider.keeper.link
        assert link is not None
        worker = psutil.Process(link.pid)
        ours["memory_mb"] = round(memory_mb(worker))
        library = Own(gguf, threads)
        own["load_s"] = round(library.load_s, 2)
        prompter = load_gguf(Load("smollm2", str(gguf), threads, kv_tokens=512, engine="llama_cpp")).prompter
        prompt = prompter.prompt(GenerateRequest.of(STORY)).messages
        for at in range(ROUNDS):
            for count in STREAMS:
                best(ours["decode"], str(count), await paced(provider, count))
                best(own["decode"], str(count), library.decode(prompt, count))
            text = f"{at} " + "word " * (PREFILL - len(prompter.prompt(GenerateRequest.of(f"{at} ")).messages))
            usage, first = await consume(provider, text, 1)
            best(ours, "prefill", usage.prompt_tokens / first)
            best(own, "prefill", library.prefill([1000 + at, *range(2000, 2000 + PREFILL - 1)]))
        ours["cancel_s"] = round(max([await cancelled(provider, f"{at} {LONG_PROMPT}", 0.3) for at in range(5)]), 3)
        answers = []
        for question in questions():
            asked = GenerateRequest.of(question, max_tokens=ANSWER_TOKENS, temperature=0.0)
            async with provider.generate(asked) as events:
                answers.append("".join([e.text async for e in events if isinstance(e, TextDelta)]))
        ours["memory_after_mb"] = round(memory_mb(worker))
    expected = expected or fp32(store / "smollm2")
    ours["equal"] = sum(a.strip() == b.strip() for a, b in zip(answers, expected, strict=True))
    ours["of"] = len(expected)
    return {"ours": ours, "llama.cpp": own}


def fp32(folder: Path) -> list[str]:
    """Greedy answers of transformers in fp32 to the questions."""
    import torch
    import transformers

    from .local import questions

    transformers.logging.set_verbosity_error()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), local_files_only=True, dtype=torch.float32
    )
    answers = []
    for question in questions():
        turns = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        options = {"max_new_tokens": ANSWER_TOKENS, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        answers.append(tokenizer.decode(model.generate(ids, **options)[0, ids.shape[1] :], skip_special_tokens=True))
    return answers


def main() -> None:
    if "--inside" in sys.argv:
        import trio

        given = json.loads(Path(sys.argv[-1]).read_text())
        print(json.dumps(trio.run(measure, given)))
        return
    found = rows()
    ours, own = found["ours"], found["llama.cpp"]
    table: list[tuple[str, ...]] = []
    for count in STREAMS:
        mine, its = ours["decode"][str(count)], own["decode"][str(count)]
        table.append((f"decode, {count} streams, tokens/s", f"{mine:.1f}", f"{its:.1f}", f"{mine / its:.2f}"))
    ratio = ours["prefill"] / own["prefill"]
    table.append((f"prefill {PREFILL}, tokens/s", f"{ours['prefill']:.0f}", f"{own['prefill']:.0f}", f"{ratio:.2f}"))
    table.append((f"answers equal to fp32, of {ours['of']}", str(ours["equal"]), "", ""))
    table.append(("no worker to first token", f"{ours['first_token_s']:.2f} s", "", ""))
    table.append(("cancel in a prompt of 1,200 tokens, worst of 5", f"{1000 * ours['cancel_s']:.0f} ms", "", ""))
    table.append(("memory, loaded", f"{ours['memory_mb']} MB", "", ""))
    show(
        f"SmolLM2-135M-Instruct Q4_1 by llama.cpp, {ours['threads']} threads, best of {ROUNDS}",
        ("what", "ours", "llama.cpp", "ratio"),
        table,
    )


if __name__ == "__main__":
    main()
