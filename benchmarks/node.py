"""The whole node, as a process with everything switched on, against a fast upstream on loopback.

start       from exec to an answering RPC, and what the idle process holds
added       time and CPU that the RPC adds to a chat request, beside the same upstream asked directly
hits        answers from the cache through the RPC
streams     CPU of the node per streamed event
peer        first token through a peer, beside the same question asked on that peer
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks import loader
from benchmarks.table import show
from tests.e2e.node_process import NodeProcess

UPSTREAM = Path(__file__).parents[1] / "tests/providers/fake_upstream.py"
SECONDS = 5.0


def chat(model: str, *, stream: bool = False, text: str = "Say something short.", **options: object) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream, **options}
    return json.dumps(body).encode()


def config(base_url: str, *, share: bool = False) -> str:
    return (
        "[providers.local_hf]\nenabled = false\n"
        f'[providers.fast]\ntype = "openai_compat"\nbase_url = "{base_url}"\nmodels = ["echo"]\n'
        f"share = {str(share).lower()}\nmax_concurrent = 256\n"
    )


class Upstream:
    """The tests' fake upstream as a process of its own; it is a fake because its speed is what is subtracted."""

    def __enter__(self) -> Upstream:
        self.process = subprocess.Popen([sys.executable, str(UPSTREAM), "--port", "0"], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.port = int(json.loads(self.process.stdout.readline())["port"])
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        self.process.wait()

    def url(self, scenario: str = "ok") -> str:
        return f"http://127.0.0.1:{self.port}/s/{scenario}/v1"


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def start(folder: Path) -> None:
    starts = []
    for turn in range(5):
        with NodeProcess(folder / f"start{turn}", config="[providers.local_hf]\nenabled = false\n") as node:
            starts.append(node.started)
            if turn == 4:
                time.sleep(3)
                memory = psutil.Process(node.process.pid).memory_info().rss / 2**20
                before = cpu_seconds(node.process.pid)
                time.sleep(10)
                idle = (cpu_seconds(node.process.pid) - before) / 10
    starts.sort()
    rows = [
        ("start to RPC ready, s (median of 5)", f"{starts[2]:.2f}", "2", "1"),
        ("resident memory idle, MB", f"{memory:.0f}", "120", "100"),
        ("CPU idle, share of a core", f"{idle:.2%}", "", ""),
    ]
    show("An idle node without a local model", ("what", "measured", "gate", "aim"), rows)


def added(folder: Path) -> None:
    rows = []
    with Upstream() as upstream, NodeProcess(folder / "added", config=config(upstream.url())) as node:
        direct = loader.post("/s/ok/v1/chat/completions", chat("echo"))
        through = loader.post("/v1/chat/completions", chat("echo"), "Cache-Control: no-store\r\n")
        for connections in (1, 16, 64):
            base = loader.run("127.0.0.1", upstream.port, [direct], connections=connections, seconds=SECONDS)
            before = cpu_seconds(node.process.pid)
            load = loader.run("127.0.0.1", node.port, [through], connections=connections, seconds=SECONDS)
            cpu = (cpu_seconds(node.process.pid) - before) / len(load.latencies)
            rows.append(
                (
                    connections,
                    f"{base.at(0.5) * 1e3:.2f}",
                    f"{load.at(0.5) * 1e3:.2f}",
                    f"{(load.at(0.5) - base.at(0.5)) * 1e3:.2f}",
                    f"{load.at(0.99) * 1e3:.1f}",
                    f"{load.rate:.0f}",
                    f"{cpu * 1e6:.0f}",
                    load.failed + base.failed,
                )
            )
    head = (
        "connections",
        "direct p50 ms",
        "node p50 ms",
        "added p50 ms",
        "node p99 ms",
        "req/s",
        "CPU us/req",
        "failed",
    )
    show("A chat request through the RPC (gate: 0.6 ms added p50 at 1 connection, aim 0.3)", head, rows)


def hits(folder: Path) -> None:
    rows = []
    with Upstream() as upstream, NodeProcess(folder / "hits", config=config(upstream.url())) as node:
        requests = [
            loader.post("/v1/chat/completions", chat("echo", text=f"Question {i}", temperature=0)) for i in range(100)
        ]
        loader.run("127.0.0.1", node.port, requests, connections=4, seconds=1)
        for connections in (1, 16):
            before = cpu_seconds(node.process.pid)
            load = loader.run("127.0.0.1", node.port, requests, connections=connections, seconds=SECONDS)
            cpu = (cpu_seconds(node.process.pid) - before) / len(load.latencies)
            row = (connections, f"{load.rate:.0f}", f"{load.at(0.5) * 1e3:.2f}", f"{cpu * 1e6:.0f}", load.failed)
            rows.append(row)
    show(
        "Cache hits through the RPC (gate 5,000/s, aim 12,000/s)",
        ("connections", "hits/s", "p50 ms", "CPU us", "failed"),
        rows,
    )


def streams(folder: Path) -> None:
    with Upstream() as upstream, NodeProcess(folder / "streams", config=config(upstream.url("slow"))) as node:
        text = " ".join(f"word{i}" for i in range(100))
        request = loader.post(
            "/v1/chat/completions", chat("echo", stream=True, text=text), "Cache-Control: no-store\r\n"
        )
        before = cpu_seconds(node.process.pid)
        load = loader.run("127.0.0.1", node.port, [request], connections=16, seconds=SECONDS)
        cpu = (cpu_seconds(node.process.pid) - before) / (len(load.latencies) * 100)
    rows = [(len(load.latencies), f"{load.rate * 100:.0f}", f"{cpu * 1e6:.0f}", load.failed)]
    head = ("streams", "events/s", "CPU us/event", "failed")
    show("Streams of 100 words at once on 16 connections (gate 150 us an event, aim 70)", head, rows)


def peer(folder: Path) -> None:
    rows = []
    with Upstream() as upstream:
        giving = NodeProcess(folder / "giving", config=config(upstream.url(), share=True))
        asking_config = "[providers.local_hf]\nenabled = false\n"
        with giving, NodeProcess(folder / "asking", "--join", giving.invite, config=asking_config) as asking:
            wait_for_peer(asking)
            request = loader.post("/v1/chat/completions", chat("echo", stream=True), "Cache-Control: no-store\r\n")
            for connections in (1, 16):
                local = loader.run("127.0.0.1", giving.port, [request], connections=connections, seconds=SECONDS)
                pids = (asking.process.pid, giving.process.pid)
                before = [cpu_seconds(pid) for pid in pids]
                load = loader.run("127.0.0.1", asking.port, [request], connections=connections, seconds=SECONDS)
                cpu = [(cpu_seconds(pid) - b) / len(load.latencies) * 1e6 for pid, b in zip(pids, before, strict=True)]
                firsts = [loader.quantile(x.first, share) * 1e3 for x in (local, load) for share in (0.5, 0.99)]
                rows.append(
                    (
                        connections,
                        f"{firsts[0]:.2f} / {firsts[1]:.1f}",
                        f"{firsts[2]:.2f} / {firsts[3]:.1f}",
                        f"{firsts[2] - firsts[0]:.2f} / {firsts[3] - firsts[1]:.1f}",
                        f"{cpu[0]:.0f} / {cpu[1]:.0f}",
                        load.failed + local.failed,
                    )
                )
    head = ("connections", "here p50/p99 ms", "through a peer", "added", "CPU us asking/giving", "failed")
    show("First token (gate 15 ms added p99, aim 5 ms p50)", head, rows)


def wait_for_peer(node: NodeProcess, within: float = 15) -> None:
    """Returns when the node knows of a peer that offers a model."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        peers = json.loads(node.shoal("peers", "--json").stdout)["peers"]
        if any(p.get("models") for p in peers):
            return
        time.sleep(0.1)
    raise TimeoutError("no peer with a model came up")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for part in (start, added, hits, streams, peer):
            part(Path(folder))
