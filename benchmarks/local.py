"""The local model's answers: equal to fp32, perplexity, a chat's second turn, continuing from any place.

    python -m benchmarks local              (speed and memory: `python -m benchmarks local_model`)

The oracle is transformers in fp32 on the converted weights. Runs in one process with torch; figures are of answers, not
of time, except for the second turn, where both times are CPU seconds of the same process.
"""

from __future__ import annotations

import math
import os
import random
import time
from pathlib import Path
from typing import Any

import msgspec
from shoal.providers import weights
from shoal.providers.base import GenerateRequest
from shoal.providers.hf_worker import server
from shoal.providers.hf_worker.frames import Generate, Said

from .table import show

TOKENS = 24
CUTS = int(os.environ.get("BENCH_CUTS", "1000"))
CUT_TOKENS = 40
PROMPTS = """\
What is the capital of Japan?|What is the opposite of hot?|What colour is the sky?|How many days are in a week?
What is 2+2?|Name three fruits.|What is water made of?|Describe the ocean.|Explain gravity to a child.
Write a long story about a dragon.|Name three colors and describe each.|Write two sentences about rivers.
What do bees make?|Who wrote Romeo and Juliet?|What is a noun?|Give me a recipe for pancakes.|What is a computer?
Write a short poem about the moon.|How do plants grow?|What is the largest ocean?|Why do we sleep?
List five animals.|What is the boiling point of water?|Tell me a fact about cats.|How does a bicycle work?
What is a prime number?|Write a polite email to a colleague.|What is photosynthesis?|Name a famous painter.
Describe a sunny day.|What is the purpose of a heart?|How do I make tea?|What is music?|What does a doctor do?
Translate "good morning" into Spanish.|What is the first month of the year?|Why is the sea salty?
What is a triangle?|Give advice to a new student.|Write a haiku about snow.|What is democracy?|What is snow?
How many legs does a spider have?|What is a library for?|Describe your favourite season.|What is a planet?
Write one sentence about friendship.|What do cows eat?|What is an algorithm?|How do birds fly?"""


def questions() -> list[str]:
    found = [each for line in PROMPTS.splitlines() for each in line.split("|")]
    assert len(found) == 50
    return found


def drive(model: Any, sequences: list[Any]) -> dict[int, list[int]]:
    """All sequences to their ends, eight at a time."""
    out: dict[int, list[int]] = {each.id: [] for each in sequences}
    waiting, running = list(sequences), {}
    while waiting or running:
        while waiting and len(running) < 8:
            running[waiting[0].id] = waiting[0].room
            model.engine.add(waiting.pop(0))
        for id_, token in model.engine.step(lambda id_: False):
            if id_ in running:
                out[id_].append(token)
                if len(out[id_]) >= running[id_] or token in model.ends:
                    model.engine.remove(id_)
                    del running[id_]
    return out


