"""A package of somebody else's, installed with pip and found by its entry points, used through a real node."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest

from tests.e2e.fixtures import NO_MODEL, in_thread, start
from tests.e2e.node_process import NodeProcess

PACKAGE = Path(__file__).parents[1] / "sample_provider"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in it, as pip leaves it. Built from a copy: the source stays clean."""
    target, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source")
    subprocess.run(["cp", "-r", f"{PACKAGE}/.", source], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(target), str(source)], check=True)
    return target


@pytest.fixture
async def node(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[NodeProcess]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")]).rstrip(":"))
    node = await start(tmp_path / "node", config=f'{NO_MODEL}[providers.echo]\ngreeting = "ahoy"\n')
    try:
        yield node
    finally:
        await in_thread(node.stop)


def ask(node: NodeProcess, text: str, **more: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], **more}
    return httpx.post(f"{node.rpc}/v1/chat/completions", json=body, timeout=30, trust_env=False)


async def test_its_providers_answer_are_listed_and_tested_like_our_own(node: NodeProcess) -> None:
    parrot = (await in_thread(ask, node, "polly", provider="parrot")).json()
    assert parrot["choices"][0]["message"]["content"] == "polly!"

    reply = await in_thread(ask, node, "one two three", provider="echo", temperature=0, max_tokens=3)
    choice = reply.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("ahoy one two ", "length")
    assert reply.json()["usage"]["completion_tokens"] == 3
    assert reply.headers["x-shoal-route"].endswith(";dropped=temperature")
    assert reply.json()["shoal"]["route"][0]["dropped"] == ["temperature"]
    by_model = await in_thread(ask, node, "x", model="parrot-1")
    assert by_model.headers["x-shoal-provider"] == "parrot"

    table = (await in_thread(node.shoal, "providers")).stdout
    rows = [line.split()[:2] for line in table.splitlines()]
    assert ["parrot", "ready"] in rows
    assert ["echo", "ready"] in rows
    tested = (await in_thread(node.shoal, "providers", "test", "echo")).stdout
    assert "usage" in tested
    assert "ahoy Reply with the single word: ready" in tested

    failed = await in_thread(ask, node, "please fall down", provider="parrot")
    assert failed.status_code >= 500
    assert "raised RuntimeError" in failed.text
    silent = await in_thread(ask, node, "please fall silent", provider="parrot")
    assert "finished with no text" in silent.text
