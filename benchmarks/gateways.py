"""Shoal beside LiteLLM's proxy: the same upstream, the same questions, one run, one process each.

    python -m benchmarks gateways

Shoal runs as it is installed, with everything on. LiteLLM (pinned, scripts/install_litellm.sh) runs with one worker, no
data base, no callbacks and no key to check, which is the least it can be asked to do; it is kept from sending telemetry
and from loading its price list. It keeps no answers, so most rows tell Shoal not to (Cache-Control: no-store). The row
"whose answer is kept" asks something new each time: Shoal looks for the answer, signs, stores and offers it, as it does
unless told. The fake upstream, the load generator and the gateway share this machine's cores, so compare the columns
and not the figures of two machines. Added time is over asking the upstream itself.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks import loader
from benchmarks.node import Upstream, chat
from benchmarks.table import show
from tests.e2e.node_process import NodeProcess

LITELLM = Path(__file__).parents[1] / "build/litellm/venv/bin/litellm"
NO_STORE = "Cache-Control: no-store\r\n"
SECONDS = 6.0
STREAMS, EVENTS, EVERY_MS = 64, 100, 10
QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "DISABLE_ADMIN_UI": "True",
    "LITELLM_LOG": "ERROR",
    "NO_PROXY": "*",
}


class Gateway(NamedTuple):
    """A gateway that runs. started: seconds from exec to its first answer. fresh: MB it holds before any request."""

    name: str
    process: psutil.Process
    port: int
    started: float
    fresh: float

    @property
    def cpu(self) -> float:
        """CPU seconds of all its processes so far."""
        return sum(sum(p.cpu_times()[:2]) for p in self._tree)

    @property
    def memory(self) -> float:
        return sum(float(p.memory_info().rss) for p in self._tree) / 2**20

    @property
    def _tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


@contextlib.contextmanager
def ticker() -> Iterator[int]:
    """benchmarks/ticker.py as a process; gives its port."""
    command = [sys.executable, "-m", "benchmarks.ticker", "--every", str(EVERY_MS), "--events", str(EVENTS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None
        try:
            yield int(json.loads(process.stdout.readline())["port"])
        finally:
            process.terminate()


@contextlib.contextmanager
def shoal(folder: Path, upstreams: dict[str, str]) -> Iterator[Gateway]:
    config = "[providers.local_hf]\nenabled = false\n"
    for model, url in upstreams.items():
        about = f'type = "openai_compat"\nbase_url = "{url}"\nmodels = ["{model}"]\nmax_concurrent = 256\n'
        config += f"[providers.{model}]\n{about}"
    with NodeProcess(folder / "shoal", config=config) as node:
        process = psutil.Process(node.process.pid)
        time.sleep(2)
        yield Gateway("Shoal", process, node.port, node.started, process.memory_info().rss / 2**20)


@contextlib.contextmanager
def litellm(folder: Path, upstreams: dict[str, str]) -> Iterator[Gateway]:
    models = [
        {"model_name": model, "litellm_params": {"model": f"openai/{model}", "api_base": url, "api_key": "none"}}
        for model, url in upstreams.items()
    ]
    config = folder / "litellm.json"  # YAML's subset
    config.write_text(json.dumps({"model_list": models, "litellm_settings": {"telemetry": False}}))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    began = time.monotonic()
    command = [str(LITELLM), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with (
        (folder / "litellm.log").open("wb") as log,
        subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder, env={**os.environ, **QUIET}
        ) as child,
    ):
        try:
            while not _answers(port):
                if child.poll() is not None or time.monotonic() - began > 120:
                    sys.exit(f"LiteLLM did not start:\n{(folder / 'litellm.log').read_text()[-2000:]}")
                time.sleep(0.05)
            started = time.monotonic() - began
            time.sleep(2)
            gateway = Gateway("LiteLLM", psutil.Process(child.pid), port, started, 0.0)
            yield gateway._replace(fresh=gateway.memory)
        finally:
            child.terminate()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health/liveliness")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


class Cost(NamedTuple):
    """What requests cost: seconds and requests a second; the added times are over the upstream's own."""

    cpu: float
    rate: float
    p50: float
    p99: float
    failed: int


def requests(gateway: Gateway, direct: dict[int, loader.Load], connections: int, *, kept: bool = False) -> Cost:
    """kept: each question is a new one whose answer is for the cache, so that Shoal signs and stores it."""
    if kept:
        asked = [
            loader.post("/v1/chat/completions", chat("echo", text=f"Question {i}", temperature=0)) for i in range(40000)
        ]
    else:
        asked = [loader.post("/v1/chat/completions", chat("echo"), NO_STORE)]
    loader.run("127.0.0.1", gateway.port, asked[-64:], connections=connections, seconds=0.5)
    before = gateway.cpu
    load = loader.run("127.0.0.1", gateway.port, asked, connections=connections, seconds=SECONDS)
    cpu = (gateway.cpu - before) / len(load.latencies)
    base = direct[connections]
    return Cost(cpu, load.rate, load.at(0.5) - base.at(0.5), load.at(0.99) - base.at(0.99), load.failed)


