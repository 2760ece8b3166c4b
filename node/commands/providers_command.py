"""`shoal providers`: who can generate text here and why others cannot; `shoal providers test` asks one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from .cli import Group, common, trio_run
from .exit_codes import ExitCode
from .failures import CommandError
from .found_engines import about, add, found_here, in_use, offer
from .found_engines import as_json as engine_json
from .output import duration, print_facts, print_json, print_table, print_text, without_controls

EXAMPLES = """\
shoal providers
shoal providers test openrouter      spends one tiny request
shoal providers add ollama           takes in an engine that runs here
shoal providers login openrouter     files its key in the system's keyring
shoal providers --json"""

SERVICE = "shoal"
"""What keys are filed under."""

SHOWN_MODELS = 4
TINY = "Reply with the single word: ready"
TINY_TOKENS = 64
"""Tokens of the tiny answer at most; a model that reasons needs some before it says anything."""


@click.group(cls=Group, examples=EXAMPLES, invoke_without_command=True)
@common
@click.pass_context
def command(ctx: click.Context, as_json: bool, data_dir: Path | None) -> None:
    """List the providers, which are ready, and why others are not."""
    if ctx.invoked_subcommand is not None:
        return
    from ..config_file import load_config
    from .client import look_up
    from .waiting import waiting

    found = look_up(data_dir, "/shoal/v1/providers")
    loaded = load_config(data_dir=data_dir)
    with waiting("looking for engines"):
        engines, tables = found_here(loaded, data_dir), loaded.config.providers
    if as_json:
        print_json(found | {"engines": [engine_json(engine, tables) for engine in engines]})
        return
    providers = found.get("providers", ())
    columns = ("provider", "ready", "shared", "load", "models", "about", "reason")
    print_table(columns, [row_of(provider) for provider in providers], empty="there are no providers")
    for provider in providers:
        backends = (provider.get("facts") or {}).get("backends")
        if backends:
            print_backends(provider, backends)
    fresh = [engine for engine in engines if not in_use(engine, tables)]
    for engine in fresh:
        print_text(f"found: {about(engine)}; add it: {offer(engine, fresh)}\n")


command.add_command(add)


def row_of(provider: Mapping[str, Any]) -> tuple[str, ...]:
    """A provider's line of the table."""
    facts = provider.get("facts") or {}
    names = [str(m.get("name", m) if isinstance(m, dict) else m) for m in provider.get("models") or ()]
    about = [str(provider.get("version") or ""), credit_of(facts.get("credit") or {}), str(facts.get("strategy") or "")]
    return (
        str(provider.get("name", "")),
        "ready" if provider.get("ready") else "no",
        "yes" if provider.get("share") else "no",
        load_of(facts),
        models_of(names, any_model=bool(provider.get("any_model"))),
        ", ".join(part for part in about if part),
        str(provider.get("reason") or ""),
    )


def models_of(names: Sequence[str], *, any_model: bool = False) -> str:
    """The first names, and how many more there are."""
    more = f"{len(names) - SHOWN_MODELS} more" if len(names) > SHOWN_MODELS else "any other" if any_model else ""
    return ", ".join([*names[:SHOWN_MODELS], *([more] if more else [])])


def load_of(facts: Mapping[str, Any]) -> str:
    """`2/8 +3`: running of how many at once, and how many wait."""
    if facts.get("running") is None:
        return ""
    waiting = facts.get("waiting") or 0
    return f"{facts['running']}/{facts.get('max_concurrent', '?')}" + (f" +{waiting}" if waiting else "")


def credit_of(credit: Mapping[str, Any]) -> str:
    """What is left of a key's credit (US dollars), where the vendor tells."""
    used, left, limit = (credit.get(name) for name in ("usage", "limit_remaining", "limit"))
    if isinstance(left, int | float) and isinstance(limit, int | float):
        return f"${left:.2f} of ${limit:.2f} left"
    return f"${used:.2f} used, no limit" if isinstance(used, int | float) else ""


def print_backends(provider: Mapping[str, Any], backends: Sequence[Mapping[str, Any]]) -> None:
    """The table of a pool's backends."""
    columns = (
        f"backends of {provider.get('name')}",
        *("kind", "state", "weight", "load", "others", "first token", "tokens/s", "answers", "failures"),
        *("models", "reason"),
    )
    rows = []
    for backend in backends:
        first, speed = backend.get("first_token_ms"), backend.get("tokens_per_s")
        kind = " ".join(str(part) for part in (backend.get("kind"), backend.get("version")) if part)
        rows.append(
            (
                backend.get("name", ""),
                kind,
                str(backend.get("state", "")).replace("_", "-"),
                f"{backend.get('weight', 1):g}",
                load_of(backend),
                backend.get("others", 0),
                "" if first is None else duration(first / 1000),
                "" if speed is None else f"{speed:.1f}",
                backend.get("answers", 0),
                backend.get("failures", 0),
                models_of([str(name) for name in backend.get("models") or ()]),
                backend.get("reason", ""),
            )
        )
    print_table(columns, rows, empty="there are no backends")