def quality(model: Any, oracle: Any, sequence: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Greedy answers to the questions: ours, and transformers'."""
    import torch

    prompts = [model.prompter.prompt(GenerateRequest.of(question)).messages for question in questions()]
    ours = drive(model, [sequence(at, prompt, TOKENS) for at, prompt in enumerate(prompts)])
    theirs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": TOKENS, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        theirs.append(oracle.generate(ids, **options)[0, len(prompt) :].tolist())
    return [ours[at] for at in range(len(prompts))], theirs


def perplexity(logits: Any, tokens: list[int]) -> float:
    import torch

    return math.exp(float(torch.nn.functional.cross_entropy(logits[:-1].float(), torch.tensor(tokens[1:]))))


def continued(model: Any, rng: random.Random) -> tuple[int, int]:
    """Answers cut at random characters and gone on from: how many came out as the uninterrupted, of how many."""

    class Wire:
        """Pipes that end here."""

        def __init__(self) -> None:
            self.inbox: list[Any] = []
            self.cancelled: set[int] = set()
            self.said: dict[int, str] = {}
            self.finished: set[int] = set()

        def receive(self, wait: bool) -> Any:
            return self.inbox.pop(0) if self.inbox else None

        def send(self, frame: Any) -> None:
            if isinstance(frame, Said):
                text = getattr(frame.event, "text", "")
                self.said[frame.id] = self.said.get(frame.id, "") + text
                if type(frame.event).__name__ == "Finish":
                    self.finished.add(frame.id)

        def flush(self) -> None:
            pass

    wire = Wire()
    serving = server.Server(wire, model)  # type: ignore[arg-type]

    def answers(requests: dict[int, GenerateRequest]) -> dict[int, str]:
        wire.said, wire.finished = dict.fromkeys(requests, ""), set()
        waiting = [Generate(id_, request) for id_, request in requests.items()]
        while len(wire.finished) < len(requests):
            while waiting and len(serving._answers) + len(wire.inbox) < 8:
                wire.inbox.append(waiting.pop(0))
            serving.turn()
        return wire.said

    asked = {at: GenerateRequest.of(q, max_tokens=CUT_TOKENS, temperature=0.0) for at, q in enumerate(questions())}
    whole = answers(asked)
    cuts = []
    for id_ in range(100, 100 + CUTS):
        at = rng.choice([each for each in asked if len(whole[each]) > 3])
        cuts.append((id_, at, rng.randrange(1, len(whole[at]))))
    tails = answers({id_: msgspec.structs.replace(asked[at], prefix=whole[at][:cut]) for id_, at, cut in cuts})
    same = sum(tails[id_] == whole[at][cut:] for id_, at, cut in cuts)
    return same, len(cuts)


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


def main() -> None:
    import torch
    import transformers
    from shoal.providers.hf_worker.engine import Sequence
    from shoal.providers.hf_worker.frames import Load
    from shoal.providers.hf_worker.llama import Segment
    from shoal.providers.hf_worker.model import load
    from shoal.providers.hf_worker.sampling import Sampler
    from shoal.providers.hf_worker.slot_memory import SlotMemory

    def sequence(id_: int, tokens: list[int], room: int) -> Sequence:
        return Sequence(id_, tokens, room, Sampler(0.0))

    store = weights.models_dir(os.environ)
    folder = weights.install("smollm2", store)
    model: Any = load(Load("smollm2", str(folder), len(os.sched_getaffinity(0)), kv_tokens=8192))
    transformers.logging.set_verbosity_error()
    oracle = transformers.AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    ours, theirs = quality(model, oracle, sequence)
    text = (Path(__file__).parent / "perplexity.txt").read_text(encoding="utf-8")
    tokens = model.prompter.tokens(text)
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
        lean = model.engine._model
        got = lean(tokens, [Segment(SlotMemory(lean.memory_shape).values, 0, len(tokens))], list(range(len(tokens))))
    history, kept, fresh = second_turn(model, sequence)
    equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
    show(
        f"SmolLM2-135M-Instruct, {model.dtype}, {model.threads} threads, beside transformers in fp32",
        ("what", "figure"),
        [
            (f"greedy answers of {TOKENS} tokens equal to fp32", f"{equal} of {len(theirs)}"),
            (
                f"perplexity over {len(tokens)} tokens",
                f"{perplexity(got, tokens):.2f}, fp32 {perplexity(expected, tokens):.2f}",
            ),
            ("likeliest next token equal", f"{float((got.argmax(-1) == expected.argmax(-1)).float().mean()):.1%}"),
            (f"second turn after {history} tokens, CPU", f"{kept:.2f} s, {fresh:.2f} s without what was kept"),
            ("the same, as a ratio", f"{fresh / kept:.1f}"),
        ],
    )
    same, cuts = continued(model, random.Random(8))
    show("Greedy answers cut at a random character and gone on from", ("tail as uninterrupted", "of"), [(same, cuts)])


if __name__ == "__main__":
    main()
