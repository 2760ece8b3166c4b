"""How long a hit takes through the RPC of a real node, from each tier. Part of `python -m benchmarks cache`.

memory  the node has answered the question before
disk    the same with no memory for answers
peer    another node of the swarm on this machine has the answer, and this one never saw the question
Kubo    a block by its CID (`GET /ipfs/CID?format=raw`) that only a connected Kubo 0.22 has (`make interop` installs it)

One connection, one request after the other, so that the figures are latencies and not queues.
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

from benchmarks import loader
from benchmarks.node import Upstream, chat, config
from benchmarks.table import show
from tests.e2e.node_process import NodeProcess

ROOT = Path(__file__).parents[1]
KUBO_PYTHON = ROOT / "build" / "interop" / "venv" / "bin" / "python"
QUESTIONS = 200
SECONDS = 3.0
ALONE = "[providers.local_hf]\nenabled = false\n"

Row = tuple[str, str, str, str, str]


def question(number: int) -> bytes:
    return chat("echo", text=f"Question {number}", temperature=0)


def row(what: str, seconds: list[float], gate: str, note: str = "") -> Row:
    seconds.sort()
    p50, p99 = (f"{loader.quantile(seconds, share) * 1e3:.2f}" for share in (0.5, 0.99))
    return what, p50, p99, gate, note or f"{len(seconds)} hits"


def asked(port: int, numbers: range, expected: set[str]) -> tuple[list[float], list[str]]:
    """Seconds for each question whose answer came from an expected tier, and the CIDs of all."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    seconds, cids = list[float](), list[str]()
    for number in numbers:
        began = time.perf_counter()
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", question(number), headers)
        answer = connection.getresponse()
        answer.read()
        took = time.perf_counter() - began
        if answer.status == 200:
            cids.append(answer.headers["x-shoal-cid"])
            if answer.headers["x-shoal-cache"] in expected:
                seconds.append(took)
    connection.close()
    return seconds, cids


def kept_here(folder: Path, upstream: Upstream) -> list[Row]:
    rows = []
    for tier, options, gate in (("memory", "", "1"), ("disk", "[cache]\nmemory_bytes = 0\n", "")):
        with NodeProcess(folder / tier, config=config(upstream.url()) + options) as node:
            asked(node.port, range(QUESTIONS), {"miss"})
            time.sleep(1)  # for the writer
            seconds, _ = asked(node.port, range(QUESTIONS), {tier})
            rows.append(row(f"{tier}, a client of Python's", seconds, gate))
            requests = [loader.post("/v1/chat/completions", question(n)) for n in range(QUESTIONS)]
            load = loader.run("127.0.0.1", node.port, requests, connections=1, seconds=SECONDS)
            rows.append(row(f"{tier}, raw sockets", load.latencies, gate, f"{load.rate:,.0f} hits/s"))
            load = loader.run("127.0.0.1", node.port, requests, connections=16, seconds=SECONDS)
            rows.append(row(f"{tier}, 16 connections", load.latencies, "", f"{load.rate:,.0f} hits/s"))
    return rows


def from_a_peer(folder: Path, upstream: Upstream) -> list[Row]:
    giving = NodeProcess(folder / "giving", config=config(upstream.url()))
    with giving, NodeProcess(folder / "asking", "--join", giving.invite, config=ALONE) as asking:
        asked(giving.port, range(QUESTIONS), {"miss"})
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            peers = json.loads(asking.shoal("peers", "--json").stdout)["peers"]
            if any(peer["connected"] for peer in peers):
                break
            time.sleep(0.1)
        seconds, cids = asked(asking.port, range(QUESTIONS), {"swarm"})
        note = f"{len(seconds)} hits of {len(cids)} answers"
        return [row("peer, the question never seen here", seconds, "15", note)]


class Kubo:
    """tests/interop/kubo_node.py as a child."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def answer(self) -> dict[str, object]:
        assert self._process.stdout is not None
        answer: dict[str, object] = json.loads(self._process.stdout.readline())
        return answer

    def do(self, op: str, **arguments: str) -> object:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
        self._process.stdin.flush()
        return self.answer()["result"]


@contextmanager
def a_kubo(folder: Path) -> Iterator[Kubo]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = ROOT / "tests" / "interop" / "kubo_node.py"
    process = subprocess.Popen(
        [str(KUBO_PYTHON), str(program), str(folder / "kubo"), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,  # it writes a log where it stands
        text=True,
    )
    try:
        kubo = Kubo(process)
        kubo.answer()
        yield kubo
    finally:
        process.kill()
        process.wait()


def from_kubo(folder: Path, upstream: Upstream) -> list[Row]:
    if not KUBO_PYTHON.exists():
        return [("a connected Kubo", "", "", "150", "run `make interop` first")]
    with a_kubo(folder) as kubo:
        with NodeProcess(folder / "source", config=config(upstream.url())) as source:
            _, cids = asked(source.port, range(QUESTIONS), {"miss"})
            kubo.do("connect", address=source.facts["addresses"][0])
            for cid in cids:
                kubo.do("pin", cid=cid)
        with NodeProcess(folder / "reader", config=ALONE) as reader:
            kubo.do("connect", address=reader.facts["addresses"][0])
            connection = HTTPConnection("127.0.0.1", reader.port, timeout=30)
            seconds = []
            for cid in cids:
                began = time.perf_counter()
                connection.request("GET", f"/ipfs/{cid}?format=raw")
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    seconds.append(time.perf_counter() - began)
            connection.close()
    return [row("a connected Kubo, by CID", seconds, "150", f"{len(seconds)} of {len(cids)} blocks")]


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder, Upstream() as upstream:
        for part in (kept_here, from_a_peer, from_kubo):
            rows += part(Path(folder), upstream)
    show("A hit through the RPC", ("from", "p50 ms", "p99 ms", "gate p50", ""), rows)


if __name__ == "__main__":
    main()