@command.command(
    "test", examples="shoal providers test openrouter\nshoal providers test local_hf --model smollm2 --json"
)
@click.argument("name")
@click.option("--model", "-m", help="The model; without it the provider's default.")
@common
@click.pass_context
def test(ctx: click.Context, name: str, model: str | None, as_json: bool, data_dir: Path | None) -> None:
    """Ask provider NAME one tiny question, past the cache: first token, speed, usage.

    It spends one request, with at most 64 tokens of an answer.
    """
    above = ctx.parent.params if ctx.parent is not None else {}
    found = trio_run(measure, data_dir or above.get("data_dir"), name, model)
    if as_json or above.get("as_json"):
        print_json(found)
        return
    usage = found["usage"] or {}
    cost = f", ${usage['cost']:.6f}" if isinstance(usage.get("cost"), int | float) else ""
    spent = f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens{cost}" if usage else "not told"
    speed = found["tokens_per_s"]
    facts = [
        ("provider", found["provider"]),
        ("model", found["model"] or "unknown"),
        ("first token", duration(found["first_token_ms"] / 1000)),
        ("whole answer", duration(found["ms"] / 1000)),
        ("speed", "too short to tell" if speed is None else f"{speed:.1f} tokens/s"),
        ("usage", spent),
    ]
    if found["dropped"]:
        facts.append(("left out", ", ".join(found["dropped"])))
    print_facts([*facts, ("said", without_controls(found["answer"]).strip()[:80] or f"nothing ({found['finish']})")])


async def measure(data_dir: Path | None, name: str, model: str | None) -> dict[str, Any]:
    """One request to one provider, and what it took. CommandError with the node's reason."""
    from .ask_command import Answer, body_of, stream
    from .client import connect

    answer = Answer()
    body = body_of(TINY, model=model, provider=name, max_tokens=TINY_TOKENS, fallback=False)
    async with connect(data_dir) as node:
        await stream(node, body, answer, cache_control="no-store", quiet=True)
    return measured(answer.as_json(), answer.shoal)


def measured(answer: Mapping[str, Any], shoal: Mapping[str, Any]) -> dict[str, Any]:
    """The figures: times in milliseconds as the node measured them, tokens a second after the first token."""
    route = shoal.get("route")
    last = route[-1] if isinstance(route, list) and route else {}
    first_ms = last.get("first_token_ms") or (answer.get("first_token_s") or answer.get("seconds") or 0) * 1000
    whole_ms = last.get("ms") or (answer.get("seconds") or 0) * 1000
    usage = answer.get("usage")
    tokens = (usage or {}).get("completion_tokens") or 0
    speed = (tokens - 1) / (whole_ms - first_ms) * 1000 if tokens > 1 and whole_ms > first_ms else None
    return {
        "provider": answer.get("provider"),
        "model": answer.get("model"),
        "first_token_ms": round(first_ms, 1),
        "ms": round(whole_ms, 1),
        "tokens_per_s": None if speed is None else round(speed, 1),
        "usage": usage,
        "dropped": list(last.get("dropped") or ()),
        "finish": answer.get("finish_reason"),
        "answer": answer.get("answer"),
    }


@command.command(
    "login", examples="shoal providers login openrouter\npass show openrouter | shoal providers login openrouter"
)
@click.argument("name")
@common
def login(name: str, as_json: bool, data_dir: Path | None) -> None:
    """File the API key of provider NAME in the system's keyring, for `api_key_keyring`.

    The key is asked for without showing it, or read from standard input. It stands in no file and no command line.
    """
    import sys

    from ...providers.base import ProviderError
    from ...providers.keyring_entry import store
    from ...providers.registry import canonical

    user = canonical(name)
    if sys.stdin.isatty():
        key = click.prompt(f"API key of {user}", hide_input=True, err=True).strip()
    else:
        key = sys.stdin.readline().strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise CommandError("that is no key; it must be one word of ASCII", ExitCode.USAGE)
    try:
        store(SERVICE, user, key)
    except ProviderError as error:
        raise CommandError(error.message, ExitCode.REFUSED) from None
    setting = f'api_key_keyring = "{SERVICE}/{user}"'
    if as_json:
        print_json({"provider": user, "api_key_keyring": f"{SERVICE}/{user}"})
    else:
        print_text(f"filed; now write  {setting}  into [providers.{user}] of the configuration\n")
