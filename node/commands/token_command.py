"""`shoal token`: make, list and revoke access tokens. A running node knows of a change at once."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from .cli import Group, common
from .exit_codes import ExitCode
from .failures import CommandError
from .output import print_json, print_table


@click.group(
    cls=Group,
    alone="list",
    examples="shoal token new ci --models smollm2 --rpm 60 --expires 30d\nshoal token list\nshoal token revoke ci",
)
def command() -> None:
    """Make, list and revoke tokens for those who ask this node from other machines."""


@command.command(examples="shoal token new ci --models smollm2 --rpm 60 --expires 30d\nshoal token new me --admin")
@click.argument("name")
@click.option("--models", metavar="NAME[,NAME]", help="The only models it may ask for; * stands for anything.")
@click.option("--rpm", type=click.IntRange(1, 1_000_000), help="Requests a minute.")
@click.option("--expires", metavar="TIME", help="When it ends: 12h, 30d, or a date (2030-01-31).")
@click.option("--admin", is_flag=True, help="It may also change the node: join a swarm, pin and forget answers.")
@common
def new(
    name: str,
    models: str | None,
    rpm: int | None,
    expires: str | None,
    admin: bool,
    as_json: bool,
    data_dir: Path | None,
) -> None:
    """Make a token and print it, once: only its digest is kept."""
    from ..tokens import TokenError

    until = expiry(expires, time.time()) if expires is not None else None
    wanted = [model.strip() for model in (models or "").split(",") if model.strip()]
    if models is not None and not wanted:  # a variable that was empty must not make a token for everything
        raise CommandError("--models names no model; leave it out for a token for any", ExitCode.USAGE)
    book = _book(data_dir, make=True)
    try:
        token, secret = book.new(name, models=wanted, rpm=rpm, expires=until, admin=admin)
    except TokenError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    if as_json:
        print_json({"id": token.id, "name": token.name, "token": secret})
    else:
        click.echo(secret)
        click.echo("This is shown once. Clients send it as their API key.", err=True)


@command.command("list", examples="shoal token list\nshoal token list --json")
@common
def list_(as_json: bool, data_dir: Path | None) -> None:
    """List the tokens, with what was used on them."""
    from ..tokens import TokenError, TokenUsage

    book = _book(data_dir)
    try:
        tokens, usage, now = book.all(), book.usage(), time.time()
    except TokenError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    found: list[dict[str, Any]] = []
    for token in tokens:
        used = usage.get(token.id, TokenUsage())
        found.append(
            {
                "id": token.id,
                "name": token.name,
                "models": list(token.models),
                "rpm": token.rpm,
                "admin": token.admin,
                "created": token.created,
                "expires": token.expires,
                "expired": token.expired(now),
                "requests": used.requests,
                "refused": used.refused,
                "prompt_tokens": used.prompt_tokens,
                "completion_tokens": used.completion_tokens,
                "last": used.last or None,
            }
        )
    if as_json:
        print_json({"tokens": found})
        return
    columns = ("name", "models", "limit", "expires", "requests", "tokens in/out", "last used")
    empty = "no tokens; make one with `shoal token new NAME`"
    print_table(columns, [_row(each) for each in found], empty=empty)


@command.command(examples="shoal token revoke ci")
@click.argument("name")
@common
def revoke(name: str, as_json: bool, data_dir: Path | None) -> None:
    """End a token, by its name or id."""
    from ..tokens import TokenError

    try:
        token = _book(data_dir).revoke(name)
    except TokenError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    if as_json:
        print_json({"id": token.id, "name": token.name})
    else:
        click.echo(f"{token.name} is revoked.")


def expiry(text: str, now: float) -> float:
    """ "12h", "30d" or "2030-01-31" (UTC, its beginning) as a Unix time in seconds, which must lie ahead."""
    if match := re.fullmatch(r"(\d{1,6})([hdw])", text):
        return now + int(match[1]) * {"h": 3600, "d": 86400, "w": 604800}[match[2]]
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        message = f"{text!r} is no time; write 12h, 30d, 8w or a date like 2030-01-31"
        raise CommandError(message, ExitCode.USAGE) from None
    until = (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    if until <= now:
        raise CommandError(f"{text} has passed already; choose a later time", ExitCode.USAGE)
    return until


def _row(token: dict[str, Any]) -> tuple[str, ...]:
    return (
        token["name"] + (" (admin)" if token["admin"] else ""),
        ", ".join(token["models"]) or "any",
        f"{token['rpm']}/min" if token["rpm"] else "none",
        "never" if token["expires"] is None else ("ended " if token["expired"] else "") + _date(token["expires"]),
        str(token["requests"]),
        f"{token['prompt_tokens']} / {token['completion_tokens']}",
        _date(token["last"]) if token["last"] else "never",
    )


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _book(data_dir: Path | None, *, make: bool = False) -> Any:
    from .. import paths
    from ..tokens import TokenBook
    from .client import find_data_dir

    data = find_data_dir(data_dir)
    if make:
        paths.make_data_dir(data)
    return TokenBook(data)
