"""Names, folders, and what must not be loaded."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from shoal.providers import weights
from shoal.providers.weights import Manifest, ModelMissing, WeightsRefused

from tests.providers.tiny_weights import model_folder, safetensors_bytes


def installed_model(store: Path, name: str = "smollm2") -> Path:
    folder = model_folder(weights.folder_of(name, store))
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    (folder / weights.MANIFEST).write_bytes(msgspec.json.encode(Manifest(name, "test", "", files)))
    return folder


def test_the_embedded_default_is_found_by_its_names(tmp_path: Path) -> None:
    folder = installed_model(tmp_path)
    for name in ("smollm2", "SmolLM2", "smollm2-135m-instruct", "SmolLM2-135M-Instruct"):
        found = weights.resolve(name, tmp_path)
        assert (found.name, found.path, found.context_length) == ("smollm2", folder, 512)


def test_a_model_that_is_not_there_is_missing_with_the_command_to_type(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"run `shoal models add smollm2`"):
        weights.resolve("smollm2-135m-instruct", tmp_path)
    with pytest.raises(ModelMissing, match=r"run `shoal models add owner/model`"):
        weights.resolve("owner/model", tmp_path)
    with pytest.raises(ModelMissing, match=r"run `shoal models add /there/x\.gguf`"):
        weights.resolve("/there/x.gguf", tmp_path)
    with pytest.raises(ModelMissing, match="no folder"):
        weights.resolve(str(tmp_path / "nowhere"), tmp_path)


def test_a_folder_of_safetensors_is_used_where_it_lies(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine")
    found = weights.resolve(str(folder), tmp_path / "store")
    assert (found.name, found.path) == ("mine", folder)


def test_the_context_length_of_a_composite_model_is_its_texts(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine", max_position_embeddings=None, text_config={"max_position_embeddings": 77})
    assert weights.resolve(str(folder), tmp_path).context_length == 77


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_folder_with_pickles_only_is_refused_by_name(tmp_path: Path, pickle: str) -> None:
    folder = model_folder(tmp_path / "mine")
    (folder / "model.safetensors").rename(folder / pickle)
    with pytest.raises(WeightsRefused, match=pickle):
        weights.resolve(str(folder), tmp_path)


def test_a_folder_with_a_pickle_beside_safetensors_is_refused_by_name(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine")
    (folder / "training_args.bin").write_bytes(b"\x80")
    with pytest.raises(WeightsRefused, match=r"training_args\.bin.*delete it"):
        weights.resolve(str(folder), tmp_path)


def test_the_chosen_model_is_the_embedded_one_until_another_is_chosen(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert weights.chosen(store) == "smollm2"
    with pytest.raises(ModelMissing, match="shoal models add other"):
        weights.choose("other", store)
    installed_model(store, "other")
    assert weights.choose("other", store).name == "other"
    assert weights.chosen(store) == "other"
    folder = model_folder(tmp_path / "elsewhere")
    weights.choose(str(folder), store)
    assert weights.resolve(weights.chosen(store), store).path == folder
    with pytest.raises(WeightsRefused, match="makes embeddings"):
        weights.choose(str(model_folder(tmp_path / "encoder", model_type="bert")), store)
    assert weights.canonical(weights.chosen(store)) == "elsewhere"


def test_memory_is_estimated_from_what_would_be_loaded(tmp_path: Path) -> None:
    plain = weights.resolve(str(model_folder(tmp_path / "plain")), tmp_path).memory
    halves = weights.resolve(str(model_folder(tmp_path / "halves", dtype="bfloat16")), tmp_path).memory
    assert halves - plain == plain - weights.WORKER_BYTES > 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (safetensors_bytes()[:-1], "truncated"),
        (safetensors_bytes() + b"x", "too long"),
        (b"", "not a safetensors file"),
        (b"\x80\x04pickle.", "not a safetensors file"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00[]", "not a safetensors file"),
        ((2**60).to_bytes(8, "little") + b"{}", "not a safetensors file"),
    ],
)
def test_damaged_safetensors_are_refused_before_anything_loads_them(tmp_path: Path, content: bytes, words: str) -> None:
    folder = model_folder(tmp_path / "mine")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsRefused, match=words):
        weights.resolve(str(folder), tmp_path)


@pytest.mark.parametrize("config", [None, "{", "[]"])
def test_a_folder_without_a_readable_configuration_is_refused(tmp_path: Path, config: str | None) -> None:
    folder = model_folder(tmp_path / "mine")
    (folder / "config.json").unlink() if config is None else (folder / "config.json").write_text(config)
    with pytest.raises(WeightsRefused, match=r"config\.json"):
        weights.resolve(str(folder), tmp_path)


def test_an_installed_model_that_was_changed_since_is_damaged(tmp_path: Path) -> None:
    folder = installed_model(tmp_path)
    (folder / "config.json").write_text("{}")
    with pytest.raises(WeightsRefused, match=r"config\.json is not what was installed.*shoal models add smollm2"):
        weights.resolve("smollm2", tmp_path)


def test_the_store_lists_what_can_be_loaded(tmp_path: Path) -> None:
    assert weights.installed(tmp_path / "nowhere") == []
    installed_model(tmp_path, "smollm2")
    installed_model(tmp_path, "owner/model")
    (installed_model(tmp_path, "broken") / "model.safetensors").unlink()
    (tmp_path / ".new-x").mkdir()
    assert [found.name for found in weights.installed(tmp_path)] == ["owner/model", "smollm2"]


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a b", "a\n", "x" * 200, "a/b/c", "../x/y"])
def test_a_name_never_leads_out_of_the_store(tmp_path: Path, name: str) -> None:
    with pytest.raises(weights.WeightsError):
        weights.resolve(name, tmp_path / "store")
    with pytest.raises(WeightsRefused):
        weights.folder_of(name, tmp_path / "store")


def test_the_store_is_where_the_setting_or_the_environment_says(tmp_path: Path) -> None:
    environ = {"SHOAL_MODELS_DIR": str(tmp_path / "env")}
    assert weights.models_dir(environ, str(tmp_path / "set")) == tmp_path / "set"
    assert weights.models_dir(environ) == tmp_path / "env"
    assert weights.models_dir({}).parts[-2:] == ("shoal", "models")
