"""Linear layers with packed weights, computed by torch's own kernels.

`Blocks` keeps a GGUF's blocks of four or eight bits as they are, and unpacks a piece of the matrix at a time into a
core's cache (FBGEMM's kernels for embeddings do it at 5 weights a nanosecond), where it is multiplied in fp32: not one
weight is rounded, and nothing is as small in memory. Up to 16 rows cost the same, and a row's bits do not depend on the
rows beside it while there are fewer than 64.

`Halves` keeps 16 bits a weight and computes in fp32 (FBGEMM's fp16 kernel), for weights that come in 16 bits.

`Int4` computes with the same blocks by a kernel that takes scales, activations and results in bf16 only (its fp32 form
is not vectorised in torch 2.13, and a hundred times slower). It is several times as fast for one row, and moves the
difference of the two likeliest logits by 0.03, and one greedy answer in five (docs/local-models.md). So it drafts.

On disk (`blocks.safetensors`, made once by `gguf_blocks.py`): uint8 [N, K/32, 20], 32 values of four bits, the first of
two in the low nibble, then scale and least value in fp16; or [N, K/32, 40], 32 bytes, then the two in fp32; or
[N, K/16, 24], the same of 16. A weight is `value * scale + least`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

GROUP = 32
FOUR_BITS, EIGHT_BITS, SMALL_GROUP = 20, 40, 24
"""Bytes of a block; of 16 weights in the last."""
PANEL_ROWS = 16
"""Rows are filled up to a multiple of this: as many floats as a register of AVX-512 holds."""
FEW_ROWS = 48
"""From here on unpacking pays for `Int4`, and rows of one sequence are attended together."""
TILE_WEIGHTS = 1 << 19
"""Weights unpacked at once for few rows: they stay in a core's cache of 2 MB."""
MANY_ROWS, LARGE_TILE_WEIGHTS = 64, 1 << 22
"""So many rows are worth a larger piece, and are not turned round; some of their sums have another order."""
KEPT = 64
"""Logits that are computed again in full precision."""

_kernel = torch.ops.aten._weight_int4pack_mm_for_cpu
_pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
_kernel8 = torch.ops.aten._weight_int8pack_mm
_kernel16 = torch.ops.quantized.linear_dynamic_fp16
_pack16 = torch.ops.quantized.linear_prepack_fp16
_unpack = {
    FOUR_BITS: torch.ops.quantized.embedding_bag_4bit_unpack,
    EIGHT_BITS: torch.ops.quantized.embedding_bag_byte_unpack,
    SMALL_GROUP: torch.ops.quantized.embedding_bag_byte_unpack,
}

LARGEST_HALF = 65504.0


class UnfitWeightsError(Exception):
    """These weights cannot be packed in this way; the message says why."""


def blocks_of(values: Tensor, scale: Tensor, least: Tensor) -> Tensor:
    """Blocks of values 0..15 or 0..255, uint8 [N, groups, 32 or 16]; scale and least [N, groups], fp16 or fp32."""
    if scale.dtype == torch.float16:
        values = values[..., 0::2] | (values[..., 1::2] << 4)
    return torch.cat([values, torch.stack([scale, least], -1).view(torch.uint8)], -1).contiguous()


