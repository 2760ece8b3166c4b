"""What computes a local model: llama.cpp where it is installed and the model has a GGUF, torch else, or a remedy."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from shoal.providers import weights, weights_install
from shoal.providers.base import ProviderError
from shoal.providers.hf_worker.link import worker_environ
from shoal.providers.local_hf import Settings, engine_of

from .test_gguf_header import WHOLE, gguf, text

FOLDER = Path("/models/m")
BOTH = weights.WeightsDir("m", FOLDER, 2048, 1000, 500, gguf=FOLDER / "m.gguf")
GGUF = weights.WeightsDir("m", FOLDER, 2048, 1000, 500, gguf=FOLDER / "m.gguf", plain=False)
PLAIN = weights.WeightsDir("m", FOLDER, 2048, 1000, 500)
ENCODER = weights.WeightsDir("m", FOLDER, 512, 1000, 500, encoder=True)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The libraries that are here; a test changes the set."""
    found = {"torch", "transformers", "safetensors", "gguf"}
    real = importlib.util.find_spec

    def find(name: str, *more: Any) -> Any:
        known = {"llama_cpp", "torch", "transformers", "safetensors", "gguf"}
        return (real("json") if name in found else None) if name in known else real(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    return found


@pytest.mark.parametrize("found", [BOTH, PLAIN, ENCODER])
def test_without_the_extra_everything_is_torchs(installed: set[str], found: weights.WeightsDir) -> None:
    assert engine_of(Settings(), found) == "torch"


def test_with_the_extra_a_gguf_is_llama_cpps_and_nothing_else_is(installed: set[str]) -> None:
    installed.add("llama_cpp")
    assert [engine_of(Settings(), found) for found in (BOTH, GGUF)] == ["llama_cpp", "llama_cpp"]
    assert [engine_of(Settings(), found) for found in (PLAIN, ENCODER)] == ["torch", "torch"]


def test_the_owners_word_decides_and_so_does_what_only_torch_does(installed: set[str]) -> None:
    installed.add("llama_cpp")
    assert engine_of(Settings(engine="torch"), BOTH) == "torch"
    assert engine_of(Settings(dtype="float32"), BOTH) == "torch"
    assert engine_of(Settings(device="cuda"), BOTH) == "torch"
    assert engine_of(Settings(engine="llama_cpp"), ENCODER) == "torch"


@pytest.mark.parametrize(
    ("settings", "found", "here", "says"),
    [
        (Settings(engine="llama_cpp"), BOTH, set(), r"pip install 'shoal\[llama-cpp\]'"),
        (Settings(engine="llama_cpp"), PLAIN, {"llama_cpp"}, "came without a GGUF"),
        (Settings(), GGUF, set(), r"pip install 'shoal\[llama-cpp\]'"),
        (Settings(engine="torch"), GGUF, {"llama_cpp"}, 'set engine = "auto"'),
    ],
)
def test_what_nothing_here_computes_is_refused_with_the_remedy(
    installed: set[str], settings: Settings, found: weights.WeightsDir, here: set[str], says: str
) -> None:
    installed |= here
    with pytest.raises(ProviderError, match=says):
        engine_of(settings, found)


def test_torch_need_not_be_there_for_llama_cpp(installed: set[str]) -> None:
    installed.clear()
    installed.add("llama_cpp")
    assert engine_of(Settings(), GGUF) == "llama_cpp"
    with pytest.raises(ProviderError, match=r"pip install 'shoal\[local\]'"):
        engine_of(Settings(), PLAIN)


def test_its_threads_wait_awake_for_a_moment_and_torchs_do_not(installed: set[str]) -> None:
    assert "OMP_WAIT_POLICY" not in worker_environ({}, 2, "llama_cpp")
    assert int(worker_environ({}, 2, "llama_cpp")["GOMP_SPINCOUNT"]) > 0
    assert "OMP_WAIT_POLICY" not in worker_environ({}, 2)
    assert 0 < int(worker_environ({}, 2)["GOMP_SPINCOUNT"]) < int(worker_environ({}, 2, "llama_cpp")["GOMP_SPINCOUNT"])
    assert "GOMP_SPINCOUNT" not in worker_environ({"OMP_WAIT_POLICY": "PASSIVE"}, 2)
    assert worker_environ({"OMP_WAIT_POLICY": "ACTIVE"}, 2, "llama_cpp")["OMP_WAIT_POLICY"] == "ACTIVE"


# -- the store -----------------------------------------------------------------------------------------------------


def test_a_gguf_that_torch_cannot_take_is_kept_for_llama_cpp(installed: set[str], tmp_path: Path) -> None:
    installed.clear()
    installed.add("llama_cpp")
    source = tmp_path / "mine.gguf"
    source.write_bytes(WHOLE + bytes(5000))
    source.chmod(0o600)
    store = tmp_path / "store"
    folder = weights.install(str(source), store)
    assert [file.name for file in sorted(folder.iterdir())] == ["mine.gguf", "shoal.json"]
    assert source.stat().st_mode & 0o777 == 0o600
    source.unlink()
    found = weights.resolve("mine", store)
    assert (found.context_length, found.plain, found.gguf) == (8192, False, folder / "mine.gguf")
    assert [each.name for each in weights.installed(store)] == ["mine"]
    assert weights.choose("mine", store).name == "mine"
    assert found.memory == weights.GGUF_WORKER_BYTES + found.size
    assert weights.by_llama_cpp(found, 1000).memory == found.memory  # it says nothing of its layers


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (gguf(("general.architecture", 8, text("llama"))), "no chat template"),
        (WHOLE[:60], "cut short"),
        (b"GGUF" + bytes(4), "GGUF version 0"),
    ],
)
def test_a_gguf_that_nobody_could_talk_to_is_refused_when_it_is_added(
    installed: set[str], tmp_path: Path, data: bytes, says: str
) -> None:
    installed.clear()
    installed.add("llama_cpp")
    (tmp_path / "mine.gguf").write_bytes(data)
    with pytest.raises(weights.WeightsRefused, match=says):
        weights.install(str(tmp_path / "mine.gguf"), tmp_path / "store")


def test_without_the_extra_a_gguf_needs_the_converter(installed: set[str], tmp_path: Path) -> None:
    installed.clear()
    source = tmp_path / "mine.gguf"
    source.write_bytes(WHOLE)
    with pytest.raises(weights.WeightsRefused, match=r"pip install 'shoal\[local\]'"):
        weights.install(str(source), tmp_path / "store")


def test_what_is_no_gguf_is_refused_by_name(installed: set[str], tmp_path: Path) -> None:
    installed.add("llama_cpp")
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "m.gguf").write_bytes(b"PK" + bytes(100))
    with pytest.raises(weights.WeightsRefused, match=r"m\.gguf cannot be loaded: it is not a GGUF file"):
        weights.check_folder("m", folder)


def test_an_embedded_model_that_lacks_its_gguf_is_brought_again_once_llama_cpp_is_there(
    installed: set[str], tmp_path: Path
) -> None:
    for name in weights.CATALOGUE["smollm2"].holds:
        (tmp_path / name).touch()
    found = weights.WeightsDir("smollm2", tmp_path, 8192, 1)
    assert weights.is_current(found)
    installed.add("llama_cpp")
    assert not weights.is_current(found)
    assert "transformers" in weights_install.CONVERTER
