"""The packed weights of a GGUF file whose matrices are Q4_1 or Q4_0: taken over block by block, nothing rounded twice.

Formats: ggml-common.h, block_q4_0 (fp16 d, 16 bytes) and block_q4_1 (fp16 d, fp16 m, 16 bytes); byte j of a block holds
value j in its low nibble and value j + 16 in its high one. A weight is d * (q - 8), or d * q + m.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .packed import GROUP, nibbles, quantised_rows, scales

FILE = "draft.safetensors"
MATRICES = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "o": ("attn_output",),
    "gu": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}
"""Which of a layer's matrices stand on top of each other: those with the same input are one product."""


def packed_tensors(gguf_file: Path, head: Tensor) -> dict[str, Tensor] | None:
    """The packed layers of a Llama, and its last layer in int8; None when the file is of another kind.

    head: the last layer's matrix, as the converted model has it. llama.cpp stores the rows of q and k so that the two
    numbers that a rotation takes lie side by side, which is how `llama.py` takes them.
    """
    import gguf
    import numpy

    reader = gguf.GGUFReader(str(gguf_file))
    architecture = reader.fields["general.architecture"].contents()
    there: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}
    if architecture != "llama" or any(name.endswith(".bias") for name in there):
        return None

    def blocks(name: str) -> tuple[Tensor, Tensor, Tensor]:
        tensor = there[name]
        inputs, outputs = (int(size) for size in tensor.shape[:2])
        head_bytes = 4 if tensor.tensor_type.name == "Q4_1" else 2
        raw = numpy.ascontiguousarray(tensor.data).view(numpy.uint8).reshape(outputs, inputs // GROUP, head_bytes + 16)
        halves = torch.from_numpy(raw[..., :head_bytes].copy().view(numpy.float16).astype(numpy.float32))
        scale = halves[..., 0]
        least = halves[..., 1] if head_bytes == 4 else -8 * scale
        data = torch.from_numpy(raw[..., head_bytes:].copy())
        return torch.cat([data & 15, data >> 4], -1).view(outputs, inputs), scale, least

    tensors: dict[str, Tensor] = {}
    for layer in range(sum(name.endswith(".attn_q.weight") for name in there)):
        for matrix, parts in MATRICES.items():
            names = [f"blk.{layer}.{part}.weight" for part in parts]
            if any(there[name].tensor_type.name not in ("Q4_0", "Q4_1") for name in names):
                return None
            q, scale, least = (torch.cat(each) for each in zip(*map(blocks, names), strict=True))
            tensors[f"{layer}.{matrix}.q"] = nibbles(q)
            tensors[f"{layer}.{matrix}.s"] = scales(scale, least)
    tensors["head.q"], tensors["head.s"] = quantised_rows(head)
    return tensors
