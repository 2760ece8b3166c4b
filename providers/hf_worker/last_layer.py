"""The likeliest tokens, found without multiplying the whole last layer in full precision.

    screened = Screened(q, s, full)
    screened(x)          # full(x).argmax(-1), for a fifth of the time for one row, and two fifths for sixteen

A matrix of a vocabulary is a fifth of a small model's weights, and a greedy answer needs one token of it. Products of
integers of eight bits say which tokens it may be, `full` decides between those. That is a proof and no guess. Of token
n the weights w are kept as s * q too, q whole numbers up to 127, none further from its weight than s / 2. A row is
taken as x = a * (u + v / 254) + e, u and v whole numbers up to 127. So, for sums of absolute values |.|,

    | w . x  -  s * a * (q . u + q . v / 254) |  <=  s * (|x| / 2 + 127 * |e|)

where the products on the left are exact, being sums of integers. `_slack` adds what fp32 rounds, there and in the logit
of `full`. A token whose upper bound is below some token's lower bound is not the likeliest. For SmolLM2 five tokens of
49,152 are left for a row, and 62 for sixteen rows together.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .packed import KEPT, MANY_ROWS, PANEL_ROWS, Blocks

NUMBERS = 1 << 18
"""Products looked at together: they stay in a core's cache."""
MOST_LEFT = 16
"""One part in so many of a vocabulary may be left to decide between; with more, the whole is as good."""
LARGEST = 127

_products = torch.ops.aten._int_mm


@cache
def exact_products() -> bool:
    """Whether products of bytes are summed without saturating. Processors without VNNI add pairs of them in 16 bits."""
    try:
        one, signs = torch.full((2, 64), LARGEST, dtype=torch.int8), torch.tensor([1, -1], dtype=torch.int8)
        other = torch.cat([one, -one, one * signs.repeat(32)])
        found = _products(torch.cat([one, -one]), other.T)
    except (RuntimeError, NotImplementedError):
        return False
    whole = torch.cat([one, -one]).long() @ other.T.long()
    fast = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return fast and torch.equal(found.long(), whole)


class Screened:
    """A last layer in blocks; see the module.

    q: int8 [N, K]; s: bf16 [N], the scale of each row: `packed.quantised_rows` of the weights of `full`.
    """

    def __init__(self, q: Tensor, s: Tensor, full: Blocks) -> None:
        self._q, self._s, self._full = q, s.float(), full

    def __call__(self, x: Tensor) -> Tensor:
        """The token with the largest of its logits for each row of x, the first of several."""
        if len(x) < MANY_ROWS:  # from there on some logits have other bits, and only the whole has them, too
            left = self._left(x)
            if left is not None:
                few = len(left)
                left = torch.cat([left, left[-1:].expand(-few % PANEL_ROWS)])  # a product of one row has other bits
                return left[self._full.some(left, x)[:, :few].argmax(-1)]
        return self._full(x).argmax(-1)

    def rescored(self, x: Tensor) -> Tensor:
        """All logits, those of the `KEPT` likeliest tokens as `full` computes them, the others near to it."""
        whole, unit, _ = _limbs(x)
        sums = _products(whole, self._q.T).float()
        logits = sums[: len(x)].add_(sums[len(x) :], alpha=1 / 254).mul_(self._s).mul_(unit)
        tokens = logits.topk(min(KEPT, logits.shape[1]), -1, sorted=False).indices
        exact = torch.cat([self._full.some(tokens[at], x[at : at + 1]) for at in range(len(x))])
        scored: Tensor = logits.scatter_(1, tokens, exact)
        return scored

    def _left(self, x: Tensor) -> Tensor | None:
        """The tokens that one of the rows may choose, in order; None when they are too many, or x is not finite."""
        rows, inputs = x.shape
        count = len(self._q)
        whole, unit, rest = _limbs(x)
        # All of it in units of a row, which change nothing in its order.
        wide = (x.abs().sum(1, keepdim=True) * (0.5 + _slack(inputs)) + LARGEST * rest) / unit
        floor = torch.full_like(wide, -torch.inf)
        found: list[Tensor] = []
        step = max(NUMBERS // (2 * rows), 1)
        for start in range(0, count, step):
            scale = self._s[start : start + step]
            sums = _products(whole, self._q[start : start + step].T).float()
            rough = sums[:rows].add_(sums[rows:], alpha=1 / 254)
            floor = torch.maximum(floor, ((rough - wide) * scale).amax(1, keepdim=True))
            found.append((rough.add_(wide).mul_(scale) >= floor).any(0).nonzero()[:, 0].add_(start))
        left = torch.cat(found)
        if not bool(floor.isfinite().all()) or len(left) * MOST_LEFT > count:
            return None
        return left


def _limbs(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u above v, int8 [2 * rows, K]; a, and the sum of |e|, [rows, 1] each; see the module."""
    unit = x.abs().amax(1, keepdim=True).clamp_min_(1e-30) / LARGEST
    first = (x / unit).round_()
    rest = x - first * unit
    second = (rest / (unit / 254)).round_().clamp_(-LARGEST, LARGEST)
    rest -= second * (unit / 254)
    return torch.cat([first, second]).to(torch.int8), unit, rest.abs_().sum(1, keepdim=True)


def _slack(inputs: int) -> float:
    """What fp32 may round in a sum of so many products of weights up to 127.5 s, by s and the sum of |x|.

    A sum of K products is off by at most K units of 2**-24 of the sum of their absolute values (Higham, Accuracy and
    Stability of Numerical Algorithms, 3.1), in any order; twice that and 16 more for the few operations around it.
    """
    return 128 * (inputs + 16) * 2.0**-23
