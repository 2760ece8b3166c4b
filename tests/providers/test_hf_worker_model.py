"""What hardware decides, and folders that cannot be loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from shoal.providers.hf_worker import model
from shoal.providers.hf_worker.cores import usable_cores
from shoal.providers.hf_worker.frames import Load
from shoal.providers.hf_worker.llama import Segment
from shoal.providers.hf_worker.loaded import LoadError
from shoal.providers.hf_worker.model import load
from shoal.providers.hf_worker.slot_memory import SlotMemory

from tests.providers.tiny_weights import model_folder


@pytest.mark.parametrize(
    ("quota", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None)]
)
def test_a_containers_quota_limits_the_threads(tmp_path: Path, quota: str, cores: int | None) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(quota)
    assert usable_cores(tmp_path) == (cores or len(os.sched_getaffinity(0)))


@pytest.fixture
def threads_kept() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_kept")
def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="the model odd cannot be loaded") as caught:
        load(Load("odd", str(model_folder(tmp_path / "odd")), 1))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("threads_kept")
def test_a_folder_that_brings_its_own_program_is_refused_and_the_program_does_not_run(tmp_path: Path) -> None:
    folder = model_folder(
        tmp_path / "evil", model_type="evil", auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    )
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(LoadError):
        load(Load("evil", str(folder), 1))
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("threads_kept")
def test_a_dtype_that_torch_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match='dtype "float99"'):
        load(Load("m", str(tmp_path), 1, dtype="float99"))


@pytest.mark.parametrize(
    ("asked", "stored", "flags", "form"),
    [
        ("auto", {"blocks": True, "halves": False}, {}, "packed"),
        ("auto", {"blocks": True, "halves": False}, {"amx_bf16": True}, "packed"),
        ("auto", {"blocks": False, "halves": True}, {}, "float16"),
        ("auto", {"blocks": False, "halves": True}, {"avx512_bf16": True}, "bfloat16"),
        ("auto", {"blocks": False, "halves": False}, {}, "float32"),
        ("int4", {"blocks": True, "halves": False}, {}, "int4"),
        ("int4", {"blocks": False, "halves": True}, {}, "int4"),
        ("float32", {"blocks": True, "halves": False}, {}, "float32"),
        ("float16", {"blocks": True, "halves": False}, {}, "float16"),
    ],
)
def test_the_processor_and_the_weights_decide_how_they_are_held(
    monkeypatch: pytest.MonkeyPatch, asked: str, stored: dict[str, bool], flags: dict[str, bool], form: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    monkeypatch.setattr(model, "packs_halves", lambda: True)
    assert model._form(asked, **stored) == form


def test_without_a_kernel_for_16_bits_fp32_is_taken_or_the_owner_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(model, "packs_halves", lambda: False)
    assert model._form("auto", blocks=True, halves=True) == "float32"
    with pytest.raises(LoadError, match="no kernel on this processor"):
        model._form("float16", blocks=True, halves=True)


@pytest.mark.model
@pytest.mark.usefixtures("threads_kept")
def test_a_pickle_beside_nothing_else_is_never_opened(models_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    for file in (models_dir / "smollm2").iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    assert transformers.AutoConfig.from_pretrained(str(folder)).model_type == "llama"
    with pytest.raises(LoadError):
        load(Load("pickled", str(folder), 1))


@pytest.mark.model
@pytest.mark.usefixtures("threads_kept")
def test_smollm2_has_the_log_probabilities_of_fp32_on_the_ggufs_own_values(models_dir: Path) -> None:
    folder = str(models_dir / "smollm2")
    ours = load(Load("smollm2", folder, 1, kv_tokens=512))
    assert ours.dtype == "packed"
    lean: Any = ours.engine
    tokens = ours.prompter.tokens("The capital of France is Paris, and the capital of Japan is Tokyo. 東京は大きい。")
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = theirs(torch.tensor([tokens])).logits[0]
        memory = SlotMemory(lean._model.memory_shape).values
        first = lean._model(tokens[:-3], [Segment(memory, 0, len(tokens) - 3)], list(range(len(tokens) - 3)))
        last = lean._model(tokens[-3:], [Segment(memory, len(tokens) - 3, 3)], [0, 1, 2])
    found = torch.cat([first, last]).log_softmax(-1)
    torch.testing.assert_close(found, expected.log_softmax(-1), rtol=0, atol=1e-3)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
