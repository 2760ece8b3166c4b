"""`shoal status`: what the running node is doing, on one screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from .cli import Command, common
from .output import duration, print_facts, print_json, size


@click.command(cls=Command, examples="shoal status\nshoal status --json | jq -r .swarm.invite")
@common
def command(as_json: bool, data_dir: Path | None) -> None:
    """Show what the running node is doing.

    The invite of a private swarm holds its key: give it only to those who shall belong.
    """
    from .client import find_node, look_up

    found = look_up(data_dir, "/shoal/v1/status")
    # A private swarm's invite is not in the RPC's answer, but in a file that only the node's owner can read.
    swarm = found.setdefault("swarm", {})
    swarm["invite"] = swarm.get("invite") or find_node(data_dir).invite
    if as_json:
        print_json(found)
    else:
        print_facts(facts(found))


def facts(found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The lines of the screen: (name, value)."""
    swarm, requests = found.get("swarm") or {}, found.get("requests") or {}
    hardware, load = found.get("hardware") or {}, found.get("load") or {}
    up = duration(float(found.get("uptime_s") or 0))
    yield "node", f"Shoal {found.get('version')}, up {up}, pid {found.get('pid')}"
    yield "peer id", found.get("peer_id")
    yield "data", found.get("data_dir")
    yield "RPC", f"{found.get('rpc')}/v1"
    state = "" if swarm.get("up") else ", not up yet"
    private = "private, " if swarm.get("private") else ""
    yield "swarm", f"{swarm.get('name')} ({private}{swarm.get('peers', 0)} peers connected{state})"
    for address in swarm.get("addresses") or ():
        yield "listening", address
    if swarm.get("invite"):
        yield "invite", swarm["invite"]
    ready = [name for name, is_ready in (found.get("providers") or {}).items() if is_ready]
    yield "providers", ", ".join(ready) or "none is ready; see `shoal providers`"
    answers = ", ".join(f"{count} {tier}" for tier, count in (requests.get("answers") or {}).items())
    yield "answers", f"{answers or 'none yet'}; {requests.get('in_flight', 0)} in flight"
    if failures := requests.get("failures"):
        yield "failures", ", ".join(f"{count} {kind}" for kind, count in failures.items())
    for row in found.get("breakers") or ():
        where = row["provider"] + (f" ({row['model']})" if row.get("model") not in (None, "*") else "")
        wait = f"for {duration(float(row['until_s']))}" if row.get("until_s") else "until its next try"
        if row.get("state") != "closed":
            yield "left alone", f"{where} {wait}: {row['kind']}, {row['reason']}"
    cache = found.get("cache") or {}
    yield "cache", f"on, keys as {cache.get('mode')}" if cache.get("enabled") else "off"
    parts = [hardware.get("cpu") or "", f"{hardware.get('cores_usable', 0):g} cores"]
    parts += [gpu.get("name") or "" for gpu in hardware.get("gpus") or ()]
    available, total = load.get("memory_available_bytes") or 0, hardware.get("memory_bytes") or 0
    yield "machine", ", ".join([*parts, f"{size(available)} of {size(total)} memory available"])
