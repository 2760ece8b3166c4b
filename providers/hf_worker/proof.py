"""Whether an engine computes a model as the model itself does: asked of each before it serves.

There are models whose keys are wider than their values, some that take positions from the mask, some whose heads share
keys in ways of their own; an engine for whose memory that is too odd may fail, or answer something else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .engine import Engine, Sequence, UnfitModelError
from .guard import out_of_memory

TEXTS = ([3, 1, 4, 1, 5, 9, 2], [6, 5, 3])
"""Tokens that two sequences begin with; each goes on by two."""
TOLERANCE = 0.25
"""How far logits may be from those without a memory, in standard deviations; bf16's own errors are a tenth of it."""
MOST_STEPS = 20


class _Watch:
    """A sampler that keeps the logits it is shown and takes the likeliest."""

    greedy = False

    def __init__(self, forced: list[int]) -> None:
        self.seen: list[Tensor] = []
        self._forced = forced

    def pick(self, logits: Tensor) -> int:
        self.seen.append(logits.float().cpu().clone())
        return self._forced[len(self.seen) - 1]


Reference = list[tuple[list[int], list[Tensor]]]
"""For each text the tokens that follow it, and the logits that each was picked by."""


def reference(model: Any) -> Reference:
    """What the model says of `TEXTS`, each text computed whole."""
    found: Reference = []
    with torch.inference_mode():
        for text in TEXTS:
            tokens: list[int] = []
            seen: list[Tensor] = []
            for _ in range(2):
                ids = torch.tensor([text + tokens], device=model.device)
                seen.append(model(input_ids=ids, use_cache=False).logits[0, -1].float().cpu())
                tokens.append(int(seen[-1].argmax()))
            found.append((tokens, seen))
    return found


def prove(engine: Engine, expected: Reference) -> None:
    """Raises UnfitModelError when the engine does not say the same, to the precision of its numbers."""
    watches = [_Watch(tokens) for tokens, _ in expected]
    try:
        for id_, (text, watch) in enumerate(zip(TEXTS, watches, strict=True)):
            engine.add(Sequence(-1 - id_, list(text), 8, watch))  # type: ignore[arg-type]
        for _ in range(MOST_STEPS):
            for id_, _ in engine.step(lambda _: False):
                if len(watches[-1 - id_].seen) == 2:
                    engine.remove(id_)
            if all(len(watch.seen) == 2 for watch in watches):
                break
    except Exception as fault:
        if out_of_memory(fault):
            raise
        raise UnfitModelError(f"it keeps no usual keys and values ({type(fault).__name__})") from fault
    for watch, (_, wanted) in zip(watches, expected, strict=True):
        same = len(watch.seen) == len(wanted) and all(
            float((seen - right).abs().max()) <= TOLERANCE * float(right.std())
            for seen, right in zip(watch.seen, wanted, strict=True)
        )
        if not same:
            raise UnfitModelError("it keeps no usual keys and values")
