"""`shoal peers`: the other nodes of the swarm, as this one sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli import Command, common, trio_run
from .figures import machine, speed
from .output import duration, print_json, print_table, table_lines

COLUMNS = ("peer", "state", "rtt", "models", "load", "hardware", "has had", "note")
EMPTY = "no peers; get an invite from another node and run `shoal join INVITE`"
WATCH_S = 1.0


@click.command(cls=Command, examples="shoal peers\nshoal peers --watch\nshoal peers --json | jq -r '.peers[].peer'")
@click.option("--watch", is_flag=True, help="Keep the table up to date until Ctrl-C.")
@common
def command(watch: bool, as_json: bool, data_dir: Path | None) -> None:
    """List the peers of the running node: what they offer, how busy they are, and what each has had from here."""
    from .client import look_up

    if watch and as_json:
        raise click.UsageError("--watch is for people; ask for --json again and again instead.")
    found = look_up(data_dir, "/shoal/v1/peers")
    if as_json:
        print_json(found)
    elif watch:
        trio_run(keep_showing, data_dir)
    else:
        print_table(COLUMNS, [row(peer) for peer in found.get("peers", ())], empty=EMPTY)


async def keep_showing(data_dir: Path | None) -> None:
    """The table, once a second, in place."""
    import trio
    from rich.live import Live

    from .client import connect
    from .output import console

    async with connect(data_dir) as node:
        out = console()
        with Live(console=out, auto_refresh=False, transient=False) as live:
            while True:
                found = await node.get("/shoal/v1/peers")
                live.update(table([row(peer) for peer in found.get("peers", ())], out.width), refresh=True)
                await trio.sleep(WATCH_S)


def table(rows: list[tuple[str, ...]], width: int) -> Any:
    from rich.text import Text

    return Text.from_ansi("\n".join(table_lines(COLUMNS, rows, width, colours=True)) or EMPTY)


def load(told: dict[str, Any]) -> str:
    """How busy the peer is, as it says."""
    parts = [f"{told.get('running', 0)} running"] if told.get("running") else []
    parts += [f"{told['queued']} waiting"] if told.get("queued") else []
    cpu = told.get("cpu")
    parts += [f"{cpu:.0%} cpu"] if isinstance(cpu, int | float) else []
    return ", ".join(parts) or ("idle" if told else "")


def consumed(account: dict[str, Any]) -> str:
    """What the peer has had from this node."""
    if not account:
        return ""
    tokens = account.get("prompt_tokens", 0) + account.get("completion_tokens", 0)
    return f"{account.get('requests', 0)} requests, {tokens} tokens"


def named(model: Any) -> str:
    """A model with the speed that the peer says it has."""
    if not isinstance(model, dict):
        return str(model)
    told = speed({name: model.get(name) for name in ("decode_tps", "first_token_ms")})
    return str(model.get("name")) + (f" ({told})" if told else "")


def row(peer: dict[str, Any]) -> tuple[str, ...]:
    models = ", ".join(named(model) for model in peer.get("models") or ())
    hardware = peer.get("hardware") or {}
    rtt, connected = peer.get("rtt_s"), bool(peer.get("connected"))
    return (
        str(peer.get("peer", "")),
        (f"relayed by ...{str(peer.get('relay'))[-6:]}" if peer.get("via") == "relayed" else "connected")
        if connected
        else "away",
        duration(rtt) if isinstance(rtt, int | float) else "",
        models,
        load(peer.get("load") or {}) if connected else "",
        ", ".join(machine(hardware)),
        consumed(peer.get("consumed") or {}),
        str(peer.get("via_note") or "") if connected else str(peer.get("problem") or ""),
    )
