"""Documentation and example files, rendered from the schema so that they cannot disagree with it.

python -m shoal.node.config_doc ROOT            writes docs/configuration.md and configs/*.toml under ROOT
python -m shoal.node.config_doc ROOT --check    exit status 1 and the names of files that are out of date
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from . import config_env
from .config import SECTIONS, Config
from .config_file import toml_value

WIDTH = 110


class Example(NamedTuple):
    """An example file: what it is for, in lines of a comment, and the keys that it sets."""

    about: str
    values: dict[str, dict[str, Any]]


EXAMPLES: dict[str, Example] = {
    "lone.toml": Example(
        "A node on its own: one endpoint for everything you can ask from this machine. Nothing is shared, and nothing "
        "listens beyond loopback.\n\n    shoal run --config configs/lone.toml",
        {
            "rpc": {"listen": "127.0.0.1:8642"},
            "router": {"forward": False},
            "cache": {"publish": False, "swarm_wait_ms": 0},
        },
    ),
    "private-swarm.toml": Example(
        "A swarm for people who know each other. Set the key before use (openssl rand -hex 32), the same on every "
        "node, here or in SHOAL_SWARM_KEY; who lacks it cannot even connect. Start the first node, give the invite "
        "that it prints to the others: `shoal join INVITE`, or `peers` below.\n\n"
        "    shoal run --config configs/private-swarm.toml",
        {
            "swarm": {"name": "my-swarm", "listen": ["/ip4/0.0.0.0/tcp/4642"], "peers": []},
            "cache": {"trust": "swarm"},
        },
    ),
    "relay.toml": Example(
        "A relay: a node with a public address that carries what others say to each other who sit behind routers. It "
        "needs no model. Give its invite (`shoal status` prints it) to the others.\n\n"
        "    shoal run --config configs/relay.toml",
        {
            "swarm": {"listen": ["/ip4/0.0.0.0/tcp/4642"]},
            "relay": {"serve": True, "reservations": 64, "circuits": 64, "bytes_per_s": 8_388_608.0},
            "providers.local_hf": {"enabled": False},
        },
    ),
    "share-local.toml": Example(
        "Let the peers of your swarm use the local model, two requests at a time.\n\n"
        "    shoal models add smollm2\n    shoal run --config configs/share-local.toml",
        {
            "swarm": {"listen": ["/ip4/0.0.0.0/tcp/4642"]},
            "providers.local_hf": {"share": True, "max_concurrent": 2},
        },
    ),
    "openrouter.toml": Example(
        "Answer through OpenRouter, and from the cache what was asked before. The credential comes from the "
        "environment (OPENROUTER_API_KEY), never from a file.\n\n"
        "    OPENROUTER_API_KEY=... shoal run --config configs/openrouter.toml",
        {
            "router": {"order": ["openrouter", "local_hf", "peers"]},
            "providers.openrouter": {"default_model": "openai/gpt-4o-mini"},
        },
    ),
    "kubo.toml": Example(
        "Also publish answers to public IPFS through your own Kubo daemon. Everybody can read what is published.\n\n"
        "    shoal run --config configs/kubo.toml",
        {"ipfs": {"kubo_api": "/ip4/127.0.0.1/tcp/5001"}},
    ),
}


def _unwrapped(kind: msgspec.inspect.Type) -> tuple[msgspec.inspect.Type, str]:
    if isinstance(kind, msgspec.inspect.Metadata):
        return kind.type, str((kind.extra_json_schema or {}).get("description", ""))
    return kind, ""


def _type_words(kind: msgspec.inspect.Type) -> str:
    match kind:
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            whole = isinstance(kind, msgspec.inspect.IntType)
            limits = ((">=", kind.ge), (">", kind.gt), ("<=", kind.le))
            bounds = [f"{sign} {_number(limit)}" for sign, limit in limits if limit is not None]
            return ", ".join(["whole number" if whole else "number", *bounds])
        case msgspec.inspect.StrType():
            return "text"
        case msgspec.inspect.LiteralType():
            return " or ".join(f'"{value}"' for value in kind.values)
        case msgspec.inspect.VarTupleType():
            return "list of texts"
        case msgspec.inspect.UnionType():
            return " or ".join(_type_words(t) for t in kind.types if not isinstance(t, msgspec.inspect.NoneType))
        case _:
            raise TypeError(f"no words for {kind}")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


class Key(NamedTuple):
    """One key of the schema, in words. `example` is None where the default is "unset"."""

    name: str
    kind: str
    default: Any
    description: str
    variable: str | None


def keys(section: str) -> Iterator[Key]:
    """The keys of a section, in the schema's order."""
    for field in msgspec.structs.fields(SECTIONS[section]):
        kind, description = _unwrapped(msgspec.inspect.type_info(field.type))
        variable = config_env.variable_of(f"{section}.{field.name}")
        yield Key(field.name, _type_words(kind), field.default, description, variable)


def _about(name: str) -> str:
    field = next(f for f in msgspec.structs.fields(Config) if f.name == name)
    return _unwrapped(msgspec.inspect.type_info(field.type))[1]


def _providers() -> str:
    return _about("providers")


ROUTES = """\
[routes]
fast = [{ provider = "desk", model = "qwen3-8b" }, { provider = "peers", model = "qwen3-8b" }]
"gpt-*" = [{ provider = "openrouter" }]
default = [{ provider = "local_hf", options = { temperature = 0 } }]"""


