"""What a terminal shows while a command waits: a line after a second, and nothing of it when it is over."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import trio
from shoal.protocols.http.exchange import Exchange

from .fake_node import SHOAL, fake_node


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """(our end, the command's end) of a terminal."""
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)


async def shown(data: Path, *arguments: str, ends: int = 0) -> bytes:
    """What a command writes to a terminal that is its stderr."""
    with terminal() as (ours, theirs):
        process = subprocess.Popen(
            [SHOAL, *arguments, "--data-dir", str(data)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm"},
        )
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the other end was closed
            while piece := await trio.to_thread.run_sync(os.read, ours, 4096):
                seen += piece
        assert await trio.to_thread.run_sync(process.wait) == ends
        return seen


async def test_a_slow_answer_is_waited_for_in_view_and_a_quick_one_is_not(tmp_path: Path) -> None:
    async def slow(exchange: Exchange) -> None:
        await trio.sleep(1.4)
        await exchange.respond(200, b'{"peers": []}')

    async with fake_node(tmp_path) as node:
        node.answers["GET /shoal/v1/peers"] = {"peers": []}
        assert await shown(tmp_path, "peers", "--json") == b""
        node.answers["GET /shoal/v1/peers"] = slow
        seen = await shown(tmp_path, "peers", "--json")
    assert "waiting for the node, 1 s" in seen.decode()
    assert seen.endswith(b"\r\x1b[K")


async def test_a_slow_look_around_is_waited_for_in_view(tmp_path: Path) -> None:
    async with fake_node(tmp_path) as node:
        node.answers |= {f"GET /shoal/v1/{name}": {} for name in ("status", "providers", "peers")}
        with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            (tmp_path / "config.toml").write_text(f'[engines]\naddresses = ["{address}"]\ntimeout_s = 1.5\n')
            assert "looking at this machine, 1 s" in (await shown(tmp_path, "doctor", ends=1)).decode()
            assert "looking for engines, 1 s" in (await shown(tmp_path, "providers")).decode()
