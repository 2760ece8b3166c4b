"""`shoal completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import os
from pathlib import Path

import click

from .cli import Command, cli, common
from .exit_codes import ExitCode
from .failures import CommandError
from .output import print_json, print_text

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = """\
shoal completion bash > ~/.local/share/bash-completion/completions/shoal
shoal completion zsh > ~/.zfunc/_shoal          with ~/.zfunc in fpath
shoal completion fish > ~/.config/fish/completions/shoal.fish"""


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("shell", required=False, type=click.Choice(SHELLS))
@common
def command(shell: str | None, as_json: bool, data_dir: Path | None) -> None:
    """Print the completion script for SHELL; without one, for the shell in SHELL."""
    from click.shell_completion import get_completion_class

    shell = shell or Path(os.environ.get("SHELL", "")).name
    kind = get_completion_class(shell) if shell in SHELLS else None
    if kind is None:
        raise CommandError("which shell? one of: " + ", ".join(SHELLS), ExitCode.USAGE)
    if shell == "bash":
        # click's own way runs bash for its version, and says something on stderr when it is too old.
        template = kind.source_template
        script = template % kind(cli, {}, "shoal", "_SHOAL_COMPLETE").source_vars()
    else:
        script = kind(cli, {}, "shoal", "_SHOAL_COMPLETE").source()
    # click's script for fish ends what is said of a command at its first comma.
    script = script.replace('(string split "," $completion)', '(string split -m 1 "," $completion)')
    if as_json:
        print_json({"shell": shell, "script": script})
    else:
        print_text(script + "\n")
