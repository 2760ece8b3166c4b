"""A real node as a child process: `shoal run --json`, its start-up facts, and its end."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

SHOAL = str(Path(sys.executable).with_name("shoal"))
RPC = ("--rpc", "127.0.0.1:0")


VENDORS = ("ANTHROPIC_", "CLAUDE_", "CODEX_", "COPILOT_", "GEMINI_", "GH_", "GITHUB_", "GOOGLE_", "OPENAI_", "OPENR")


UNMEASURED = "\n[node]\nmeasure_after_s = 0\n"
"""Twenty nodes that measure the memory of one machine at the same time say nothing of it, and disturb each other."""


def environment() -> dict[str, str]:
    """This process's environment without what would let a node of the tests reach a real vendor."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith((*VENDORS, "SHOAL_LLM_"))}
    return {**kept, "NO_COLOR": "1"}


class NodeProcess:
    """Starts on construction; `facts` holds what the node said of itself when it was ready.

    PROGRAM: what is run; a subclass may put another in its place.

    started: seconds from the process's start until it said that its RPC answers.
    """

    PROGRAM: ClassVar[tuple[str, ...]] = (SHOAL,)

    def __init__(self, data_dir: Path, *args: str, config: str = "", ready_within: float = 30) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self.data_dir = data_dir
        self.log = (data_dir / "stderr.log").open("ab")
        (data_dir / "node.toml").write_text(config if "[node]" in config else config + UNMEASURED)
        began = time.monotonic()
        self.process = subprocess.Popen(
            [
                *self.PROGRAM,
                "run",
                "--json",
                "--data-dir",
                str(data_dir),
                "--config",
                str(data_dir / "node.toml"),
                *RPC,
                *args,
            ],
            stdout=subprocess.PIPE,
            stderr=self.log,
            stdin=subprocess.DEVNULL,
            env=environment(),
        )
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.facts = self.wait_for("ready", ready_within)
        except BaseException:
            self.kill()
            raise
        self.started = time.monotonic() - began

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def wait_for(self, event: str, within: float = 10) -> dict[str, Any]:
        """The next line of that event that the node prints; raises when it ends or the time is over."""
        deadline = time.monotonic() + within
        while True:
            try:
                line = self._lines.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {event!r} within {within} s; stderr: {self.stderr()}") from None
            if line is None:
                raise AssertionError(f"the node ended with {self.process.wait(5)}; stderr: {self.stderr()}")
            if line.get("event") == event:
                return line

    def stderr(self) -> str:
        return (self.data_dir / "stderr.log").read_text()[-4000:]

    @property
    def rpc(self) -> str:
        """The RPC's address, as in http://127.0.0.1:8642."""
        return str(self.facts["rpc"])

    @property
    def port(self) -> int:
        return int(self.rpc.rsplit(":", 1)[1])

    @property
    def invite(self) -> str:
        return str(self.facts["invite"])

    @property
    def peer_id(self) -> str:
        return str(self.facts["peer_id"])

    def shoal(self, *args: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs the command against this node's data directory."""
        return subprocess.run(
            [SHOAL, *args, "--data-dir", str(self.data_dir)],
            check=check,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def stop(self, within: float = 5) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(within)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.stop()
        else:
            self.kill()
