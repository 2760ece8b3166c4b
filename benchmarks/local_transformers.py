"""What transformers' own loop does with the converted model in fp32: the other column of `python -m benchmarks local`.

    python -m benchmarks.local_transformers FOLDER THREADS

A process of its own. Prints "first" after its first token, so that whoever started it knows how long that took, and
then one line of JSON.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from .local_prompts import ANSWER_TOKENS, JAPAN, LONG_PROMPT, PREFILL, ROUNDS, STORY, STREAMS, TEXT, TOKENS, questions


def managed(model: Any, tokens: list[int], rows: int) -> float | None:
    """Tokens a second of the library's continuous batching; None where it does not run."""
    try:
        options = transformers.GenerationConfig(
            max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=2
        )
        batching = transformers.ContinuousBatchingConfig(
            page_size=32,
            num_blocks=128,
            max_batch_tokens=512,
            max_requests_per_batch=16,
            use_async_batching=False,
            use_cuda_graph=False,
            auto_switch_to_flash=False,
        )
        best = 0.0
        for _ in range(ROUNDS):
            began = time.perf_counter()
            out = model.generate_batch(
                inputs=[tokens] * rows,
                generation_config=options,
                continuous_batching_config=batching,
                progress_bar=False,
            )
            count = sum(len(each.generated_tokens) for each in out.values())
            best = max(best, count / (time.perf_counter() - began))
    except Exception as fault:  # it is young, and differs between versions
        print(f"continuous batching does not run here ({type(fault).__name__}: {fault})", file=sys.stderr)
        return None
    return best


def main() -> None:
    folder, threads = sys.argv[1], int(sys.argv[2])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    model = loaded.eval()

    def prompt(text: str) -> Any:
        turns = [{"role": "user", "content": text}]
        whole = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return torch.tensor([tokenizer.encode(whole, add_special_tokens=False)])

    def generate(ids: Any, tokens: int, **options: Any) -> Any:
        options |= {"max_new_tokens": tokens, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        return model.generate(ids, **options)

    def prefill_s(ids: Any) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            model(ids, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - began

    generate(prompt(JAPAN), 1)
    print("first", flush=True)
    found: dict[str, Any] = {"decode": {}, "cpu_ms": {}}
    found["memory_mb"] = psutil.Process().memory_info().rss / 1e6
    for rows in STREAMS:
        batch = prompt(STORY).repeat(rows, 1)
        best = (9e9, 9e9)
        for _ in range(ROUNDS):
            wall, cpu = time.perf_counter(), time.process_time()
            generate(batch, TOKENS, min_new_tokens=TOKENS)
            best = min(best, (time.perf_counter() - wall, time.process_time() - cpu))
        found["decode"][rows] = rows * TOKENS / best[0]
        found["cpu_ms"][rows] = 1000 * best[1] / (rows * TOKENS)
    found["manager"] = {rows: managed(model, prompt(STORY)[0].tolist(), rows) for rows in STREAMS[1:]}
    found["prefill"] = PREFILL / min(prefill_s(torch.arange(1000, 1000 + PREFILL).unsqueeze(0)) for _ in range(ROUNDS))
    found["cancel_s"] = prefill_s(prompt(LONG_PROMPT))  # nothing ends it before
    found["answers"] = []
    for question in questions():
        ids = prompt(question)
        answer = generate(ids, ANSWER_TOKENS)[0, ids.shape[1] :]
        found["answers"].append(tokenizer.decode(answer, skip_special_tokens=True))
    tokens = tokenizer.encode(Path(TEXT).read_text(encoding="utf-8"), add_special_tokens=False)
    with torch.inference_mode():
        logits = model(torch.tensor([tokens])).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]))
    found["perplexity"] = math.exp(float(loss))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