def _comment(text: str, indent: str = "") -> Iterator[str]:
    for line in text.split("\n"):
        if line.startswith("    ") or not line:
            yield f"{indent}# {line}".rstrip()
        else:
            yield from (f"{indent}# {part}" for part in textwrap.wrap(line, WIDTH - len(indent) - 2))


def example_file(name: str) -> str:
    """The text of configs/NAME: each key under its description."""
    about, values = EXAMPLES[name]
    lines = list(_comment(about))
    for section, table in values.items():
        lines += ["", f"[{section}]"]
        described = {key.name: key for key in keys(section)} if section in SECTIONS else {}
        for key, value in table.items():
            if key in described:
                lines += _comment(described[key].description)
            lines.append(f"{key} = {toml_value(value)}")
    return "\n".join(lines) + "\n"


def reference_file() -> str:
    """The text of configs/reference.toml: every key with its default, commented out."""
    lines = list(_comment("Every key, with its default. Take out the # before the ones that you change."))
    for section, kind in SECTIONS.items():
        lines += ["", *_comment((kind.__doc__ or "").strip()), f"[{section}]"]
        for key in keys(section):
            lines += _comment(key.description)
            shown = f"{key.name} = {toml_value(key.default)}" if key.default is not None else f"{key.name} ="
            lines.append(f"# {shown}" + (" (unset)" if key.default is None else ""))
    lines += ["", *_comment(_about("routes")), *(f"# {line}" for line in ROUTES.split("\n"))]
    lines += ["", *_comment(_providers()), "# [providers.local_hf]", "# share = false"]
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "<!-- Rendered from node/config.py by `python -m shoal.node.config_doc .`; change it there. -->",
        "",
        "`shoal run --config FILE` reads a TOML file. Without `--config` (or `SHOAL_CONFIG`), `config.toml` in the "
        "data directory is read, else the one in the platform's place for configuration; none need exist. The command "
        "line wins over the environment, the environment over the file. `shoal config check` checks a file, `shoal "
        "config show` prints what is in force. Files that work as they are stand in `configs/`.",
        "",
        "Every command takes `--config FILE` and `--data-dir DIR`: with what the node was started with, `shoal "
        "status`, `shoal ask`, `shoal doctor` and all the others mean that node.",
        "",
        "A fault is one line that names the file, the key and the remedy, and exit status 2:",
        "",
        "```",
        "/home/me/shoal.toml: rpc.listne: unknown key; did you mean listen?",
        "```",
    ]
    for section, kind in SECTIONS.items():
        lines += ["", f"## [{section}]", "", (kind.__doc__ or "").strip(), "", "| key | takes | default | meaning |"]
        lines.append("|---|---|---|---|")
        for key in keys(section):
            default = "unset" if key.default is None else f"`{toml_value(key.default)}`"
            meaning = key.description + (f" Variable: `{key.variable}`." if key.variable else "")
            lines.append(f"| `{key.name}` | {key.kind} | {default} | {meaning} |")
    lines += [
        "",
        "## [routes]",
        "",
        _about("routes"),
        "",
        "```toml",
        *ROUTES.split("\n"),
        "```",
        "",
        "A target names a `provider` (or `peers`, or one peer's id) and may set `model` (else the name that the caller "
        "used), `options` (for callers who do not set them), `weight` and `context_length`; docs/routing.md says how "
        "they are used. `shoal config check` finds a route that can never be served.",
        "",
        "## [providers.NAME]",
        "",
        _providers(),
        "What else a table may hold depends on the provider; `shoal providers` says which are ready and why others "
        "are not.",
        "",
        "## Environment variables",
        "",
        f"Each has the prefix `{config_env.PREFIX}`; the old prefix `{config_env.OLD_PREFIX}` is read as an alias "
        "where marked, and ours wins. An empty variable counts as unset. Booleans take 1/0, true/false, yes/no, "
        "on/off; anything else is an error.",
        "",
        "| variable | sets | old prefix too |",
        "|---|---|---|",
        "| `SHOAL_CONFIG` | the configuration file, as `--config` | no |",
        "| `SHOAL_DATA_DIR` | the data directory, as `--data-dir` | no |",
    ]
    for variable in config_env.VARIABLES:
        name = config_env.PREFIX + variable.name
        lines.append(f"| `{name}` | `{variable.key}` | {'yes' if variable.old else 'no'} |")
    for bare, provider in config_env.OF_PROVIDERS.items():
        also = f", `{bare}`" if bare.endswith("_KEY") else ""
        lines.append(f"| `{config_env.PREFIX}{bare}`{also} | read by the provider {provider} | yes |")
    return "\n".join(lines) + "\n"


def files() -> dict[str, str]:
    """Every rendered file: path under the repository's root -> text."""
    rendered = {"docs/configuration.md": page(), "configs/reference.toml": reference_file()}
    return rendered | {f"configs/{name}": example_file(name) for name in EXAMPLES}


def main(arguments: list[str]) -> int:
    root = Path(arguments[0] if arguments else ".")
    stale = [name for name, text in files().items() if not _same(root / name, text)]
    if "--check" in arguments:
        for name in stale:
            print(f"{name} is out of date; run: python -m shoal.node.config_doc .")
        return 1 if stale else 0
    for name in stale:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(files()[name], encoding="utf-8")
        print(f"wrote {name}")
    return 0


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
