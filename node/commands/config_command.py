"""`shoal config`: is this file right, and what is in force."""

from __future__ import annotations

import os
from pathlib import Path

import click

from .cli import Command, Group, common
from .output import print_json, print_text

EXAMPLES = """\
shoal config check configs/lone.toml
shoal config show
shoal config show --json"""

config_option = click.option("--config", "path", type=click.Path(path_type=Path), metavar="FILE", help="This file.")


@click.group(cls=Group, examples=EXAMPLES)
def command() -> None:
    """Check or show the configuration."""


@command.command("check", cls=Command, examples="shoal config check\nshoal config check configs/private-swarm.toml")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@common
def check(file: Path | None, as_json: bool, data_dir: Path | None) -> None:
    """Check a configuration file, or the one that `shoal run` would use. Exit status 2 when it is wrong."""
    from ..config_file import load_config
    from ..provider_tables import build_registry, check_routes

    loaded = load_config(file, data_dir=data_dir)
    check_routes(loaded, build_registry(loaded, os.environ))
    source = str(loaded.source) if loaded.source else None
    if as_json:
        print_json({"ok": True, "file": source, "data_dir": str(loaded.data_dir), "warnings": loaded.warnings})
        return
    for warning in loaded.warnings:
        click.echo(f"note: {warning}", err=True)
    print_text(f"{source or 'no file: the defaults'}: in order\n")


@command.command("show", cls=Command, examples="shoal config show --config configs/lone.toml")
@config_option
@common
def show(path: Path | None, as_json: bool, data_dir: Path | None) -> None:
    """Print what is in force, from file, environment and defaults. Secrets are hidden."""
    from ..config_file import as_toml, effective, load_config

    loaded = load_config(path, data_dir=data_dir)
    if as_json:
        print_json(
            {"file": loaded.source and str(loaded.source), "data_dir": str(loaded.data_dir)} | effective(loaded.config)
        )
        return
    print_text(f"# file: {loaded.source or 'none'}\n# data directory: {loaded.data_dir}\n\n{as_toml(loaded.config)}")
