"""`shoal route last`: who was tried for the last answer, why each was left, and what that cost in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli import Command, Group, common
from .output import duration, print_facts, print_json, print_table

COLUMNS = ("provider", "model", "outcome", "first token", "took", "went on by", "why")


@click.group(cls=Group, examples="shoal route last\nshoal route last --json")
def command() -> None:
    """Show how answers came about."""


@command.command("last", cls=Command, examples="shoal route last\nshoal route last --json | jq -r '.attempts[].reason'")
@common
def last(as_json: bool, data_dir: Path | None) -> None:
    """Show the route of the last answer that the running node gave, or could not give."""
    from .client import look_up

    found = look_up(data_dir, "/shoal/v1/route/last")
    if as_json:
        print_json(found)
        return
    print_facts(facts(found))
    print_table(COLUMNS, [row(attempt) for attempt in found.get("attempts") or ()], empty="no provider was asked")


def facts(found: dict[str, Any]) -> list[tuple[str, Any]]:
    """The lines above the table: (name, value)."""
    who = found.get("provider") or "nobody"
    model, peer = found.get("model"), found.get("peer")
    by = who + (f" with {model}" if model else "") + (f", at {peer}" if peer else "")
    return [
        ("asked for", found.get("asked_model") or "any model"),
        ("outcome", found.get("outcome")),
        ("answered by", by),
        ("cache", found.get("cache")),
        ("took", duration(float(found.get("ms") or 0) / 1000)),
        *([("answer", found["cid"])] if found.get("cid") else []),
    ]


def row(attempt: dict[str, Any]) -> tuple[str, ...]:
    first = attempt.get("first_token_ms")
    left_out = ", ".join(attempt.get("dropped") or ())
    return (
        "/".join(filter(None, (attempt.get("provider"), attempt.get("via")))),
        str(attempt.get("model") or ""),
        str(attempt.get("outcome", "")),
        duration(first / 1000) if isinstance(first, int | float) else "",
        duration(float(attempt.get("ms") or 0) / 1000),
        str(attempt.get("way") or ""),
        str(attempt.get("reason") or (f"left out: {left_out}" if left_out else "")),
    )
