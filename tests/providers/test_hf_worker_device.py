"""Which device computes and in what numbers, on devices that are made up; and which engine is chosen."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shoal.providers.hf_worker import device, engine_choice, model
from shoal.providers.hf_worker.frames import Load
from shoal.providers.hf_worker.loaded import LoadError

GPUS = [("aaaa-1", 3_000), ("bbbb-2", 70_000), ("cccc-3", 40_000)]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Three GPUs, of which CUDA_VISIBLE_DEVICES has left the last two. Gives those that were opened to be asked."""
    opened: list[int] = []

    def asked(at: int) -> tuple[int, int]:
        opened.append(at)
        return GPUS[at + 1][1] * 10**6, 80_000 * 10**6

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", asked)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda at: SimpleNamespace(uuid=GPUS[at + 1][0]))
    return opened


def smi(folder: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_gpu_with_most_free_memory_is_taken_and_none_is_opened_to_find_out(
    gpus: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(tmp_path, [f"GPU-{uuid}, {free}" for uuid, free in GPUS], monkeypatch)
    assert device.choose("auto") == device.choose("cuda") == "cuda:0"
    smi(tmp_path, ["GPU-aaaa-1, 79000", "GPU-bbbb-2, 100", "GPU-cccc-3, 40000"], monkeypatch)
    assert device.choose("auto") == "cuda:1", "and never one that CUDA_VISIBLE_DEVICES hides"
    assert gpus == []


@pytest.mark.parametrize("lines", [[], ["no devices were found"], ["GPU-other, 5"]])
def test_where_the_vendors_program_does_not_tell_the_devices_are_asked(
    gpus: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    smi(tmp_path, lines, monkeypatch)
    assert device.choose("auto") == "cuda:0"
    assert gpus == [0, 1]


def test_a_device_that_is_named_is_taken_or_refused_with_what_to_write(gpus: list[int]) -> None:
    assert device.choose("cuda:1") == model.device_of(Load("m", "/m", device="cuda:1")) == "cuda:1"
    with pytest.raises(LoadError, match='there is no cuda:7, torch finds 2; use device = "auto"'):
        model.device_of(Load("m", "/m", device="cuda:7"))


def test_without_a_gpu_asking_for_one_is_refused_and_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device.choose("auto") == "cpu"
    for asked in ("cuda", "cuda:0", "mps"):
        with pytest.raises(LoadError, match='use device = "auto"'):
            model.device_of(Load("m", "/m", device=asked))


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_computes_in_bf16_where_it_has_units_for_it_and_in_fp16_elsewhere(
    monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype
) -> None:
    def supported(*, including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    assert model.dtype_of("auto", "cuda:0") is dtype
    assert model.dtype_of("float32", "cuda:0") is torch.float32
    assert model.dtype_of("auto", "mps") is torch.bfloat16


def test_memory_for_positions_is_what_the_device_has_free_less_a_fifth() -> None:
    assert device.positions(0, 10**9, 25_000, 8192) == 32_000
    assert device.positions(0, 80 * 10**9, 25_000, 8192) == device.MOST_POSITIONS
    assert device.positions(0, 80 * 10**9, 25_000, 512) == 16 * 512, "more is of no use to so short a model"
    assert device.positions(500, 10**9, 25_000, 8192) == 500
    assert device.positions(0, None, 25_000, 8192) == device.CPU_POSITIONS
    assert device.positions(0, 0, 25_000, 8192) == 0


# -- the choice ----------------------------------------------------------------------------------------------

FIGURES = {
    "graphs": {1: 100.0, 4: 300.0, 16: 500.0},
    "paged": {1: 60.0, 4: 220.0, 16: 900.0},
    "slots": {1: 30.0, 4: 100.0, 16: 400.0},
}


def test_the_engine_with_the_highest_product_of_its_rates_is_chosen() -> None:
    assert engine_choice.best(FIGURES) == "graphs"
    assert engine_choice.best(FIGURES | {"paged": {1: 60.0, 4: 220.0, 16: 2000.0}}) == "paged"
    assert engine_choice.best({}) is None


def test_what_is_known_to_be_good_stays_unless_another_is_a_tenth_faster() -> None:
    lean = {"lean": {1: 95.0, 4: 280.0, 16: 480.0}}
    assert engine_choice.best(FIGURES | lean, "lean") == "lean"
    assert engine_choice.best(FIGURES | {"lean": {1: 80.0, 4: 250.0, 16: 400.0}}, "lean") == "graphs"


def test_a_choice_holds_for_its_device_driver_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / engine_choice.FILE
    of = engine_choice.key("m", "auto", "NVIDIA H100 driver 550.1 CUDA 12.4")
    assert engine_choice.known(file, of) is None
    engine_choice.write(file, of, FIGURES, "graphs")
    assert engine_choice.known(file, of) == "graphs"
    assert json.loads(file.read_text())[of]["tokens_s"]["paged"] == {"1": 60.0, "4": 220.0, "16": 900.0}
    assert engine_choice.known(file, engine_choice.key("m", "auto", "NVIDIA H100 driver 560.0 CUDA 12.4")) is None
    monkeypatch.setattr(engine_choice, "_version", lambda package: "9.9")
    assert engine_choice.known(file, engine_choice.key("m", "auto", "NVIDIA H100 driver 550.1 CUDA 12.4")) is None


@pytest.mark.parametrize(("kept", "taken"), [("paged", True), ("slots", True), ("lean", False), (None, False)])
def test_on_a_processor_the_lean_path_is_left_only_for_an_engine_that_was_timed_to_be_faster(
    tmp_path: Path, kept: str | None, taken: bool
) -> None:
    wanted = Load("m", "/m", calibrated=str(tmp_path / ".threads.json"))
    if kept is not None:
        engine_choice.write(tmp_path / engine_choice.FILE, engine_choice.key("m", "auto", "cpu"), FIGURES, kept)
    assert model._others_are_faster(wanted, "cpu") is taken
    assert not model._others_are_faster(wanted, "cuda:0")


@pytest.mark.parametrize("text", ["{", "[]", '{"k": 3}', '{"k": {"engine": "evil"}}', '{"k": {"engine": ["slots"]}}'])
def test_a_file_of_choices_that_is_spoilt_is_as_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / engine_choice.FILE
    file.write_text(text)
    assert engine_choice.known(file, "k") is None


class Clockwork:
    """An engine that gives every sequence a token a step, after its prompt."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.closed = False

    def add(self, sequence: Any) -> None:
        self.held.add(sequence.id)

    def remove(self, id_: int) -> None:
        self.held.discard(id_)

    def step(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        return [(id_, 1) for id_ in self.held]

    def close(self) -> None:
        self.closed = True


def test_an_engine_that_fails_its_trials_is_no_candidate_and_each_is_closed() -> None:
    good, bad = Clockwork(), Clockwork()

    def breaks(gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        raise RuntimeError("no kernel image is available for execution on the device")

    bad.step = breaks  # type: ignore[method-assign]

    def unfit() -> Any:
        raise ValueError("it has other parts")

    makers: dict[str, Callable[[], Any]] = {"graphs": lambda: bad, "paged": unfit, "slots": lambda: good}
    found = engine_choice.compare(makers, lambda: None)
    assert list(found) == ["slots"]
    assert set(found["slots"]) == set(engine_choice.STREAMS)
    assert found["slots"][16] > 0
    assert good.closed
    assert bad.closed
    assert not good.held


# -- loading -------------------------------------------------------------------------------------------------


class Sized:
    """A model of which only the size is looked at: 20 positions of keys and values in a kilobyte."""

    dtype = torch.float16
    device = "cuda:0"

    def __init__(self) -> None:
        shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
        told = SimpleNamespace(max_position_embeddings=4096, **shape)
        self.config = SimpleNamespace(get_text_config=lambda decoder: told)


@pytest.mark.parametrize(
    ("free", "asked", "positions"), [(10**6, 0, 12_500), (10**9, 0, 65_536), (10**6, 300, 300), (10**6, 20_000, None)]
)
def test_memory_is_taken_by_what_the_gpu_has_free_or_refused_with_both_figures(
    monkeypatch: pytest.MonkeyPatch, free: int, asked: int, positions: int | None
) -> None:
    from shoal.providers.hf_worker import hf_model

    monkeypatch.setattr(hf_model, "free_bytes", lambda _: free)
    wanted = Load("big", "/big", kv_tokens=asked, device="cuda:0")
    each = 2 * 2 * 1 * 8 * 2
    assert each == 64
    if positions is None:
        with pytest.raises(LoadError, match=r"leaves 1 MB of cuda:0 free, and 20000 positions .* take 1 MB"):
            hf_model.engines_for(Sized(), wanted, "cuda:0")
        return
    assert hf_model.engines_for(Sized(), wanted, "cuda:0")[0] == positions


def test_a_model_larger_than_the_gpus_free_memory_is_refused_before_it_is_moved_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from shoal.providers.hf_worker import hf_model

    class Large:
        def parameters(self) -> list[Any]:
            return [SimpleNamespace(nbytes=70 * 10**9)]

        def to(self, _: str) -> Any:
            raise AssertionError("moved")

    monkeypatch.setattr(hf_model, "free_bytes", lambda _: 60 * 10**9)
    monkeypatch.setattr(hf_model, "dtype_of", lambda *_: torch.float16)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(hf_model.transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: None)
    monkeypatch.setattr(hf_model.transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: Large())
    with pytest.raises(LoadError, match=r"takes about 70000 MB and 60000 MB of cuda:0 are free"):
        hf_model.loaded(Load("large", str(tmp_path)), "cuda:0")
