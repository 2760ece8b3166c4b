"""`shoal route last`: who was tried for the last answer, why each was left, and what that cost in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..routing.speed import SLACK_S, SLOW_HERE
from .cli import Command, Group, common
from .figures import speed, when
from .output import duration, print_facts, print_json, print_table

COLUMNS = ("provider", "model", "outcome", "first token", "took", "went on by", "why")


@click.group(cls=Group, alone="last", examples="shoal route last\nshoal route last --json")
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
        *(("engine here" if at == 0 else "", text) for at, text in enumerate(engines(found.get("engines") or ()))),
    ]


def engines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Engines of this machine that have the model, the one first that is asked first, with what was measured."""
    known = [row for row in rows if isinstance(row.get("expected_s"), int | float)]
    best = min((row["expected_s"] for row in known), default=None)
    lines = []
    for row in rows:
        name = "/".join(filter(None, (row.get("provider"), row.get("model"))))
        if row not in known:
            lines.append(f"{name}: not measured yet")
            continue
        told = ", ".join(filter(None, (speed(row), when(row.get("measured_at")))))
        slower = best is not None and row["expected_s"] > SLOW_HERE * best + SLACK_S
        lines.append(f"{name}: {told}{'; slower, so asked after the others' if slower else ''}")
    return lines


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
