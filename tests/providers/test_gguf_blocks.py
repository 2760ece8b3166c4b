"""A GGUF's blocks, taken over: gguf's own reader is the oracle, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from shoal.providers.hf_worker.gguf_blocks import packed_tensors
from shoal.providers.hf_worker.llama import side_by_side
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


HALVES_AT = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_XS": (0,)}
"""Where a block has numbers in fp16. gguf only reads these kinds; IQ4_NL is like IQ4_XS in that."""


def quantised(rng: Any, shape: tuple[int, int], kind: Any) -> Any:
    """Some matrix in such blocks: any bytes at all are one, as long as the numbers in fp16 are numbers."""
    halves = HALVES_AT.get(kind.name, (0,) if kind is Kind.IQ4_NL else None)
    if halves is None:
        return gguf.quants.quantize(rng.normal(size=shape).astype(np.float32), kind)
    values, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (shape[0], shape[1] // values, size), dtype=np.uint8)
    for at in halves:
        raw[..., at : at + 2] = rng.normal(size=raw.shape[:2]).astype(np.float16)[..., None].view(np.uint8)
    return raw.reshape(shape[0], -1)


def written(
    path: Path, body: Any, ends: Any, *, untied: bool = False, architecture: str = "llama", **others: Any
) -> dict[str, torch.Tensor]:
    """A model's file with matrices of such types; gives what gguf makes of each. others: matrix -> its type."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    rng, values = np.random.default_rng(3), {}
    shapes = {f"blk.{layer}.{part}.weight": shape for layer in range(2) for part, shape in PARTS.items()}
    shapes |= {"token_embd.weight": (320, 64)} | ({"output.weight": (320, 64)} if untied else {})
    for name, shape in shapes.items():
        kind = others.get(name.split(".")[-2], body if name.startswith("blk") else ends)
        if kind.name in HALVES_AT:
            shape = shape[0], 4 * 64
        data = quantised(rng, shape, kind)
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
    written(tmp_path / "m.gguf", Kind.Q4_1, Kind.Q8_0, ffn_up=Kind.F32)
    assert packed_tensors(tmp_path / "m.gguf") is None


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1", "Q8_0", "IQ4_NL", *HALVES_AT])
def test_any_bytes_of_a_kind_that_is_packed_are_the_weights_that_gguf_reads(tmp_path: Path, kind: str) -> None:
    values = written(tmp_path / "m.gguf", Kind[kind], Kind.Q8_0)
    found = packed_tensors(tmp_path / "m.gguf")
    assert found is not None
    for name, parts in (
        ("qkv", ("attn_q", "attn_k", "attn_v")),
        ("gu", ("ffn_gate", "ffn_up")),
        ("o", ("attn_output",)),
    ):
        assert torch.equal(whole(found[f"1.{name}"]), torch.cat([values[f"blk.1.{part}.weight"] for part in parts]))
    assert found["0.gu"].shape[-1] == (24 if kind in ("Q2_K", "Q3_K", "Q6_K") else 40)


def test_matrices_of_different_kinds_stand_on_top_of_each_other(tmp_path: Path) -> None:
    """As in files that are called Q4_K_M, whose attn_v has more bits in some layers."""
    values = written(tmp_path / "m.gguf", Kind.Q4_K, Kind.Q6_K, attn_v=Kind.Q6_K, ffn_up=Kind.IQ4_XS)
    found = packed_tensors(tmp_path / "m.gguf")
    assert found is not None
    for name, parts in (("qkv", ("attn_q", "attn_k", "attn_v")), ("gu", ("ffn_gate", "ffn_up"))):
        assert torch.equal(whole(found[f"0.{name}"]), torch.cat([values[f"blk.0.{part}.weight"] for part in parts]))
    assert torch.equal(whole(found["embedding"]), values["token_embd.weight"])


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_the_rows_of_q_and_k_are_put_in_pairs_where_llama_cpp_has_not_done_it(
    tmp_path: Path, architecture: str
) -> None:
    values = written(tmp_path / "m.gguf", Kind.Q4_1, Kind.Q8_0, architecture=architecture)
    found = packed_tensors(tmp_path / "m.gguf")
    assert found is not None
    q, k, v = (values[f"blk.0.{part}.weight"] for part in ("attn_q", "attn_k", "attn_v"))
    assert torch.equal(whole(found["0.qkv"]), torch.cat([side_by_side(q, 16), side_by_side(k, 16), v]))


def test_a_model_without_such_matrices_is_not_packed(tmp_path: Path) -> None:
    """Mixtral is a llama by its header, and has its feed-forward layers elsewhere."""
    written(tmp_path / "m.gguf", Kind.Q4_1, Kind.Q8_0)
    reader = gguf.GGUFReader(str(tmp_path / "m.gguf"))
    writer = gguf.GGUFWriter(str(tmp_path / "experts.gguf"), "llama")
    for tensor in reader.tensors:
        if "ffn_up" not in tensor.name:
            writer.add_tensor(tensor.name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert packed_tensors(tmp_path / "experts.gguf") is None
