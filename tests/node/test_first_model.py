"""The first `shoal run` offers the embedded model with its size: asked on a terminal, a line elsewhere, never twice."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shoal.node.commands import first_model
from shoal.node.config_file import load_config
from shoal.providers import weights

from .fake_node import SHOAL


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What the first run says with this configuration, on a terminal or not."""
    monkeypatch.setenv("SHOAL_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setattr("shoal.providers.local_hf.missing_libraries", lambda: "")

    def offer(config: str = "", *, terminal: bool = False, answer: bool = False) -> str:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        (data / "config.toml").write_text(config)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: terminal, raising=False)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)

        def confirm(question: str, **options: object) -> bool:
            print(question, file=sys.stderr)
            return answer

        monkeypatch.setattr(first_model.click, "confirm", confirm)
        first_model.offer_first_model(load_config(data_dir=data))
        return capsys.readouterr().err

    return offer


def test_without_a_terminal_one_line_says_what_to_run_and_how_large_it_is(offered) -> None:
    assert offered() == "note: no model is installed here; `shoal models add smollm2` fetches one (88.6 MiB)\n"


def test_on_a_terminal_it_asks_with_both_sizes_and_a_no_is_taken(offered) -> None:
    said = offered(terminal=True)
    assert "Fetch SmolLM2-135M-Instruct (88.6 MiB to download, " in said
    assert "MiB on disk)?" in said
    assert "Another time: shoal models add smollm2" in said


def test_a_yes_installs_it_and_a_failure_lets_the_node_start(offered, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(weights, "install", lambda name, store, progress: asked.append((name, store.name)))
    offered(terminal=True, answer=True)
    assert asked == [("smollm2", "models")]

    def fails(*arguments: object) -> None:
        raise weights.WeightsRefused("the download failed; check the network")

    monkeypatch.setattr(weights, "install", fails)
    assert "smollm2 was not installed: the download failed; check the network." in offered(terminal=True, answer=True)


@pytest.mark.parametrize(
    "config",
    ["[providers.local_hf]\nenabled = false\n", '[providers.hf]\nmodel = "./mine"\n'],
)
def test_who_has_decided_already_is_not_asked(offered, config: str) -> None:
    assert offered(config, terminal=True) == ""


def test_it_is_said_once_and_not_where_nothing_could_use_it(offered, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shoal.providers.local_hf.missing_libraries", lambda: "torch is not installed")
    assert offered() == ""
    monkeypatch.setattr("shoal.providers.local_hf.missing_libraries", lambda: "")
    (tmp_path / "data" / "identity.key").write_bytes(b"x")
    from shoal.node import paths

    paths.identity_file(tmp_path / "data").write_bytes(b"x")
    assert offered() == ""


def test_a_real_terminal_is_asked_and_the_node_starts_after_a_no(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environ = os.environ | {"SHOAL_MODELS_DIR": str(tmp_path / "models"), "TERM": "dumb"}
    arguments = ["run", "--rpc", "127.0.0.1:0", "--data-dir", str(tmp_path / "data")]
    node = subprocess.Popen([SHOAL, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    said, answered, until = b"", False, time.monotonic() + 30
    try:
        while b"/v1" not in said and time.monotonic() < until:
            if select.select([ours], [], [], 0.5)[0]:
                said += os.read(ours, 4096)
            if b"on disk)?" in said and not answered:
                answered = os.write(ours, b"n\n") > 0
    finally:
        node.send_signal(signal.SIGINT)
        node.wait(15)
        os.close(ours)
    assert answered, said
    assert b"Another time" in said
    assert b"/v1" in said
