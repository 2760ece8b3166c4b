"""The nodes of a chaos run: real processes in one swarm, killed and started again, and what each of them holds."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import trio
from msgspec import Struct

from tests.e2e.node_process import NodeProcess

UPSTREAM = Path(__file__).parents[1] / "providers/fake_upstream.py"
NO_MODEL = "[providers.local_hf]\nenabled = false\n"


class Upstream:
    """The tests' fake upstream as a process of its own."""

    def __enter__(self) -> Upstream:
        self._process = subprocess.Popen([sys.executable, str(UPSTREAM), "--port", "0"], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(json.loads(self._process.stdout.readline())["port"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def url(self, scenario: str) -> str:
        return f"http://127.0.0.1:{self.port}/s/{scenario}/v1"

    def state(self) -> dict[str, int]:
        """Counts: {"count", "in_flight", "disconnects", "connections"}."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_state", timeout=5) as answer:
            return dict(json.load(answer))


def giving(url: str, *, continues: bool) -> str:
    """The configuration of a node that shares its one provider."""
    return (
        f'{NO_MODEL}[providers.fast]\ntype = "openai_compat"\nbase_url = "{url}"\nmodels = ["echo"]\n'
        f"share = true\nmax_concurrent = 512\ncontinues = {str(continues).lower()}\n"
    )


class Holding(Struct):
    """What a node's process holds at rest."""

    memory_mb: float
    descriptors: int
    threads: int
    tasks: int

    @classmethod
    async def of(cls, mortal: Mortal) -> Holding:
        node = mortal.node
        assert node is not None
        process = psutil.Process(node.process.pid)
        tasks = int((await trio.to_thread.run_sync(status, node)).get("tasks", 0))
        return cls(process.memory_info().rss / 2**20, process.num_fds(), process.num_threads(), tasks)

    def __str__(self) -> str:
        return f"{self.memory_mb:.0f} MB, {self.descriptors} fds, {self.threads} threads, {self.tasks} tasks"


def status(node: NodeProcess) -> dict[str, Any]:
    with urllib.request.urlopen(f"{node.rpc}/shoal/v1/status", timeout=10) as answer:
        return dict(json.load(answer))


class Mortal:
    """A node that may die, and comes back at the same address for peers. invites: whom it looks for."""

    def __init__(self, folder: Path, config: str, invites: Sequence[str] = ()) -> None:
        self.name = folder.name
        self._folder, self._config = folder, config
        self._invites = list(invites)
        self._listen: list[str] = []
        self.node: NodeProcess | None = None
        self.deaths = 0

    def meet(self, invite: str) -> None:
        """From its next start on it looks for this one, too; a node that runs is told now."""
        if invite not in self._invites:
            self._invites.append(invite)
            if self.node is not None:
                self.node.shoal("join", invite)

    async def start(self) -> NodeProcess:
        joins = [arg for invite in self._invites for arg in ("--join", invite)]
        call = partial(NodeProcess, self._folder, *joins, *self._listen, config=self._config, ready_within=60)
        self.node = await trio.to_thread.run_sync(call)
        self._listen = ["--listen", str(self.node.facts["addresses"][0]).rsplit("/p2p/", 1)[0]]
        return self.node

    def kill(self) -> None:
        if self.node is not None:
            self.node.kill()
            self.node = None
            self.deaths += 1


def offering(asker: NodeProcess) -> int:
    """Peers with which it is connected that offer the model."""
    with urllib.request.urlopen(f"{asker.rpc}/shoal/v1/peers", timeout=10) as answer:
        peers = json.load(answer)["peers"]
    return sum(any(m["name"] == "echo" for m in p["models"]) for p in peers if p["connected"])


async def until_known(asker: NodeProcess, count: int, within: float = 60) -> None:
    """Returns when the asker knows so many peers that offer the model."""
    with trio.fail_after(within):
        while await trio.to_thread.run_sync(offering, asker) < count:
            await trio.sleep(0.2)
