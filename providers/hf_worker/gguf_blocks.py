"""The blocks of a GGUF file in the order that torch unpacks; of each kind that is known here no weight is rounded.

Nearly every kind says `value * scale + least` of 32 or 16 weights, with values of at most eight bits; how scale and
least stand in a block is in ggml-common.h (block_q4_0 and so on), and what the values are, gguf's own reader tells.
Four bits with numbers in fp16 (Q4_0, Q4_1) stay so; others take a byte a weight and scales in fp32, since theirs are
products of two numbers. What came out is compared with gguf's reading, weight for weight.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from .llama import side_by_side
from .packed import GROUP, Blocks, blocks_of, quantised_rows

FILE = "blocks.safetensors"
MATRICES = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "o": ("attn_output",),
    "gu": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}
"""Which of a layer's matrices stand on top of each other: those with the same input are one product."""
ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""By GGUF's names, in which Mistral is a llama; those that `llama.py` computes."""

Ends = tuple[Any, Any]
"""Scale and least of each group, [rows, groups]."""


class _Matrix(NamedTuple):
    """values: uint8 [rows, groups, weights of a group]; scale, least [rows, groups], in fp16 where they came so."""

    values: Tensor
    scale: Tensor
    least: Tensor


def packed_tensors(gguf_file: Path) -> dict[str, Tensor] | None:
    """The packed layers of a model, `N.qkv` and so on, its `embedding` and its `head` where that is another matrix.

    The first and the last layer are missing when they are of a kind that is not packed here. `rough.q` and `rough.s`
    are the last one in int8. None when the file is of another kind. The rows of q and k come so that the two numbers
    that a rotation takes lie side by side, which is how `llama.py` takes them: llama.cpp stores those of a Llama so.
    """
    import gguf

    reader = gguf.GGUFReader(str(gguf_file))
    architecture = reader.fields["general.architecture"].contents()
    there: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}
    biased = any(name.endswith(".bias") for name in there)
    if architecture not in ARCHITECTURES or (biased and architecture != "qwen2"):
        return None

    def about(name: str) -> int | None:
        field = reader.fields.get(f"{architecture}.{name}")
        return None if field is None else int(field.contents())

    width = about("attention.key_length") or (about("embedding_length") or 0) // (about("attention.head_count") or 1)

    def plain(tensor: Any) -> Tensor:
        return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))

    def packed(*names: str) -> Tensor | None:
        """Matrices on top of each other; None where one is not there, or of a type that is not packed here."""
        if any(name not in there or there[name].tensor_type.name not in KINDS for name in names):
            return None
        expected, parts = [plain(there[name]) for name in names], []
        for at, name in enumerate(names):
            data = numpy.asarray(there[name].data)
            if architecture != "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
                order = side_by_side(torch.arange(len(data)), width)
                data, expected[at] = data[order.numpy()], expected[at][order]
            parts.append(_matrix(there[name].tensor_type.name, data, expected[at]))
        found = _stacked(parts)
        return found if torch.equal(Blocks(found).rows(torch.arange(len(found))), torch.cat(expected)) else None

    tensors: dict[str, Tensor] = {}
    for layer in range(sum(name.endswith(".attn_q.weight") for name in there)):
        for matrix, parts in MATRICES.items():
            found = packed(*(f"blk.{layer}.{part}.weight" for part in parts))
            if found is None:
                return None
            tensors[f"{layer}.{matrix}"] = found
    ends = {"embedding": "token_embd.weight", "head": "output.weight"}
    for key, name in ends.items():
        if name in there and (found := packed(name)) is not None:
            tensors[key] = found
    last = there[ends["head" if ends["head"] in there else "embedding"]]
    tensors["rough.q"], tensors["rough.s"] = quantised_rows(plain(last))
    return tensors


def _matrix(kind: str, data: Any, weights: Tensor) -> _Matrix:
    """A matrix in groups: scale and least by its blocks, the values by what gguf makes of them."""
    size, ends = KINDS[kind]
    raw = numpy.ascontiguousarray(data).view(numpy.uint8).reshape(len(weights), -1, size)
    scale, least = (torch.from_numpy(numpy.ascontiguousarray(each).reshape(len(weights), -1)) for each in ends(raw))
    if kind == "Q4_0" and bool(least.isinf().any()):  # eight times a scale so large is not in fp16
        scale, least = scale.float(), -8 * scale.float()
    steps = torch.where(scale == 0, 1, scale).float()[..., None]
    groups = weights.view(*scale.shape, -1)
    values = ((groups - least.float()[..., None]) / steps).round_().clamp_(0, 255)
    return _Matrix(values.to(torch.uint8), scale, least)


