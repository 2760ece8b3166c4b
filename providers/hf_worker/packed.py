"""Linear layers with packed weights, computed by torch's own kernels.

`Halves` keeps 16 bits a weight and computes in fp32 (FBGEMM's fp16 kernel): the answers are those of fp32 on the same
weights, a row's bits do not depend on the rows beside it, and a weight costs half of fp32's memory traffic.

`Int4` keeps 4 bits in groups of 32, as a GGUF's Q4_1 and Q4_0 blocks hold them: `(q - 8) * scale + zero` with q in
0..15. It is twice as fast as `Halves` for one row and not as exact: the kernel takes scales, activations and results
in bf16 only (its fp32 form is not vectorised in torch 2.13, and a hundred times slower), which moves the difference of
the two likeliest logits by 0.03, and one greedy answer in five (docs/local-models.md). So it drafts, and `Halves`
decides. Many rows are computed by unpacking a piece of the matrix into one shared buffer and multiplying in fp32.

On disk (`draft.safetensors`, made once by `gguf_blocks.py`): `NAME.q` uint8 [N, K/2], the lower half of the columns in
the low nibbles and the upper half in the high ones; `NAME.s` bf16 [K/32, N, 2], scale and zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

GROUP = 32
FEW_ROWS = 48
"""From here on unpacking pays (measured with AVX-512 and with AVX2: 32 to 96, by matrix and threads)."""
TILE_ROWS = 1024
"""Rows unpacked at once: the buffer stays in a core's cache."""
KEPT = 64
"""Logits that are computed again in full precision."""

_kernel = torch.ops.aten._weight_int4pack_mm_for_cpu
_pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
_kernel8 = torch.ops.aten._weight_int8pack_mm
_kernel16 = torch.ops.quantized.linear_dynamic_fp16
_pack16 = torch.ops.quantized.linear_prepack_fp16

LARGEST_HALF = 65504.0

_scratch = torch.empty(0)


class UnfitWeightsError(Exception):
    """These weights cannot be packed in this way; the message says why."""


def nibbles(q: Tensor) -> Tensor:
    """Values 0..15, uint8 [N, K], two a byte: [N, K/2]."""
    half = q.shape[1] // 2
    return q[:, :half] | (q[:, half:] << 4)


def unpacked(packed: Tensor) -> Tensor:
    """The opposite of `nibbles`."""
    return torch.cat([packed & 15, packed >> 4], dim=1)


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix of any floating type in four bits: the least of each group is 0 and the largest 15, as in Q4_1."""
    rows = weight.float().view(weight.shape[0], -1, GROUP)
    low, high = rows.amin(-1), rows.amax(-1)
    scale = ((high - low) / 15).clamp_min(1e-12)
    q = ((rows - low[..., None]) / scale[..., None]).round_().clamp_(0, 15).to(torch.uint8)
    return nibbles(q.view(weight.shape)), scales(scale, low)


def scales(scale: Tensor, least: Tensor) -> Tensor:
    """Scale and least value of each group, [N, K/32] each, as the kernel takes them."""
    return torch.stack([scale, least + 8 * scale], -1).transpose(0, 1).contiguous().bfloat16()


class Int4:
    """A linear layer with packed weights; see the module. Takes and gives fp32 [rows, features].

    once: the same as `q`, read here and not kept.
    """

    def __init__(self, q: Tensor, s: Tensor, once: Tensor | None = None) -> None:
        self._q, self._s = q, _aligned(s)
        self._packed = _pack(unpacked(q if once is None else once).int(), 1)

    def __call__(self, x: Tensor) -> Tensor:
        rounded = x.bfloat16()
        if len(x) < FEW_ROWS:
            out: Tensor = _kernel(rounded, self._packed, GROUP, self._s).float()
            return out
        return self._many(rounded.float())

    def _many(self, x: Tensor) -> Tensor:
        count, half = self._q.shape
        out = x.new_empty(len(x), count)
        for start in range(0, count, TILE_ROWS):
            q = self._q[start : start + TILE_ROWS]
            weight = _buffer(len(q) * half * 2).view(len(q), 2 * half)
            weight[:, :half].copy_(q & 15)
            weight[:, half:].copy_(q >> 4)
            scale, zero = self._s[:, start : start + TILE_ROWS].float().permute(2, 1, 0).unsqueeze(-1)
            weight.view(len(q), -1, GROUP).mul_(scale).add_(zero - 8 * scale)
            out[:, start : start + TILE_ROWS] = functional.linear(x, weight)
        return out.bfloat16().float()


class Halves:
    """A linear layer with weights of 16 bits. Raises UnfitWeightsError for weights that fp16 does not hold."""

    def __init__(self, weight: Tensor) -> None:
        full = weight.float()
        if not bool(full.abs().amax() <= LARGEST_HALF):
            raise UnfitWeightsError("some of its weights are too large for fp16")
        self._packed = _pack16(full, None)

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = _kernel16(x, self._packed)
        return out


def packs_halves() -> bool:
    """Whether this build of torch has the kernel of `Halves`: those for x86 do."""
    try:
        _kernel16(torch.zeros(1, 32), _pack16(torch.zeros(32, 32), None))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


class Dense:
    """A linear layer with plain weights, in their own type."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x.to(self._weight.dtype), self._weight).float()


class Rescored:
    """The last layer: int8 finds the likeliest tokens, the full rows decide between them.

    q: int8 [N, K]; s: bf16 [N], the scale of each row; full: the same rows as they came.
    """

    def __init__(self, q: Tensor, s: Tensor, full: Tensor) -> None:
        self._q, self._s, self._full = _aligned(q), _aligned(s), full

    def __call__(self, x: Tensor) -> Tensor:
        logits = _kernel8(x.bfloat16(), self._q, self._s).float()
        tokens = logits.topk(min(KEPT, logits.shape[1]), -1, sorted=False).indices
        # Row by row: a product of many matrices has other bits than one of them alone.
        exact = torch.cat([x[at : at + 1] @ self._full[tokens[at]].float().T for at in range(len(x))])
        scored: Tensor = logits.scatter_(1, tokens, exact)
        return scored


def quantised_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as int8 with one scale a row."""
    scale = (weight.float().abs().amax(1) / 127).clamp_min(1e-12).bfloat16()
    q = torch.empty(weight.shape, dtype=torch.int8)
    for start in range(0, len(weight), 4096):  # a vocabulary's matrix in fp32 would be the largest thing in memory
        piece = slice(start, start + 4096)
        q[piece] = (weight[piece].float() / scale[piece].float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return q, scale


def _aligned(tensor: Tensor) -> Tensor:
    """A copy where the memory begins at an odd place, as in a mapped file.

    The int8 kernel of torch 2.13 ends the process when its weights do not begin at a multiple of 16 and there are four
    rows or more (test_a_matrix_in_a_mapped_file_is_computed_with).
    """
    return tensor.clone() if tensor.data_ptr() % 64 else tensor


def _buffer(size: int) -> Tensor:
    """fp32 memory that every matrix is unpacked into: fresh memory for each would cost more than the unpacking."""
    global _scratch
    if len(_scratch) < size:
        _scratch = torch.empty(size)
    return _scratch[:size]
