"""`shoal status`: what the running node is doing, on one screen."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from .cli import Command, common
from .exit_codes import ExitCode
from .failures import CommandError
from .figures import machine, speed, when
from .output import can_move, duration, print_facts, print_json, print_json_line, print_text, size, without_controls
from .reachable import in_a_line


@click.command(cls=Command, examples="shoal status\nshoal status --watch\nshoal status --json | jq -r .swarm.invite")
@click.option("--watch", "-w", is_flag=True, help="Show it again every second, until Ctrl-C.")
@click.option("--every", type=click.FloatRange(0.1, 3600), default=1.0, help="Seconds between two looks of --watch.")
@common
def command(watch: bool, every: float, as_json: bool, data_dir: Path | None) -> None:
    """Show what the running node is doing.

    The invite of a private swarm holds its key: give it only to those who shall belong.
    """
    from .client import find_node, look_up

    def look() -> dict[str, Any]:
        found: dict[str, Any] = look_up(data_dir, "/shoal/v1/status")
        # A private swarm's invite is not in the RPC's answer, but in a file that only the node's owner can read.
        swarm = found.setdefault("swarm", {})
        swarm["invite"] = swarm.get("invite") or find_node(data_dir).invite
        return found

    if watch:
        try:
            watching(look, every, as_json=as_json)
        except KeyboardInterrupt:
            if sys.stdout.isatty():
                print_text("\n")  # below the ^C
    elif as_json:
        print_json(look())
    else:
        print_facts(facts(look()))


def watching(look: Callable[[], dict[str, Any]], every: float, *, as_json: bool) -> None:
    """The same again and again: in place on a terminal, one after the other elsewhere.

    A node that goes away meanwhile is waited for.
    """
    clear = can_move(sys.stdout) and not as_json
    found: dict[str, Any] = {}
    while True:
        gone = ""
        try:
            found = look()
        except CommandError as error:
            if not found or error.code is not ExitCode.NO_NODE:
                raise
            gone = error.message
        if as_json:
            if not gone:
                print_json_line(found)
        elif clear:
            print_text(in_place(list(facts(found)), gone))
        elif not gone:
            print_facts(facts(found))
            print_text("\n")
        time.sleep(every)


def in_place(rows: list[tuple[str, Any]], gone: str) -> str:
    """A screen of facts, from the top left. Lines are cut to the terminal, which would scroll away otherwise."""
    width, height = shutil.get_terminal_size()
    names = max(len(name) for name, _ in rows)
    lines = [f"{name:<{names}}  {' '.join(without_controls(str(value)).split())}" for name, value in rows]
    if gone:
        lines = [f"{gone}; waiting for it", *lines]
    lines = lines[: max(1, height - 1)]
    cut = (line if len(line) < width else f"{line[: width - 2]}…" for line in lines)
    # The rest of each line and of the screen is cleared after it was written: no flicker.
    return "\x1b[H" + "".join(f"{line}\x1b[K\n" for line in cut) + "\x1b[J"


def relays(told: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The places behind relays, and what this node relays for others."""
    for place in told.get("places") or ():
        for address in place.get("addresses") or ():
            yield "behind relay", address
    for relay, problem in (told.get("problems") or {}).items():
        yield "no place", f"behind {relay}: {problem}"
    for relay, times in (told.get("lies") or {}).items():
        yield "lying relay", f"{relay} has led to another node than it said, {times} times"
    serves = told.get("serves")
    if serves is not None:
        carried = size(serves.get("carried_bytes", 0))
        nodes, lines = serves.get("reservations", 0), serves.get("circuits", 0)
        now = f"{lines} connection{'' if lines == 1 else 's'}"
        yield "relaying", f"for {nodes} node{'' if nodes == 1 else 's'}, {now} now, {carried} carried so far"


def refusals(told: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Why others do not take this node, and what to do."""
    from ..swarm.refusal import told as with_advice

    for reason, count in Counter(told.values()).items():
        yield "turned away", f"by {count} peer{'' if count == 1 else 's'}: {with_advice(reason)}"


def dhts(told: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What this node has announced where, and what it found there."""
    if swarm := told.get("swarm"):
        announced, found = swarm.get("announced") or {}, swarm.get("found") or {}
        said = f"{announced.get('models', 0)} models and {announced.get('answers', 0)} answers announced"
        got = f"{found.get('model', 0)} models and {found.get('answer', 0)} answers found"
        yield "DHT", f"nodes known: {swarm.get('peers', 0)}; {said}; {got}; {swarm.get('records', 0)} records kept"
    if (ipfs := told.get("ipfs")) is not None:
        counts = f"{ipfs.get('announced', 0)} answers announced, {ipfs.get('found', 0)} blocks found"
        yield "IPFS DHT", f"nodes known: {ipfs.get('peers', 0)}; {counts}" if ipfs.get("up") else "not up yet"


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
    peers = swarm.get("peers", 0)
    yield "swarm", f"{swarm.get('name')} ({private}{peers} {'peer' if peers == 1 else 'peers'} connected{state})"
    yield from refusals((swarm.get("counts") or {}).get("refused_by") or {})
    for address in swarm.get("addresses") or ():
        yield "listening", address
    yield from relays(swarm.get("relays") or {})
    if swarm.get("up"):
        places = (swarm.get("relays") or {}).get("places") or ()
        yield "reachable", in_a_line(swarm.get("reachability") or {}, len(places))
    yield from dhts(found.get("dht") or {})
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
    available, total = load.get("memory_available_bytes") or 0, hardware.get("memory_bytes") or 0
    yield "machine", ", ".join([*machine(hardware), f"{size(available)} of {size(total)} memory available"])
    if hardware.get("memory_gbs"):
        copied = f"all cores copy {hardware['memory_gbs']:.3g} GB/s of memory"
        yield "bandwidth", f"{copied}; {when(hardware.get('measured_at'))}"
    for row in found.get("rates") or ():
        yield "measured", f"{row.get('model')} by {row.get('provider')}: {speed(row)}; {when(row.get('at'))}"