def _stacked(parts: list[_Matrix]) -> Tensor:
    """Matrices on top of each other, in the form that all of them have: the smallest groups, and the finest numbers."""
    small = min(part.values.shape[-1] for part in parts)
    halves = small == GROUP and all(part.scale.dtype == torch.float16 for part in parts)
    blocks = []
    for values, scale, least in parts:
        times = values.shape[-1] // small
        ends = [
            each.repeat_interleave(times, -1) if halves else each.float().repeat_interleave(times, -1)
            for each in (scale, least)
        ]
        blocks.append(blocks_of(values.reshape(len(values), -1, small), *ends))
    return torch.cat(blocks)


# -- scale and least, by kind; `raw` is uint8 [rows, blocks, bytes of a block] ------------------------------------


def _half(raw: Any, at: int) -> Any:
    """The fp16 at this byte of each block."""
    return numpy.ascontiguousarray(raw[..., at : at + 2]).view(numpy.float16)[..., 0]


def _float(raw: Any, at: int) -> Any:
    return _half(raw, at).astype(numpy.float32)


def _about(zero: int) -> Callable[[Any], Ends]:
    """One scale a block; `zero` is the value of a weight that is 0."""
    return lambda raw: (_float(raw, 0), -zero * _float(raw, 0))


def _q4_0(raw: Any) -> Ends:
    with numpy.errstate(over="ignore"):  # an infinite one is noticed
        return _half(raw, 0), (-8 * _float(raw, 0)).astype(numpy.float16)


def _q4_1(raw: Any) -> Ends:
    return _half(raw, 0), _half(raw, 2)


def _q5_1(raw: Any) -> Ends:
    return _float(raw, 0), _float(raw, 2)


def _q2_k(raw: Any) -> Ends:
    both = raw[..., :16]
    return _float(raw, 80)[..., None] * (both & 15), -_float(raw, 82)[..., None] * (both >> 4)


def _q3_k(raw: Any) -> Ends:
    low, high = raw[..., 96:104], raw[..., 104:108]
    fours = numpy.concatenate([low & 15, low >> 4], -1)
    twos = numpy.concatenate([(high >> shift) & 3 for shift in (0, 2, 4, 6)], -1)
    scale = _float(raw, 108)[..., None] * ((fours | (twos << 4)).astype(numpy.float32) - 32)
    return scale, -4 * scale


def _k_scales(raw: Any) -> Ends:
    """Q4_K and Q5_K: eight scales and eight least values of six bits in twelve bytes."""
    first, second, third = raw[..., 4:8], raw[..., 8:12], raw[..., 12:16]
    scales = numpy.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], -1)
    leasts = numpy.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], -1)
    return _float(raw, 0)[..., None] * scales, -_float(raw, 2)[..., None] * leasts


def _q6_k(raw: Any) -> Ends:
    scale = _float(raw, 208)[..., None] * raw[..., 192:208].view(numpy.int8)
    return scale, -32 * scale


def _iq4_xs(raw: Any) -> Ends:
    high = numpy.ascontiguousarray(raw[..., 2:4]).view(numpy.uint16)
    low = raw[..., 4:8]
    fours = numpy.stack([low & 15, low >> 4], -1).reshape(*low.shape[:-1], 8)
    twos = numpy.concatenate([(high >> shift) & 3 for shift in range(0, 16, 2)], -1)
    scale = _float(raw, 0)[..., None] * ((fours | (twos << 4)).astype(numpy.float32) - 32)
    return scale, -127 * scale


KINDS: dict[str, tuple[int, Callable[[Any], Ends]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _about(16)),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _about(128)),
    "IQ4_NL": (18, _about(127)),
    "IQ4_XS": (136, _iq4_xs),
    "Q2_K": (84, _q2_k),
    "Q3_K": (110, _q3_k),
    "Q4_K": (144, _k_scales),
    "Q5_K": (176, _k_scales),
    "Q6_K": (210, _q6_k),
}
"""Bytes of a block, and where scale and least of its groups are. IQ4's values are -127 to 113, by a table."""
