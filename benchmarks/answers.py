"""Are the local model's greedy answers those of transformers in fp32? Asked with prompts of many kinds.

    python -m benchmarks answers                (BENCH_ANSWERS=20 asks fewer)

The fifty questions of `local_prompts.py`, and a hundred others from `answers.jsonl`: code, lists, a dozen languages,
long texts, chats of several turns, system prompts; 24 to 256 tokens each, several at a time. The reference is
transformers' model in fp32 on the converted weights, which are the GGUF's own values, unrounded: it reads each prompt
with our answer once, and where its likeliest token is another one than ours, its answer would have gone another way.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from shoal.providers import weights

from .local_prompts import ANSWER_TOKENS, questions
from .table import show

MORE = Path(__file__).parent / "answers.jsonl"
"""One prompt a line: messages, and how many tokens of its answer are compared."""
MOST = int(os.environ.get("BENCH_ANSWERS", "1000"))
TOGETHER = 4


def prompts() -> list[tuple[list[dict[str, str]], int]]:
    """Messages and tokens of each."""
    asked = [([{"role": "user", "content": question}], ANSWER_TOKENS) for question in questions()]
    more = [json.loads(line) for line in MORE.read_text(encoding="utf-8").splitlines()]
    return asked + [(each["messages"], each["tokens"]) for each in more]


def answers(model: Any, asked: list[tuple[list[int], int]]) -> list[list[int]]:
    """Our tokens for each prompt."""
    from shoal.providers.hf_worker.engine import Sequence
    from shoal.providers.hf_worker.sampling import Sampler

    found: list[list[int]] = [[] for _ in asked]
    waiting, running = list(range(len(asked))), set[int]()
    while waiting or running:
        while waiting and len(running) < TOGETHER:
            at = waiting.pop(0)
            running.add(at)
            model.engine.add(Sequence(at, *asked[at], Sampler(0.0)))
        for at, token in model.engine.step(lambda id_: False):
            if at in running:
                found[at].append(token)
                if token in model.ends or len(found[at]) == asked[at][1]:
                    running.remove(at)
                    model.engine.remove(at)
    return found


def same(reference: Any, prompt: list[int], answer: list[int]) -> bool:
    """Whether the reference would have taken each of these tokens, too."""
    import torch

    with torch.inference_mode():
        logits = reference(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
    return bool((logits.argmax(-1) == torch.tensor(answer)).all())


def main() -> None:
    import transformers
    from shoal.providers.hf_worker.frames import Load
    from shoal.providers.hf_worker.model import load

    folder = weights.install("smollm2", weights.models_dir(os.environ))
    model = load(Load("smollm2", str(folder), len(os.sched_getaffinity(0)), kv_tokens=8192))
    template: Any = model.prompter._tokenizer
    chosen = prompts()[:MOST]
    asked = []
    for messages, tokens in chosen:
        text = template.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        asked.append((model.prompter.tokens(text), tokens))
    ours = answers(model, asked)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True, dtype="float32")
    reference = loaded.eval()
    equal = [same(reference, prompt, answer) for (prompt, _), answer in zip(asked, ours, strict=True)]
    fifty = len(questions())
    rows = [("the fifty questions", equal[:fifty], ours[:fifty]), ("others", equal[fifty:], ours[fifty:])]
    show(
        f"Greedy answers of SmolLM2-135M ({model.dtype}) that are transformers' in fp32 on the GGUF's own values",
        ("prompts", "equal", "of", "tokens"),
        [(name, sum(found), len(found), sum(map(len, tokens))) for name, found, tokens in rows if found],
    )


if __name__ == "__main__":
    main()
