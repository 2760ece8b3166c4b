"""The choice of the next token: greedy, or drawn with a generator of the request's own.

One number is drawn per token and nothing else, so that a continuation can take up a seeded answer after any number
of tokens, and so that a request's draws do not depend on who shares the batch.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

GREEDY_BELOW = 1e-4
"""A temperature under this is greedy: dividing by it would overflow."""


class Sampler:
    """Picks tokens for one request.

    temperature: 0 is greedy. top_p: the smallest set of tokens with this probability is drawn from.
    seed: any integer, taken modulo 2**64; None draws a fresh one. drawn: how many tokens were picked before.
    """

    def __init__(self, temperature: float, top_p: float = 1.0, seed: int | None = None, drawn: int = 0) -> None:
        self.greedy = temperature < GREEDY_BELOW or top_p <= 0
        self._temperature, self._top_p = temperature, top_p
        self._generator = torch.Generator()
        if self.greedy:
            return
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed % 2**64)
        for _ in range(drawn):
            self._draw()

    def twin(self) -> Sampler:
        """Another one that draws the same numbers from here on: from the same logits it picks the same."""
        twin = copy.copy(self)
        twin._generator = torch.Generator()
        twin._generator.set_state(self._generator.get_state())
        return twin

    def pick(self, logits: Tensor) -> int:
        """The next token, by one row of logits."""
        if self.greedy:
            return int(logits.argmax())
        probabilities = torch.softmax(logits.float().cpu() / self._temperature, dim=-1)
        if self._top_p < 1:
            kept, tokens = _nucleus(probabilities, self._top_p)
        else:
            kept, tokens = probabilities, None
        borders = kept.double().cumsum(-1)
        drawn = torch.tensor(self._draw(), dtype=torch.double) * borders[-1]
        at = min(int(torch.searchsorted(borders, drawn, right=True)), len(kept) - 1)
        return at if tokens is None else int(tokens[at])

    def _draw(self) -> float:
        return float(torch.rand((), generator=self._generator, dtype=torch.double))


def _nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The likeliest tokens that together reach `top_p`, and their probabilities, likeliest first.

    A few hundred tokens nearly always suffice, and finding them costs a tenth of sorting a vocabulary of 50,000.
    """
    size = min(512, len(probabilities))
    while True:
        kept, tokens = probabilities.topk(size)
        reached = kept.double().cumsum(-1)
        if size == len(probabilities) or float(reached[-1]) >= top_p:
            break
        size = min(size * 8, len(probabilities))
    count = int((reached - kept.double() < top_p).sum())
    return kept[:count], tokens[:count]