class Told(NamedTuple):
    cpu: float
    streams: loader.Streams


def streams(gateway: Gateway) -> Told:
    request = loader.post("/v1/chat/completions", chat("tick", stream=True), NO_STORE)
    before = gateway.cpu
    told = loader.stream("127.0.0.1", gateway.port, request, connections=STREAMS)
    return Told((gateway.cpu - before) / (STREAMS * EVENTS), told)


class Measured(NamedTuple):
    gateway: Gateway
    costs: dict[int, Cost]
    kept: Cost
    told: Told
    memory: float


def measure(gateway: Gateway, direct: dict[int, loader.Load]) -> Measured:
    costs = {connections: requests(gateway, direct, connections) for connections in (1, 16, 64)}
    kept = requests(gateway, direct, 16, kept=True)
    told = streams(gateway)
    return Measured(gateway, costs, kept, told, gateway.memory)


def rows(ours: Measured, theirs: Measured) -> list[tuple[str, str, str, str, str, str]]:
    us, them, found = ours.costs, theirs.costs, []

    def row(what: str, mine: float, other: float, form: str, gate: str = "", aim: str = "", up: bool = False) -> None:
        ratio = f"{mine / other if up else other / mine:.1f} x" if mine > 0 and other > 0 else ""
        found.append((what, format(mine, form), format(other, form), ratio, gate, aim))

    for n in (1, 16, 64):
        row(f"CPU a chat request, us, {n} connections", us[n].cpu * 1e6, them[n].cpu * 1e6, ".0f", "40 x", "100 x")
    kept = "CPU a request whose answer is kept, us, 16 connections"
    row(kept, ours.kept.cpu * 1e6, theirs.kept.cpu * 1e6, ".0f")
    for n in (1, 16, 64):
        gate = ("30 x", "100 x") if n == 16 else ("", "")
        row(f"requests a second, {n} connections", us[n].rate, them[n].rate, ".0f", *gate, up=True)
    for n in (1, 16, 64):
        gate = ("0.6 ms", "0.3 ms") if n == 1 else ("", "")
        row(f"added p50, ms, {n} connections", us[n].p50 * 1e3, them[n].p50 * 1e3, ".2f", *gate)
    for n in (1, 16, 64):
        gate = ("60 ms", "20 ms") if n == 64 else ("", "")
        row(f"added p99, ms, {n} connections", us[n].p99 * 1e3, them[n].p99 * 1e3, ".1f", *gate)
    row("CPU a streamed event, us", ours.told.cpu * 1e6, theirs.told.cpu * 1e6, ".0f", "150 us", "70 us")
    gaps = [loader.quantile(m.told.streams.gaps, 0.99) * 1e3 for m in (ours, theirs)]
    row("gap between events, p99, ms", *gaps, ".0f", "60 ms")
    row("streams whole, of 64", ours.told.streams.whole, theirs.told.streams.whole, ".0f", "64", up=True)
    row("start to the first answer, s", ours.gateway.started, theirs.gateway.started, ".2f", "2 s", "1 s")
    row("memory when started, MB", ours.gateway.fresh, theirs.gateway.fresh, ".0f", "120 MB", "100 MB")
    row("memory after the run, MB", ours.memory, theirs.memory, ".0f")
    failed = [sum(cost.failed for cost in (*m.costs.values(), m.kept)) for m in (ours, theirs)]
    found.append(("requests that failed", str(failed[0]), str(failed[1]), "", "0", ""))
    return found


def main() -> None:
    if not LITELLM.exists():
        sys.exit("LiteLLM is not installed; run scripts/install_litellm.sh (`make bench` does)")
    with tempfile.TemporaryDirectory() as name, Upstream() as upstream, ticker() as port:
        folder = Path(name)
        direct = {}
        for connections in (1, 16, 64):
            asked = [loader.post("/s/ok/v1/chat/completions", chat("echo"))]
            direct[connections] = loader.run(
                "127.0.0.1", upstream.port, asked, connections=connections, seconds=SECONDS / 2
            )
        upstreams = {"echo": upstream.url(), "tick": f"http://127.0.0.1:{port}/v1"}
        measured: list[Measured] = []
        for start in (shoal, litellm):
            with start(folder, upstreams) as gateway:
                measured.append(measure(gateway, direct))
    pins = (Path(__file__).parent / "litellm.txt").read_text().split()
    version = next(pin.partition("==")[2] for pin in pins if pin.startswith("litellm=="))
    title = f"Shoal and LiteLLM's proxy {version}, one worker, {os.cpu_count()} cores for gateway, upstream and load"
    head = ("what", "Shoal", "LiteLLM", "better by", "gate", "aim")
    show(title, head, rows(measured[0], measured[1]))
    base = ", ".join(f"{n}: {load.at(0.5) * 1e3:.2f}/{load.at(0.99) * 1e3:.1f}" for n, load in direct.items())
    print(f"The upstream itself answers in (p50/p99 ms at connections) {base}.")


if __name__ == "__main__":
    main()
