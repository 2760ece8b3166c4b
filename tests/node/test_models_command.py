"""`shoal models use`, `remove` and `calibrate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shoal.node.commands.exit_codes import ExitCode

from tests.providers.test_weights import installed_model

from .fake_node import shoal


async def test_a_model_is_chosen_listed_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, folder = tmp_path / "models", tmp_path / "models" / "mine"
    monkeypatch.setenv("SHOAL_MODELS_DIR", str(store))
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    (folder / "config.json").write_text("{}")
    (folder / "shoal.json").write_text(json.dumps({"name": "mine", "source": "", "sha256": "", "files": {}}))
    there = ("--data-dir", str(tmp_path))
    assert b"mine is chosen" in (await shoal("models", "use", "mine", *there)).stdout
    listed = json.loads((await shoal("models", "list", "--json", *there)).stdout)
    assert [model["chosen"] for model in listed["models"] if model["installed"]] == [True]
    assert b"mine is removed" in (await shoal("models", "remove", "mine", *there)).stdout
    assert not folder.exists()
    again = await shoal("models", "remove", "mine", *there)
    assert (again.returncode, again.stderr.count(b"\n")) == (ExitCode.NO_ANSWER, 1)
    missing = await shoal("models", "use", "mine", *there)
    assert b"shoal models add mine" in missing.stderr


async def test_a_model_that_was_damaged_is_listed_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_MODELS_DIR", str(tmp_path / "models"))
    (installed_model(tmp_path / "models", "mine") / "model.safetensors").unlink()
    done = await shoal("models", "list", "--data-dir", str(tmp_path))
    assert b"mine" in done.stdout
    assert b"damaged" in done.stdout
    listed = json.loads((await shoal("models", "list", "--json", "--data-dir", str(tmp_path))).stdout)["models"]
    [mine] = [model for model in listed if model["name"] == "mine"]
    assert "model.safetensors is not what was installed" in mine["damaged"]
    assert not mine["installed"]


async def test_engines_are_not_timed_on_a_busy_machine_and_without_a_model_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_MODELS_DIR", str(tmp_path / "models"))
    done = await shoal("models", "calibrate", "--anyway", "--data-dir", str(tmp_path))
    assert done.returncode == ExitCode.NO_ANSWER
    assert b"shoal models add" in done.stderr
    busy = await shoal("models", "calibrate", "--data-dir", str(tmp_path))
    assert b"shoal models add" in busy.stderr or b"this machine is busy" in busy.stderr
