"""A GGUF's blocks, taken over: gguf's own reader is the oracle, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from shoal.providers.hf_worker.gguf_blocks import packed_tensors
from shoal.providers.hf_worker.packed import Blocks

Kind = gguf.GGMLQuantizationType
PARTS = {
    "attn_q": (64, 64),
    "attn_k": (32, 64),
    "attn_v": (32, 64),
    "attn_output": (64, 64),
    "ffn_gate": (96, 64),
    "ffn_up": (96, 64),
    "ffn_down": (64, 96),
}


def written(path: Path, body: Any, ends: Any, *, untied: bool = False, odd: str = "") -> dict[str, torch.Tensor]:
    """A model's file with matrices of such types; gives what gguf makes of each. odd: a matrix that stays fp32."""
    writer = gguf.GGUFWriter(str(path), "llama")
    rng, values = np.random.default_rng(3), {}
    shapes = {f"blk.{layer}.{part}.weight": shape for layer in range(2) for part, shape in PARTS.items()}
    shapes |= {"token_embd.weight": (320, 64)} | ({"output.weight": (320, 64)} if untied else {})
    for name, shape in shapes.items():
        kind = Kind.F32 if name == odd else body if name.startswith("blk") else ends
        data = gguf.quants.quantize(rng.normal(size=shape).astype(np.float32), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        values[name] = torch.from_numpy(gguf.quants.dequantize(data, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def whole(blocks: torch.Tensor) -> torch.Tensor:
    return Blocks(blocks).rows(torch.arange(len(blocks)))


@pytest.mark.parametrize("body", [Kind.Q4_1, Kind.Q4_0])
@pytest.mark.parametrize("ends", [Kind.Q8_0, Kind.Q4_1, Kind.F16])
def test_every_weight_is_the_one_that_gguf_reads_to_the_bit(tmp_path: Path, body: Any, ends: Any) -> None:
    file = tmp_path / "m.gguf"
    values = written(file, body, ends, untied=ends is Kind.Q8_0)
    found = packed_tensors(file)
    assert found is not None
    for layer in range(2):
        for name, parts in (("qkv", ("attn_q", "attn_k", "attn_v")), ("down", ("ffn_down",)), ("o", ("attn_output",))):
            expected = torch.cat([values[f"blk.{layer}.{part}.weight"] for part in parts])
            assert torch.equal(whole(found[f"{layer}.{name}"]), expected), name
    if ends is Kind.F16:
        assert "embedding" not in found  # it is taken from the plain weights
    else:
        assert torch.equal(whole(found["embedding"]), values["token_embd.weight"])
    last = values["output.weight" if ends is Kind.Q8_0 else "token_embd.weight"]
    assert ("head" in found) == (ends is Kind.Q8_0)
    rough = found["rough.q"].float() * found["rough.s"].float()[:, None]
    assert (rough - last).abs().max() < 0.02 * last.abs().max()


def test_a_file_with_a_matrix_of_another_kind_is_not_packed(tmp_path: Path) -> None:
    written(tmp_path / "m.gguf", Kind.Q4_1, Kind.Q8_0, odd="blk.1.ffn_up.weight")
    assert packed_tensors(tmp_path / "m.gguf") is None
