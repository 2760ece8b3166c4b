"""`shoal peers`: the other nodes of the swarm, as this one sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli import Command, common
from .output import duration, print_json, print_table


@click.command(cls=Command, examples="shoal peers\nshoal peers --json | jq -r '.peers[].peer'")
@common
def command(as_json: bool, data_dir: Path | None) -> None:
    """List the peers of the running node."""
    from .client import look_up

    found = look_up(data_dir, "/shoal/v1/peers")
    if as_json:
        print_json(found)
        return
    rows = [row(peer) for peer in found.get("peers", ())]
    columns = ("peer", "state", "rtt", "models", "hardware", "note")
    print_table(columns, rows, empty="no peers; get an invite from another node and run `shoal join INVITE`")


def row(peer: dict[str, Any]) -> tuple[str, ...]:
    models = ", ".join(str(m.get("name", m) if isinstance(m, dict) else m) for m in peer.get("models") or ())
    hardware = peer.get("hardware") or {}
    parts = [str(hardware.get("cpu", ""))] if hardware.get("cpu") else []
    parts += [str(gpu.get("name", "")) for gpu in hardware.get("gpus") or ()]
    rtt, connected = peer.get("rtt_s"), bool(peer.get("connected"))
    return (
        str(peer.get("peer", "")),
        "connected" if connected else "away",
        duration(rtt) if isinstance(rtt, int | float) else "",
        models,
        ", ".join(parts),
        "" if connected else str(peer.get("problem") or ""),
    )
