"""`shoal peers --watch`: a table that stays in its place on a terminal and is true a second later."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from shoal.node.commands import peers_command
from shoal.protocols.http.exchange import Exchange

from .fake_node import SHOAL, FakeNode, fake_node

PEER = {
    "peer": "12D3KooWabcdef",
    "connected": True,
    "rtt_s": 0.004,
    "models": [{"name": "smollm2"}],
    "load": {"running": 2, "queued": 1, "cpu": 0.5},
    "hardware": {"cpu": "Example 9000", "gpus": [{"name": "G1"}]},
    "consumed": {"requests": 3, "prompt_tokens": 40, "completion_tokens": 2},
    "via": "direct",
}
ROWS, COLUMNS = 30, 180
UP, ERASE = "\x1b[1A", "\x1b[2K"


class Terminal:
    """A command on a terminal of its own. `seen`: all that it wrote."""

    def __init__(self, *command: str, **environ: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", **environ}
        environment.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            [SHOAL, *command], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self.seen = ""

    async def until(self, text: str, *, count: int = 1, within: float = 20.0) -> None:
        with trio.fail_after(within):
            while self.seen.count(text) < count:
                await trio.lowlevel.wait_readable(self._master)
                with contextlib.suppress(OSError):  # EIO: it has ended
                    self.seen += os.read(self._master, 65536).decode(errors="replace")

    def screen(self) -> list[str]:
        """What stands on the terminal: the text, with the lines that were erased taken away."""
        lines, at = [""], 0
        for piece in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r\n|\n|\r)", self.seen):
            if piece in ("\n", "\r\n"):
                at += 1
                lines += [""] * (at + 1 - len(lines))
            elif piece == UP:
                at = max(0, at - 1)
            elif piece == ERASE:
                lines[at] = ""
            elif not piece.startswith("\x1b") and piece != "\r":
                lines[at] += piece
        return [line.rstrip() for line in lines if line.strip()]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self._master)


@contextlib.asynccontextmanager
async def watching(data: Path) -> AsyncIterator[tuple[FakeNode, Terminal]]:
    async with fake_node(data) as node:
        node.answers["GET /shoal/v1/peers"] = {"peers": [PEER]}
        terminal = Terminal("peers", "--watch", "--data-dir", str(data))
        try:
            yield node, terminal
        finally:
            terminal.end()


async def test_the_table_stays_in_its_place_and_follows_what_happens(
    tmp_path: Path,
) -> None:
    async with watching(tmp_path) as (node, terminal):
        await terminal.until("12D3KooWabcdef", count=2)
        (heading, row) = terminal.screen()
        assert heading.split() == ["peer", "state", "rtt", "models", "load", "hardware", "has", "had", "note"]
        for cell in (
            "connected",
            "4 ms",
            "smollm2",
            "2 running, 1 waiting, 50% cpu",
            "Example 9000, G1",
            "3 requests, 42",
        ):
            assert cell in row
        away = {"peer": "12D3KooWabcdef", "connected": False, "problem": "the peer was silent for 1.5 s"}
        other = PEER | {"peer": "12D3KooWsecond", "via": "relayed", "via_note": "the NAT of the peer changes ports"}
        node.answers["GET /shoal/v1/peers"] = {"peers": [away, other]}
        await terminal.until("12D3KooWsecond", count=2)
        first, second = terminal.screen()[1:]
        assert "away" in first
        assert "the peer was silent for 1.5 s" in first
        assert "relayed" in second
        assert "the NAT of the peer changes ports" in second
        node.answers["GET /shoal/v1/peers"] = {"peers": []}
        await terminal.until("run `shoal join INVITE`")
        assert terminal.screen() == [peers_command.EMPTY]
        terminal.process.send_signal(signal.SIGINT)
        with trio.fail_after(10):
            code = await trio.to_thread.run_sync(terminal.process.wait)
        assert code == 130
        assert "Traceback" not in terminal.seen


async def test_a_peers_words_cannot_steer_the_terminal(tmp_path: Path) -> None:
    async with watching(tmp_path) as (node, terminal):
        evil = "m\x1b]0;owned\x07\x1b[31m[bold]x[/bold]\u202e"
        node.answers["GET /shoal/v1/peers"] = {"peers": [PEER | {"models": [{"name": evil}], "via_note": evil}]}
        await terminal.until("[bold]x[/bold]", count=2)
        assert "\x1b]0" not in terminal.seen
        assert "\x1b[31m" not in terminal.seen
        assert "\u202e" not in terminal.seen


async def test_a_node_that_ends_ends_the_watching_with_a_sentence(tmp_path: Path) -> None:
    async with watching(tmp_path) as (node, terminal):
        await terminal.until("12D3KooWabcdef", count=2)

        async def gone(exchange: Exchange) -> None:
            raise ConnectionResetError

        node.answers["GET /shoal/v1/peers"] = gone
        with trio.fail_after(15):
            code = await trio.to_thread.run_sync(terminal.process.wait)
        await terminal.until("shoal: ")
        assert code not in (0, 130)
        assert "Traceback" not in terminal.seen


@pytest.mark.parametrize("more", [["--json"]])
async def test_watching_is_for_people(tmp_path: Path, more: list[str]) -> None:
    async with fake_node(tmp_path) as node:
        done = await node.shoal("peers", "--watch", *more)
    assert done.returncode == 2
    assert b"ask for --json again and again" in done.stderr
