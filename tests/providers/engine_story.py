"""What the tests of engines share: a tiny model's sizes, sequences to decode, and the library's own answer to them."""

from __future__ import annotations

from typing import Any

import torch
from shoal.providers.hf_worker.engine import Engine, Sequence
from shoal.providers.hf_worker.sampling import Sampler

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "initializer_range": 0.4,  # large enough that a wrong position or mask changes tokens
}


def never(_: int) -> bool:
    return False


def prompt(length: int, salt: int = 0) -> list[int]:
    return [(7 * at + 13 * salt + at * at) % 97 for at in range(length)]


def greedy(id_: int, tokens: list[int], room: int, draft: list[int] | None = None) -> Sequence:
    return Sequence(id_, tokens, room, Sampler(0.0), draft or [])


def run(engine: Engine, arrivals: dict[int, list[Sequence]]) -> dict[int, list[int]]:
    """Drive the engine as the server does: arrivals by step, each sequence removed when its room is used."""
    wanted = {each.id: each.room for group in arrivals.values() for each in group}
    out: dict[int, list[int]] = {id_: [] for id_ in wanted}
    step = 0
    while engine.busy or any(at >= step for at in arrivals):
        for sequence in arrivals.get(step, []):
            engine.add(sequence)
        for id_, token in engine.step(never):
            out[id_].append(token)
            if len(out[id_]) == wanted[id_]:
                engine.remove(id_)
        step += 1
        assert step < 2000
    return {id_: tokens[: wanted[id_]] for id_, tokens in out.items()}


def alone(model: Any, sequence: Sequence) -> list[int]:
    """The same by the library's own loop."""
    ids = torch.tensor([sequence.tokens], device=model.device)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    answer = model.generate(ids, max_new_tokens=sequence.room, **options)
    tokens: list[int] = answer[0, len(sequence.tokens) :].tolist()
    return tokens


STORY = {
    0: [greedy(0, prompt(5), 20), greedy(1, prompt(40, 1), 3)],
    2: [greedy(2, prompt(1, 2), 30)],
    5: [greedy(3, prompt(90, 3), 8), greedy(4, prompt(11, 4), 1)],
    9: [greedy(5, prompt(300, 5), 12)],
    25: [greedy(6, prompt(17, 6), 6)],
}
