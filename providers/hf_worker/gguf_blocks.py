"""The blocks of a GGUF file whose matrices are Q4_1 or Q4_0, in the order that torch unpacks; nothing is rounded.

Formats: ggml-common.h, block_q4_0 (fp16 d, 16 bytes), block_q4_1 (fp16 d, fp16 m, 16 bytes) and block_q8_0 (fp16 d, 32
signed bytes); of four bits, byte j of a block holds value j in its low nibble and value j + 16 in its high one. A
weight is d * (q - 8), d * q + m, or d * q.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .packed import FOUR_BITS, GROUP, blocks_of, quantised_rows

FILE = "blocks.safetensors"
MATRICES = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "o": ("attn_output",),
    "gu": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}
"""Which of a layer's matrices stand on top of each other: those with the same input are one product."""


def packed_tensors(gguf_file: Path) -> dict[str, Tensor] | None:
    """The packed layers of a Llama, `N.qkv` and so on, its `embedding` and its `head` where that is another matrix.

    The first and the last layer are missing when they are of a kind that is not packed here. `rough.q` and `rough.s`
    are the last one in int8. None when the file is of another kind. llama.cpp stores the rows of q and k so that the
    two numbers that a rotation takes lie side by side, which is how `llama.py` takes them.
    """
    import gguf
    import numpy

    reader = gguf.GGUFReader(str(gguf_file))
    architecture = reader.fields["general.architecture"].contents()
    there: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}
    if architecture != "llama" or any(name.endswith(".bias") for name in there):
        return None

    def halves(raw: Any) -> Tensor:
        return torch.from_numpy(raw.copy().view(numpy.float16))

    def blocks(name: str) -> Tensor | None:
        """None for a type that is not packed here."""
        tensor = there[name]
        kind = tensor.tensor_type.name
        if kind not in ("Q4_0", "Q4_1", "Q8_0"):
            return None
        inputs, outputs = (int(size) for size in tensor.shape[:2])
        raw = numpy.ascontiguousarray(tensor.data).view(numpy.uint8).reshape(outputs, inputs // GROUP, -1)
        scale = halves(raw[..., :2])[..., 0]
        if kind == "Q8_0":
            values = torch.from_numpy(raw[..., 2:].copy()) ^ 128  # a signed byte, plus 128
            return blocks_of(values, scale.float(), -128 * scale.float())
        data = torch.from_numpy(raw[..., -16:].copy())
        least = halves(raw[..., 2:4])[..., 0] if kind == "Q4_1" else -8 * scale
        if kind == "Q4_0" and not torch.equal(least.float(), -8 * scale.float()):
            return None  # a scale so large that fp16 does not hold eight times as much
        return blocks_of(torch.cat([data & 15, data >> 4], -1), scale, least)

    tensors: dict[str, Tensor] = {}
    for layer in range(sum(name.endswith(".attn_q.weight") for name in there)):
        for matrix, parts in MATRICES.items():
            each = [blocks(f"blk.{layer}.{part}.weight") for part in parts]
            packed = [found for found in each if found is not None and found.shape[-1] == FOUR_BITS]
            if len(packed) < len(parts):
                return None
            tensors[f"{layer}.{matrix}"] = torch.cat(packed)
    ends = {"embedding": "token_embd.weight", "head": "output.weight"}
    for key, name in ends.items():
        if name in there and (found := blocks(name)) is not None:
            tensors[key] = found
    last = there[ends["head" if ends["head"] in there else "embedding"]]
    plain = gguf.quants.dequantize(last.data, last.tensor_type)
    tensors["rough.q"], tensors["rough.s"] = quantised_rows(torch.from_numpy(plain))
    return tensors
