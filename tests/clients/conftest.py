"""A real node with a fake upstream behind it, for real clients to ask."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.node import Upstream
from tests.e2e.node_process import NodeProcess

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "build/clients"
TOOLS = ROOT / "build/providers/node_modules/.bin"

CONFIG = """
[providers.local_hf]
enabled = false
[providers.plain]
type = "openai_compat"
base_url = "{plain}"
models = ["echo"]
images = true
[providers.calling]
type = "openai_compat"
base_url = "{calling}"
models = ["caller"]
[providers.thinking]
type = "openai_compat"
base_url = "{thinking}"
models = ["thinker"]
"""


OTHERS = {"json": "each+repeats", "worker": "each+shell", "busy": "s429+listed", "broken": "s500+listed", "cut": "cut"}
"""More models, each of a provider of its own, by the scenario of the upstream behind it."""

OTHER = """
[providers.{model}]
type = "openai_compat"
base_url = "{url}"
models = ["{model}"]
"""


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """The model "echo" repeats what it was told, "caller" calls a tool, "thinker" thinks first; and OTHERS."""
    with Upstream() as upstream:
        config = CONFIG.format(
            plain=upstream.url("each"), calling=upstream.url("toolcall"), thinking=upstream.url("reasoning")
        )
        config += "".join(OTHER.format(model=name, url=upstream.url(scenario)) for name, scenario in OTHERS.items())
        with NodeProcess(tmp_path_factory.mktemp("node"), config=config) as running:
            yield running


class Told:
    """What a client printed, and how it ended."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    def __str__(self) -> str:
        return f"exit {self.code}\n{self.out[-3000:]}\n{self.err[-3000:]}"


def run(*command: str | Path, home: Path, within: float = 90, **environ: str) -> Told:
    """Run a client with a home of its own and nothing of ours in its environment."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    done = subprocess.run(
        [str(part) for part in command],
        env={**kept, "HOME": str(home), "NO_PROXY": "127.0.0.1", **environ},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )
    return Told(done)


def python(script: str, node: NodeProcess, home: Path, *, place: str = "venv", **environ: str) -> Told:
    """Run a script of this folder with the clients' own Python; BASE in its environment is the node's address.

    place: "venv", or "later" for what stands on openai 3.
    """
    interpreter = CLIENTS / place / "bin/python"
    if not interpreter.exists():
        pytest.fail("not installed: run tests/clients/install.sh (make clients does)")
    return run(interpreter, Path(__file__).with_name(script), home=home, BASE=node.rpc, **environ)