def taken_apart(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of blocks of four bits: values [N, K/32, 32], and fp32 scale and least [N, K/32]."""
    data, ends = blocks[..., :-4], blocks[..., -4:].contiguous().view(torch.float16).float()
    return torch.stack([data & 15, data >> 4], -1).flatten(-2), ends[..., 0], ends[..., 1]


def quantised(weight: Tensor) -> Tensor:
    """A matrix of any floating type in blocks of four bits: of each the least is 0 and the largest 15, as in Q4_1."""
    rows = weight.float().view(weight.shape[0], -1, GROUP)
    least = rows.amin(-1).half()
    scale = ((rows.amax(-1) - least.float()) / 15).clamp_min(1e-7).half()
    values = ((rows - least.float()[..., None]) / scale.float()[..., None]).round_().clamp_(0, 15).to(torch.uint8)
    return blocks_of(values, scale, least)


class Blocks:
    """A linear layer whose weights stay in blocks of four or eight bits; see the module. Takes and gives fp32."""

    def __init__(self, blocks: Tensor) -> None:
        self._count, groups, size = blocks.shape
        group = GROUP // 2 if size == SMALL_GROUP else GROUP
        self._inputs, self._blocks, self._unpack = groups * group, blocks, _unpack[size]

    def __call__(self, x: Tensor) -> Tensor:
        rows = len(x)
        if rows >= MANY_ROWS:
            wide = x.new_empty(rows, self._count)
            for at in self._pieces(LARGE_TILE_WEIGHTS):
                torch.mm(x, self._weights(self._blocks[at]).T, out=wide[:, at])
            return wide
        return self.turned(self.columns(x))[:, :rows].T.contiguous()

    def turned(self, columns: Tensor) -> Tensor:
        """The product with rows that stand upright, as `columns` gives them: [inputs, rows] to [outputs, rows]."""
        out = columns.new_empty(self._count, columns.shape[1])
        for at in self._pieces(TILE_WEIGHTS):
            torch.mm(self._weights(self._blocks[at]), columns, out=out[at])
        return out

    def columns(self, x: Tensor) -> Tensor:
        """Few rows, upright, and filled up to a multiple of `PANEL_ROWS`."""
        columns = x.new_zeros(self._inputs, -(-len(x) // PANEL_ROWS) * PANEL_ROWS)
        columns[:, : len(x)] = x.T
        return columns

    def _pieces(self, weights: int) -> Iterator[slice]:
        tile = max(weights // self._inputs, 1)
        return (slice(start, start + tile) for start in range(0, self._count, tile))

    def rows(self, at: Tensor) -> Tensor:
        """Some rows of the matrix, in fp32."""
        return self._weights(self._blocks[at])

    def some(self, at: Tensor, x: Tensor) -> Tensor:
        """What some rows of the matrix, a multiple of `PANEL_ROWS`, have in `self(x)`, to the bit, of few rows of x."""
        return torch.mm(self.rows(at), self.columns(x))[:, : len(x)].T

    def _weights(self, blocks: Tensor) -> Tensor:
        weights: Tensor = self._unpack(blocks.flatten(0, 1))
        return weights.view(len(blocks), self._inputs)


class Int4:
    """A linear layer by the kernel for four bits; see the module. Takes and gives fp32 [rows, features].

    once: the same as `blocks`, read here and not kept. Blocks of another kind are rounded to four bits.
    """

    def __init__(self, blocks: Tensor, once: Tensor | None = None) -> None:
        read = blocks if once is None else once
        if read.shape[-1] != FOUR_BITS:
            read = quantised(Blocks(read).rows(torch.arange(len(read))))
        values, scale, least = taken_apart(read)
        self._s = torch.stack([scale, least + 8 * scale], -1).transpose(0, 1).contiguous().bfloat16()
        self._packed = _pack(values.flatten(1).int(), 1)
        self._many = Blocks(blocks)

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) >= FEW_ROWS:
            return self._many(x)
        out: Tensor = _kernel(x.bfloat16(), self._packed, GROUP, self._s).float()
        return out


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

    q: int8 [N, K]; s: bf16 [N], the scale of each row; full: some of the same rows as they came, in fp32.
    """

    def __init__(self, q: Tensor, s: Tensor, full: Callable[[Tensor], Tensor]) -> None:
        self._q, self._s, self._full = _aligned(q), _aligned(s), full

    def __call__(self, x: Tensor) -> Tensor:
        logits = _kernel8(x.bfloat16(), self._q, self._s).float()
        tokens = logits.topk(min(KEPT, logits.shape[1]), -1, sorted=False).indices
        # Row by row: a product of many matrices has other bits than one of them alone.
        exact = torch.cat([x[at : at + 1] @ self._full(tokens[at]).T for at in range(len(x))])
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
