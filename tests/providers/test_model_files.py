"""Folders of weights that somebody has prepared: each is refused by name, at once, and nothing of it is run."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.providers import model_files, weights
from shoal.providers.model_files import MAX_HEADER_BYTES, Unfit, check_safetensors
from shoal.providers.weights import WeightsRefused

from tests.providers.tiny_weights import model_folder


def with_header(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def tensor(begin: int, end: int, *shape: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model_folder(tmp_path / "mine")


def refusal(folder: Path) -> str:
    began = time.process_time()
    with pytest.raises(WeightsRefused) as caught:
        weights.resolve(str(folder), folder.parent / "store")
    assert time.process_time() - began < 5
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["weights.BIN", "a.pickle", "a.ckpt", "a.joblib", "sub/optimizer.pt", "a/b/c/d.pkl", ".hidden/x.pth"],
)
def test_a_pickle_is_refused_by_name_wherever_it_lies(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"\x80")
    said = refusal(folder)
    assert name in said
    assert "delete it" in said


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("pytorch_model.bin", "points to a pickle (pytorch_model.bin)"),
        ("../other/model.safetensors", "no safetensors file of this folder"),
        ("/etc/passwd", "no safetensors file of this folder"),
        ("gone.safetensors", "which is not there"),
    ],
)
def test_an_index_names_files_of_its_folder_and_nothing_else(folder: Path, file: str, says: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": file}}))
    assert says in refusal(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {"w": 1}}', "[" * 100_000])
def test_an_index_that_is_none_is_refused(folder: Path, content: str) -> None:
    (folder / "model.safetensors.index.json").write_text(content)
    assert "index.json" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (with_header({"a": tensor(0, 4, 1), "b": tensor(0, 4, 1)}, bytes(4)), "overlap"),
        (with_header({"a": tensor(0, 8, 2), "b": tensor(4, 12, 2)}, bytes(12)), "overlap"),
        (with_header({"a": tensor(4, 8, 1)}, bytes(8)), "gaps"),
        (with_header({"a": tensor(0, 4, 2)}, bytes(4)), "its shape says"),
        (with_header({"a": tensor(0, 4, 1, dtype="F31")}, bytes(4)), "unknown type 'F31'"),
        (with_header({"a": tensor(0, 4, *[2**60] * 3)}, bytes(4)), "no tensor has"),
        (with_header({"a": tensor(0, 4, *[1] * 100)}, bytes(4)), "no tensor has"),
        (with_header({"a": tensor(0, 4, -1)}, bytes(4)), "no tensor has"),
        (with_header({"a": tensor(0, 2**62, 2**60)}), "no tensor has"),
        (with_header({"a": tensor(0, 2**40, 2**38)}), "truncated"),
        (with_header({"a": tensor(4, 0, 1)}, bytes(4)), "gaps"),
        (with_header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e400]}}'), "not a safetensors"),
        (with_header(b'{"a":' * 100_000), "not a safetensors"),
        (with_header(b"[" * 100_000), "not a safetensors"),
        (b"PK\3\4" + bytes(4) + b"a zip, as torch writes it", "not a safetensors"),
    ],
)
def test_a_header_is_compared_with_the_file(folder: Path, content: bytes, says: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert says in refusal(folder)


def test_a_huge_header_is_not_read(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write((2**30).to_bytes(8, "little"))
        file.truncate(2**31)
    assert f"{MAX_HEADER_BYTES} is the most" in refusal(folder)


@given(st.binary(max_size=300))
def test_no_bytes_do_harm(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(data)
    with contextlib.suppress(Unfit):
        check_safetensors(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_link_that_leads_out_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/etc/passwd")
    assert f"{name} is a link that leads out" in refusal(folder)


@pytest.mark.parametrize("target", ["nowhere", "config.json"])
def test_a_link_that_leads_nowhere_or_to_itself_is_refused(folder: Path, target: str) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(target)
    assert "leads nowhere" in refusal(folder)


def test_the_hubs_own_cache_links_to_its_blobs_and_that_is_no_trick(tmp_path: Path) -> None:
    cache = tmp_path / "models--owner--model"
    folder = model_folder(cache / "snapshots" / "abc")
    (cache / "blobs").mkdir()
    for file in list(folder.iterdir()):
        file.rename(cache / "blobs" / file.name)
        file.symlink_to(Path("../../blobs") / file.name)
    assert weights.resolve(str(folder), tmp_path / "store").path == folder
    assert weights.install(str(folder), tmp_path / "store").is_dir()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pipe_holds_nobody_up(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert f"{name} is no file" in refusal(folder)


@pytest.mark.parametrize("content", ["{" * 10, "[" * 200_000, '{"a":' * 100_000, "[]", "\x00"])
def test_a_configuration_that_is_none_is_refused_by_name(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert "config.json is not readable" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "says"), [("", "not readable"), ("{", "not readable"), ("{}", "no tokenizer"), ("[1]", "not readable")]
)
def test_a_tokenizer_that_is_none_is_refused_when_it_is_added_or_chosen(
    folder: Path, tmp_path: Path, content: str, says: str
) -> None:
    (folder / "tokenizer.json").write_text(content)
    for command in (weights.install, weights.choose):
        with pytest.raises(WeightsRefused, match=rf"tokenizer\.json.*{says}"):
            command(str(folder), tmp_path / "store")


def test_a_folder_with_a_world_below_it_is_not_walked_through(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "MAX_ENTRIES", 50)
    for at in range(60):
        (folder / f"{at}.txt").touch()
    assert "too much to be a model's" in refusal(folder)
    (folder / "loop").symlink_to(folder)
