"""`shoal config`: is this file right, and what is in force."""

from __future__ import annotations

import os
from pathlib import Path

import click

from .cli import Command, Group, common
from .output import print_json, print_text

EXAMPLES = """\
shoal config init
shoal config init --example private-swarm
shoal config check configs/lone.toml
shoal config show
shoal config show --json"""


@click.group(cls=Group, examples=EXAMPLES, alone="show")
def command() -> None:
    """Begin, check or show the configuration."""


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
@common
def show(as_json: bool, data_dir: Path | None) -> None:
    """Print what is in force, from file, environment and defaults. Secrets are hidden."""
    from ..config_file import as_toml, effective, load_config

    loaded = load_config(data_dir=data_dir)
    if as_json:
        print_json(
            {"file": loaded.source and str(loaded.source), "data_dir": str(loaded.data_dir)} | effective(loaded.config)
        )
        return
    print_text(f"# file: {loaded.source or 'none'}\n# data directory: {loaded.data_dir}\n\n{as_toml(loaded.config)}")


@command.command(
    "init", cls=Command, examples="shoal config init\nshoal config init --example private-swarm ./shoal.toml"
)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--example", "-e", metavar="NAME", help="Begin with an example; `shoal config init -e help` lists them.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@common
def init(file: Path | None, example: str | None, force: bool, as_json: bool, data_dir: Path | None) -> None:
    """Write a configuration file to begin with: every key with its default, or an example.

    Without FILE it goes where `shoal run` looks for it. A private swarm's key is made anew.
    """
    from .. import paths
    from ..config_doc import EXAMPLES as FILES
    from ..config_doc import example_file, reference_file
    from .exit_codes import ExitCode
    from .failures import CommandError

    names = {name.removesuffix(".toml"): name for name in FILES}
    if example == "help":
        print_json({"examples": list(names)}) if as_json else print_text("".join(f"{name}\n" for name in names))
        return
    if example is not None and example not in names:
        raise CommandError(f"the examples are: {', '.join(names)}", ExitCode.USAGE)
    text = reference_file() if example is None else example_file(names[example])
    if example == "private-swarm":
        import secrets

        key = f'# The same on every node; whoever has it belongs.\nkey = "{secrets.token_hex(32)}"\n'
        text = text.replace("[swarm]\n", "[swarm]\n" + key, 1)
    named = file or (Path(os.environ["SHOAL_CONFIG"]) if os.environ.get("SHOAL_CONFIG") else None)
    target = named or (data_dir / "config.toml" if data_dir is not None else paths.default_config_file())
    if target.exists() and not force:
        raise CommandError(f"{target} is there already; --force replaces it", ExitCode.REFUSED)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        paths.write_private(target, text.encode(), replace=True)
    except OSError as error:
        raise CommandError(f"{target}: cannot be written: {paths.reason(error)}", ExitCode.USAGE) from None
    if as_json:
        print_json({"file": str(target), "example": example})
    else:
        shown = f" --config {target}" if named is not None else ""
        print_text(f"{target} is written; `shoal run{shown}` uses it\n")
