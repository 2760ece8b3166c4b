"""The main job, on real input: `make demo`.

Two nodes start as real processes and join one swarm over libp2p. The first has no provider that can answer; the
second has a language model. The first is asked through its OpenAI-compatible RPC, the question goes to the second,
the text streams back, the answer is stored under its CID, is found there when asked again on either node, and is
verified by its signature.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from openai import OpenAI
from rich.console import Console

SHOAL = str(Path(sys.executable).with_name("shoal"))
QUESTION = "What is the opposite of hot?"
MODEL = "smollm2"
console = Console(highlight=False, soft_wrap=True)


def step(text: str) -> None:
    console.print(f"\n[bold cyan]==>[/] [bold]{text}[/]")


class Node:
    """`shoal run` as a child process."""

    def __init__(self, name: str, folder: Path, *args: str, config: str = "") -> None:
        self.name, self.data_dir = name, folder / name
        self.data_dir.mkdir()
        (self.data_dir / "config.toml").write_text(config)
        command = [SHOAL, "run", "--json", "--data-dir", str(self.data_dir), "--rpc", "127.0.0.1:0", *args]
        self.log = (self.data_dir / "log.txt").open("w")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if (facts := json.loads(line)).get("event") == "ready":
                break
        else:
            sys.exit(f"{name} did not start: {(self.data_dir / 'log.txt').read_text()}")
        self.rpc, self.peer_id, self.invite = facts["rpc"], facts["peer_id"], facts["invite"]
        console.print(f"  {name}: process {self.process.pid}, peer {self.peer_id}\n    RPC {self.rpc}/v1")
        ready = [f"{provider} ({', '.join(s['models'])})" for provider, s in facts["providers"].items() if s["ready"]]
        console.print(f"    providers that are ready: {', '.join(ready) or 'none'}")

    def shoal(self, *args: str) -> str:
        command = [SHOAL, *args, "--data-dir", str(self.data_dir)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def peers(self) -> list[dict[str, Any]]:
        return list(json.loads(self.shoal("peers", "--json"))["peers"])

    def ask(self) -> str:
        """Asks through the RPC with the openai package, prints the text as it comes, returns the answer's CID."""
        client = OpenAI(base_url=f"{self.rpc}/v1", api_key="unused", max_retries=0)
        began = time.monotonic()
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=40, temperature=0, stream=True
        )
        console.print(f"  [dim]asked {self.name}:[/] {QUESTION}\n  ", end="")
        first = cid = None
        for chunk in raw.parse():
            if chunk.choices and (text := chunk.choices[0].delta.content):
                first = first or time.monotonic() - began
                console.print(f"[green]{text}[/]", end="")
            cid = (getattr(chunk, "shoal", None) or {}).get("cid") or cid
        headers = raw.headers
        console.print(
            f"\n  [dim]provider {headers['x-shoal-provider']}, peer {headers['x-shoal-peer']}, "
            f"cache {headers['x-shoal-cache']}, route {headers['x-shoal-route']}\n"
            f"  first token after {first or 0:.3f} s, in all {time.monotonic() - began:.3f} s[/]"
        )
        if cid is None:
            sys.exit("the answer carried no CID")
        console.print(f"  [dim]cid {cid}[/]")
        return str(cid)

    def stop(self) -> None:
        if self.process.poll() is None:
            began = time.monotonic()
            self.process.send_signal(signal.SIGTERM)
            code = self.process.wait(10)
            console.print(f"  {self.name} ended with exit code {code} after {time.monotonic() - began:.1f} s")
        self.log.close()


def main() -> None:
    os.environ.setdefault("COLUMNS", "120")
    with tempfile.TemporaryDirectory(prefix="shoal-demo-") as folder:
        nodes: list[Node] = []
        try:
            step("Two nodes start; the second shares its local model, the first has no provider of its own")
            giver = Node("giver", Path(folder), "--share", "local_hf")
            nodes.append(giver)
            asker = Node("asker", Path(folder), config="[providers.local_hf]\nenabled = false\n")
            nodes.append(asker)

            step("The first joins the second's swarm by its invite")
            console.print(f"  $ shoal join {giver.invite[:40]}…")
            console.print("  " + asker.shoal("join", giver.invite).strip().replace("\n", "\n  "))
            deadline = time.monotonic() + 15
            while not any(peer.get("models") for peer in asker.peers()):
                if time.monotonic() > deadline:
                    sys.exit("the nodes did not find each other within 15 s")
                time.sleep(0.1)
            console.print("  $ shoal peers\n" + asker.shoal("peers"))

            step("A question to the first node is forwarded to the second, and its answer streams back")
            cid = asker.ask()
            step("Asked again, on either node, it comes from the cache")
            again = [asker.ask(), giver.ask()]
            if set(again) != {cid}:
                sys.exit(f"expected the same record everywhere, got {again} after {cid}")

            step("The CID names the record; its signature says who gave the answer")
            console.print(f"  $ shoal cache get {cid}\n" + asker.shoal("cache", "get", cid))
            console.print(f"  $ shoal verify {cid}\n" + asker.shoal("verify", cid))
        finally:
            step("Both nodes are told to stop")
            for node in nodes:
                node.stop()


if __name__ == "__main__":
    main()
