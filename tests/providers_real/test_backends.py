"""The backend manager over real servers: `transformers serve`, another Shoal node, and the fake one beside them.

scripts/install_backends.sh && python -m pytest -m providers tests/providers_real/test_backends.py
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from shoal.providers import weights
from shoal.providers.backend_manager import BackendPool
from shoal.providers.base import Finish, GenerateRequest, TextDelta, Usage

from tests.e2e.fixtures import in_thread, start
from tests.e2e.node_process import NodeProcess
from tests.providers.fake_upstream import FakeUpstream
from tests.providers.test_backend_pool import pool_of, row, until_state

PYTHON = Path(__file__).parents[2] / "build/backends/venv/bin/python"
SERVE = "from transformers.cli.transformers import main; main()"
ASK = GenerateRequest.of("What is the opposite of hot?", model="smollm2", max_tokens=12, temperature=0.0)

pytestmark = [pytest.mark.providers, pytest.mark.model]


@pytest.fixture(autouse=True)
def installed() -> None:
    if not PYTHON.exists():
        pytest.fail("not installed: run scripts/install_backends.sh (make providers does)")


class Serve:
    """`transformers serve` with one model, as a process of its own."""

    def __init__(self, folder: Path, model: Path, port: int) -> None:
        self.url, self.model = f"http://127.0.0.1:{port}/v1", str(model)
        self._folder, self._port = folder, port
        (folder / "hub").mkdir(parents=True, exist_ok=True)
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        environ = {**os.environ, "HF_HOME": str(self._folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        arguments = ["serve", self.model, "--host", "127.0.0.1", "--port", str(self._port), "--device", "cpu"]
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [str(PYTHON), "-c", SERVE, *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environ,
                start_new_session=True,
            )

    def again(self) -> None:
        self.process = self._started()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The shared store with SmolLM2 in it."""
    store = weights.models_dir(os.environ)
    weights.install("smollm2", store)
    return store


@pytest.fixture
def serve(tmp_path: Path, models_dir: Path) -> Iterator[Serve]:
    served = Serve(tmp_path / "serve", models_dir / "smollm2", free_port())
    yield served
    served.kill()


@pytest.fixture
async def node(tmp_path: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[NodeProcess]:
    monkeypatch.setenv("SHOAL_MODELS_DIR", str(models_dir))
    node = await start(tmp_path / "node", config="[providers.local_hf]\nthreads = 1\npreload = true\n")
    yield node
    await in_thread(node.stop)


async def asked(pool: BackendPool) -> dict[str, Any]:
    """One request: who answered, what, how long it took."""
    before = {each["name"]: each["answers"] for each in pool.facts()["backends"]}
    began = time.monotonic()
    with trio.fail_after(90):
        async with pool.generate(ASK) as events:
            seen = [event async for event in events]
    assert isinstance(seen[-1], Finish)
    return {
        "text": "".join(event.text for event in seen if isinstance(event, TextDelta)),
        "usage": next((event for event in seen if isinstance(event, Usage)), None),
        "by": next(e["name"] for e in pool.facts()["backends"] if e["answers"] > before[e["name"]]),
        "s": time.monotonic() - began,
    }


async def test_real_servers_share_the_work_fail_and_come_back(serve: Serve, node: NodeProcess) -> None:
    async with FakeUpstream() as fake:
        urls = {
            "serve": {
                "base_url": serve.url,
                "models": [serve.model],
                "aliases": {"smollm2": serve.model},
                "check_s": 1,
            },
            "node": {"base_url": f"{node.rpc}/v1", "headers": {"cache-control": "no-store"}, "check_s": 1},
            "fake": {"base_url": fake.url("slow5"), "models": ["smollm2"], "check_s": 1},
        }
        pool = pool_of(urls, strategy="round_robin", first_token_s=60)
        async with pool.running():
            with trio.fail_after(120):
                while any(each["state"] != "up" or not each["models"] for each in pool.facts()["backends"]):
                    await trio.sleep(0.2)
                    if row(pool, "serve")["state"] == "half_open":
                        await asked(pool)
            answers = [await asked(pool) for _ in range(6)]
            assert {answer["by"] for answer in answers} == {"serve", "node", "fake"}
            for answer in answers:
                assert answer["usage"] is not None
                assert answer["usage"].completion_tokens > 0
                assert "cold" in answer["text"].lower() or answer["by"] == "fake"

            serve.kill()
            assert {(await asked(pool))["by"] for _ in range(4)} <= {"node", "fake"}
            await until_state(pool, "serve", "down")
            assert "cannot be reached" in row(pool, "serve")["reason"]

            serve.again()
            with trio.fail_after(90):
                while row(pool, "serve")["state"] != "up":
                    await asked(pool)
                    await trio.sleep(0.2)
            for each in pool.facts()["backends"]:
                print({name: each[name] for name in ("name", "kind", "answers", "first_token_ms", "tokens_per_s")})


async def test_best_performance_finds_the_fastest_of_real_servers(serve: Serve, node: NodeProcess) -> None:
    urls = {
        "serve": {"base_url": serve.url, "models": [serve.model], "aliases": {"smollm2": serve.model}, "check_s": 1},
        "node": {"base_url": f"{node.rpc}/v1", "headers": {"cache-control": "no-store"}, "check_s": 1},
    }
    pool = pool_of(urls, strategy="best_performance", explore=0, first_token_s=60)
    async with pool.running():
        with trio.fail_after(120):
            while not all(each["answers"] >= 2 for each in pool.facts()["backends"]):
                await asked(pool)
        facts = {each["name"]: each for each in pool.facts()["backends"]}
        faster = min(facts, key=lambda name: facts[name]["first_token_ms"] + 100_000 / facts[name]["tokens_per_s"])
        assert [(await asked(pool))["by"] for _ in range(3)].count(faster) >= 2
