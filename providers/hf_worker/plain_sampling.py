"""The choice of the next token, as in `sampling.py`, over numpy: for an engine that comes without torch.

One number is drawn per token and nothing else, so a continuation takes up a seeded answer after any number of tokens.
The draws are not those of `sampling.py`: a seed gives the same answer again from the same engine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

GREEDY_BELOW = 1e-4
"""A temperature under this is greedy: dividing by it would overflow."""

Logits = np.ndarray[Any, np.dtype[np.float32]]


class PlainSampler:
    """See `sampling.Sampler`: temperature 0 is greedy, top_p the nucleus, seed any integer, drawn what was picked."""

    def __init__(self, temperature: float, top_p: float = 1.0, seed: int | None = None, drawn: int = 0) -> None:
        self.greedy = temperature < GREEDY_BELOW or top_p <= 0
        self._temperature, self._top_p = temperature, top_p
        if not self.greedy:
            bits = np.random.PCG64(None if seed is None else seed % 2**64)
            self._generator = np.random.Generator(bits.advance(drawn))

    def pick(self, logits: Logits) -> int:
        """The next token, by one row of logits."""
        if self.greedy:
            return int(logits.argmax())
        weights = logits.astype(np.float64)
        weights = np.exp((weights - weights.max()) / self._temperature)
        tokens = np.argsort(-weights, kind="stable") if self._top_p < 1 else None
        if tokens is not None:
            sums = weights[tokens].cumsum()
            tokens = tokens[: int(np.searchsorted(sums, self._top_p * sums[-1])) + 1]
            weights = weights[tokens]
        borders = weights.cumsum()
        drawn = self._generator.random() * borders[-1]  # one draw of 64 bits, which is what `advance` counts
        at = min(int(np.searchsorted(borders, drawn, side="right")), len(borders) - 1)
        return at if tokens is None else int(tokens[at])
