"""The lab of lab.sh from Python: build it, put real nodes, upstreams and clients into its namespaces, break its lines.

    with Lab(folder) as lab:
        lab.up("cone", "sym")
        with lab.node("nodea", config=...) as a:
            a.shoal("peers")                                     # the command, run where the node is
            lab.inside("nodea", openai_call)                     # any call, its sockets made in that namespace

What belongs here: namespaces and what lives in them. What a test expects of the nodes is in the tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from tests.e2e.fixtures import NO_MODEL
from tests.e2e.node_process import NodeProcess
from tests.providers.fake_upstream import FakeUpstream

T = TypeVar("T")
HERE = Path(__file__).parent
CLONE_NEWNET = 0x40000000
RELAY, RELAY2 = "11.22.33.10", "11.22.33.20"
PUBLIC = {"relay": RELAY, "relay2": RELAY2}
PORT = 4001  # the one that an "open" NAT forwards

_libc = ctypes.CDLL(None, use_errno=True)
_count = iter(range(1_000_000))


def impossible() -> str:
    """Why no lab can be built here; "" when it can."""
    if os.environ.get("NAT_LAB_ENTERED") == "1":
        return ""
    return "network namespaces are needed: run `make nat`, which enters some of its own, as root or as a user"


class Lab:
    """`folder`: for the nodes' data directories and the lab's own state. Nothing is left when the block is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._prefix = f"shoal{os.getpid()}-{next(_count)}-"
        self._state = folder / "lab"
        self._state.mkdir(parents=True)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *exc: object) -> None:
        self._do("down")

    def _do(self, *args: object) -> str:
        done = subprocess.run(
            [str(HERE / "lab.sh"), *map(str, args)],
            env={**os.environ, "LAB_PREFIX": self._prefix, "LAB_STATE": str(self._state)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise RuntimeError(f"lab.sh {' '.join(map(str, args))}: {done.stdout.strip()}")
        return done.stdout

    # -- lines ---------------------------------------------------------------------------------------------------

    def up(self, kind_a: str = "cone", kind_b: str = "cone") -> None:
        self._do("up", kind_a, kind_b)

    def nat(self, side: str, kind: str) -> None:
        self._do("nat", side, kind)

    def cut(self, where: str) -> None:
        """Silently, from now on: "a" and "b" a node from everybody, "ab" the direct way, "a:ADDRESS" from one."""
        self._do("cut", where)

    def linkdown(self, side: str) -> None:
        self._do("linkdown", side)

    def loss(self, side: str, percent: int) -> None:
        self._do("loss", side, percent)

    def heal(self) -> None:
        self._do("heal")

    def flush(self, side: str) -> None:
        self._do("flush", side)

    def six(self) -> None:
        """Global IPv6 addresses for everybody, beside those of IPv4."""
        self._do("six")

    def nofour(self, name: str) -> None:
        """A node without IPv4."""
        self._do("nofour", name)

    def delay(self, milliseconds: float) -> None:
        self._do("delay", milliseconds)

    # -- what lives in it ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def entered(self, name: str) -> Iterator[None]:
        """This thread is in the namespace: sockets made and processes begun here belong to it."""
        with (
            open(f"/proc/self/task/{threading.get_native_id()}/ns/net") as home,
            open(f"/run/netns/{self._prefix}{name}") as there,
        ):
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def inside(self, name: str, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """`call(*args, **options)` in a namespace."""
        with self.entered(name):
            return call(*args, **options)

    async def in_thread(self, name: str, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """The same in a thread, while the test goes on."""
        return await trio.to_thread.run_sync(partial(self.inside, name, call, *args, **options))

    async def node(
        self,
        name: str,
        *args: str,
        config: str = NO_MODEL,
        folder: str | None = None,
        kind: type[LabNode] | None = None,
    ) -> LabNode:
        """A real `shoal run` in a namespace. folder: of its data, by default named after the namespace."""
        return await trio.to_thread.run_sync(
            partial(kind or LabNode, self, name, self.folder / (folder or name), *args, config=config)
        )

    @contextlib.asynccontextmanager
    async def upstream(self, name: str) -> Any:
        """The tests' fake provider, on loopback of a namespace."""
        server = FakeUpstream()
        with self.entered(name):
            await server.__aenter__()
        try:
            yield server
        finally:
            await server.__aexit__(None, None, None)


class LabNode(NodeProcess):
    """A node in a namespace, and commands run beside it."""

    def __init__(self, lab: Lab, name: str, folder: Path, *args: str, config: str) -> None:
        self.lab, self.name = lab, name
        with lab.entered(name):
            super().__init__(folder, *args, config=config)

    def shoal(self, *args: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return self.lab.inside(self.name, super().shoal, *args, check=check, timeout=timeout)

    async def do(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """`call` in a thread, in the node's namespace: for a client of its RPC."""
        return await self.lab.in_thread(self.name, call, *args, **options)


class LyingRelay(LabNode):
    """A relay that leads callers to another node than the one they ask for."""

    PROGRAM = (sys.executable, str(HERE / "lying_relay.py"))


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot enter the network namespace: {os.strerror(number)}")
