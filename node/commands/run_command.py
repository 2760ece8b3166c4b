"""`shoal run`: the daemon, in the foreground."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from .. import heap
from .cli import Command, common

EXAMPLES = """\
shoal run
shoal run --config configs/private-swarm.toml
shoal run --share local_hf --join INVITE
shoal run --json --rpc 127.0.0.1:0"""


@click.command(cls=Command, examples=EXAMPLES)
@click.option("--rpc", metavar="ADDR", help="Where the RPC listens, for example 127.0.0.1:8642; port 0: a free one.")
@click.option("--listen", metavar="MULTIADDR", multiple=True, help="Where peers may connect, /ip4/0.0.0.0/tcp/4642.")
@click.option("--join", metavar="INVITE", multiple=True, help="Join this swarm for this run.")
@click.option("--share", metavar="NAME", multiple=True, help="Let peers use this provider for this run.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Lowest level shown.")
@common
def command(
    rpc: str | None,
    listen: tuple[str, ...],
    join: tuple[str, ...],
    share: tuple[str, ...],
    log_level: str | None,
    as_json: bool,
    data_dir: Path | None,
) -> int:
    """Start a node on this machine, and keep it running until Ctrl-C."""
    heap.rest()  # before the imports, which make most of what a node consists of
    from ..config_file import Loaded, Override, load_config
    from ..daemon import run_daemon
    from .interrupts import LeftToTrio

    overrides: dict[str, Override] = {}
    if rpc is not None:
        overrides["rpc.listen"] = Override("--rpc", rpc)
    if listen:
        overrides["swarm.listen"] = Override("--listen", list(listen))
    if log_level is not None:
        overrides["log.level"] = Override("--log-level", log_level)

    def load(more: dict[str, Any] | None = None) -> Loaded:
        return load_config(data_dir=data_dir, environ=os.environ, overrides=overrides | (more or {}))

    loaded = load()
    if share:
        from ..provider_tables import table_name

        names = [table_name(loaded.config.providers, name) for name in share]
        loaded = load({f"providers.{name}.share": Override(f"--share {name}", True) for name in names})
    if not as_json:
        from .first_model import offer_first_model

        offer_first_model(loaded)
    with LeftToTrio():
        return run_daemon(loaded, environ=os.environ, joined=join, as_json=as_json)
