"""`shoal providers`: who can generate text here, and why others cannot."""

from __future__ import annotations

from pathlib import Path

import click

from .cli import Command, common
from .output import print_json, print_table


@click.command(cls=Command, examples="shoal providers\nshoal providers --json")
@common
def command(as_json: bool, data_dir: Path | None) -> None:
    """List the providers, which are ready, and why others are not."""
    from .client import look_up

    found = look_up(data_dir, "/shoal/v1/providers")
    if as_json:
        print_json(found)
        return
    rows = []
    for provider in found.get("providers", ()):
        state = "ready" if provider.get("ready") else "no"
        models = ", ".join(str(m.get("name", m) if isinstance(m, dict) else m) for m in provider.get("models") or ())
        share = "yes" if provider.get("share") else "no"
        rows.append((provider.get("name", ""), state, share, models, provider.get("reason") or ""))
    print_table(("provider", "ready", "shared", "models", "reason"), rows, empty="there are no providers")
