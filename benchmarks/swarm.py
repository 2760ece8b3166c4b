"""Many real nodes on this machine, each with a fake fast provider that it shares: how they find each other and idle.

join        from the moment that all are told to join the first one until each is connected with all others
spread      a change of what one offers, until 99 % of the others know it
dead        a node is killed: until no other has it among the connected
idle        memory, CPU, session and DHT bytes of each node while nothing happens

    python -m benchmarks.swarm 20          (make swarm N=20)
"""

from __future__ import annotations

import http.client
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from benchmarks.node import Upstream, config, cpu_seconds
from benchmarks.table import show
from tests.e2e.node_process import NodeProcess

IDLE_S = 60.0
TOGETHER = 4  # nodes that start at once


def ask(node: NodeProcess, path: str, body: Any = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=30)
    try:
        data = json.dumps(body) if body is not None else None
        connection.request("POST" if data else "GET", path, data, {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def connected(node: NodeProcess) -> set[str]:
    return {peer["peer"] for peer in ask(node, "/shoal/v1/peers")["peers"] if peer["connected"]}


def seconds_until(holds: Callable[[], bool], within: float) -> float:
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > within:
            return math.inf
        time.sleep(0.02)
    return time.monotonic() - began


def joined(nodes: Sequence[NodeProcess]) -> Callable[[], bool]:
    """Whether each is connected with all others; who has been is not asked again."""
    waiting = list(nodes)
    everyone = {node.peer_id for node in nodes}

    def holds() -> bool:
        while waiting and everyone - connected(waiting[-1]) == {waiting[-1].peer_id}:
            waiting.pop()
        return not waiting

    return holds


def offers(node: NodeProcess, peer: str) -> bool:
    found = next((p for p in ask(node, "/shoal/v1/peers")["peers"] if p["peer"] == peer), None)
    return found is not None and bool(found["providers"])


def lacking(others: Sequence[NodeProcess], peer: str, allowed: int) -> Callable[[], bool]:
    """Whether all but `allowed` know that the peer offers nothing any more."""
    waiting = list(others)

    def holds() -> bool:
        waiting[:] = [node for node in waiting if offers(node, peer)]
        return len(waiting) <= allowed

    return holds


def measure(count: int, folder: Path) -> list[tuple[str, object, str]]:
    nodes: list[NodeProcess] = []
    rows: list[tuple[str, object, str]] = []
    with Upstream() as upstream, ThreadPoolExecutor(TOGETHER) as pool:
        try:
            text = config(upstream.url(), share=True) + '[swarm]\nlisten = ["/ip4/127.0.0.1/tcp/0"]\n'
            list(pool.map(lambda n: nodes.append(NodeProcess(folder / f"node{n}", config=text)), range(count)))
            first, others = nodes[0], nodes[1:]
            began = time.monotonic()
            for answer in pool.map(lambda node: ask(node, "/shoal/v1/join", {"invite": first.invite}), others):
                if "error" in answer:
                    print(f"a node could not join: {answer['error']['message']}")
            told = time.monotonic() - began
            rows.append(("joined, all with all", f"{told + seconds_until(joined(nodes), 60):.1f} s", "15 s"))
            time.sleep(5)
            ask(first, "/shoal/v1/pause", {})
            allowed = (count - 1) // 100
            spread = seconds_until(lacking(others, first.peer_id, allowed), 30)
            rows.append(("a change at 99 % of the others", f"{spread:.2f} s", "2 s"))
            ask(first, "/shoal/v1/resume", {})
            time.sleep(5)
            rows += idle(nodes)
            dead, rest = nodes.pop(), nodes[:]
            dead.kill()
            gone = seconds_until(lambda: not any(dead.peer_id in connected(node) for node in rest), 30)
            rows.append(("a killed node out of every route", f"{gone:.2f} s", "2 s"))
        finally:
            for node in nodes:
                node.kill()
    return rows


def idle(nodes: Sequence[NodeProcess]) -> list[tuple[str, object, str]]:
    def figures() -> list[tuple[float, int]]:
        said = [ask(node, "/shoal/v1/swarm")["figures"] for node in nodes]
        dht = [ask(node, "/shoal/v1/status")["dht"].get("swarm", {}).get("bytes_sent", 0) for node in nodes]
        sent = [figures["bytes_sent"] + more for figures, more in zip(said, dht, strict=True)]
        return [(cpu_seconds(n.process.pid), count) for n, count in zip(nodes, sent, strict=True)]

    before = figures()
    time.sleep(IDLE_S)
    after = figures()
    cpu = [(b[0] - a[0]) / IDLE_S * 100 for a, b in zip(before, after, strict=True)]
    sent = [(b[1] - a[1]) / IDLE_S for a, b in zip(before, after, strict=True)]
    memory = [psutil.Process(node.process.pid).memory_info().rss / 2**20 for node in nodes]
    return [
        ("memory a node: mean, most", f"{mean(memory):.0f}, {max(memory):.0f} MiB", "120 MB"),
        ("CPU of an idle node: mean, most", f"{mean(cpu):.2f}, {max(cpu):.2f} % of a core", "1 %"),
        ("session and DHT bytes sent by an idle node", f"{mean(sent):.0f}, {max(sent):.0f} B/s", "2 kB/s"),
    ]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(arguments: Sequence[str] = ()) -> None:
    count = int(arguments[0]) if arguments else 20
    with tempfile.TemporaryDirectory() as folder:
        show(f"a swarm of {count} nodes", ("what", "measured", "bar"), measure(count, Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
