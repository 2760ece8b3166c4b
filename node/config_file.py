"""From a TOML file, the environment and the command line to a checked `Config`.

The command line wins over the environment, the environment over the file. Every fault is one line that names where the
value stands, its key, and what to do:

    /home/me/shoal.toml: rpc.listne: unknown key; did you mean listen?
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from . import config_env, paths
from .config import SECTIONS, Config, ConfigError, faults, is_secret
from .routing.routes import Target
from .swarm.rules import ShareLimits, ShareRule


class Override(NamedTuple):
    """A value from the command line: `option` names it in errors."""

    option: str
    value: Any


class Loaded(Struct, frozen=True, kw_only=True):
    """A checked configuration. `source`: the file it came from, or None; `origin`: where single keys came from."""

    config: Config
    source: Path | None
    data_dir: Path
    origin: dict[str, str] = {}
    warnings: tuple[str, ...] = ()

    def blame(self, key: str, message: str) -> ConfigError:
        """The error that says a key's value cannot be used, whoever finds that out."""
        return _fault(key, message, self.source, self.origin)


def load_config(
    path: Path | None = None,
    *,
    data_dir: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Override] | None = None,
) -> Loaded:
    """Read and check everything. `overrides` maps dotted keys to values. Raises ConfigError; touches nothing."""
    source = find_file(path, data_dir, environ)
    raw = _read(source) if source is not None else {}
    origin: dict[str, str] = {}
    for name, key, value in config_env.settings(environ):
        _put(raw, key, value, source)
        origin[key] = name
    for key, override in (overrides or {}).items():
        _put(raw, key, override.value, source)
        origin[key] = override.option
    for name, table in _tables(raw, "providers", source).items():
        if not isinstance(table, dict):
            raise _fault(f"providers.{name}", f"wants a table; write [providers.{name}]", source, origin)
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise _explain(error, raw, source, origin) from None
    for key, message in faults(config):
        raise _fault(key, message, source, origin)
    return Loaded(
        config=config,
        source=source,
        data_dir=paths.data_dir(data_dir, environ, config.node.data_dir),
        origin=origin,
        warnings=tuple(config_env.misspelt(environ)),
    )


def find_file(path: Path | None, data_dir: Path | None, environ: Mapping[str, str]) -> Path | None:
    """--config, else SHOAL_CONFIG, else config.toml in the data directory, else the platform's; None: none exists."""
    named = path if path is not None else (Path(environ["SHOAL_CONFIG"]) if environ.get("SHOAL_CONFIG") else None)
    if named is not None:
        return named.expanduser().absolute()
    for candidate in (paths.data_dir(data_dir, environ) / "config.toml", paths.default_config_file()):
        if candidate.is_file():
            return candidate
    return None


def configured_data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the node of this configuration keeps its things, whatever else is wrong in the file. Raises ConfigError.

    So that a slip in a file that the running node has not read yet does not keep its owner from asking it.
    """
    source = find_file(None, None, environ)
    raw = _read(source) if source is not None else {}
    node = raw.get("node", {})
    chosen = node.get("data_dir", "") if isinstance(node, dict) else None
    if not isinstance(chosen, str):
        return load_config(environ=environ).data_dir
    return paths.data_dir(None, environ, chosen)


def _read(source: Path) -> dict[str, Any]:
    try:
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{source}: there is no such file; start without --config to run with the defaults") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {paths.reason(error)}") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error), re.DOTALL)
        what = match[1] if match else str(error)
        where = f"line {match[2]}, column {match[3]}" if match and match[2] else "at its end"
        raise ConfigError(f"{source}: {where}: this is not TOML: {_one_line(what)}") from None


def _tables(raw: dict[str, Any], name: str, source: Path | None) -> dict[str, Any]:
    table = raw.get(name, {})
    if not isinstance(table, dict):
        raise _fault(name, f"wants a table; write [{name}]", source, {})
    return table


def _put(raw: dict[str, Any], key: str, value: Any, source: Path | None) -> None:
    table = raw
    *parents, last = key.split(".")
    for depth, name in enumerate(parents, 1):
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            dotted = ".".join(parents[:depth])
            raise _fault(dotted, f"wants a table; write [{dotted}]", source, {})
        table = inner
    table[last] = value


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _fault(key: str, message: str, source: Path | None, origin: Mapping[str, str]) -> ConfigError:
    bare = re.sub(r"\[\d+\]$", "", key)
    if bare in origin:
        return ConfigError(_one_line(f"{origin[bare]}: {message}"))
    return ConfigError(_one_line(f"{source or 'configuration'}: {key}: {message}"))


_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text in quotes",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "datetime": "a date",
    "date": "a date",
    "time": "a time",
}


def _explain(
    error: msgspec.ValidationError, raw: dict[str, Any], source: Path | None, origin: Mapping[str, str]
) -> ConfigError:
    """msgspec's message, which ends in ``- at `$.rpc.listen` ``, in the words of the configuration."""
    text, _, location = str(error).partition(" - at `$")
    key = location.rstrip("`").lstrip(".")
    if key.startswith("routes[...]"):  # msgspec does not name the key of a dictionary
        key = f"routes.{_bad_route(raw.get('routes'))}{key.removeprefix('routes[...]')}"
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text)
    if unknown:
        full = f"{key}.{unknown[1]}" if key else unknown[1]
        return _fault(full, "unknown key; " + _suggest(key, unknown[1]), source, origin)
    value = _value_at(raw, key)
    enum = re.fullmatch(r"Invalid enum value .*", text)
    if enum:
        message = f"{value!r} is not one of {', '.join(_choices(key))}"
    elif wrong := re.fullmatch(r"Expected `([^`]*)`, got `([^`]*)`", text):
        wanted = " or ".join(_TYPES.get(word, word) for word in wrong[1].split(" | ") if word != "null")
        message = f"wants {wanted}, got {_TYPES.get(wrong[2], wrong[2])}{_example(key)}"
    elif bound := re.fullmatch(r"Expected `(int|float)` (>=|<=|>|<) (.*)", text):
        words = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}[bound[2]]
        message = f"wants {_TYPES[bound[1]]} of {words} {bound[3].removesuffix('.0')}, got {value!r}"
    elif length := re.fullmatch(r"Expected `str` of length (>=|<=) (\d+)", text):
        words = {">=": "at least", "<=": "at most"}[length[1]]
        message = f"wants text of {words} {length[2]} characters"
    else:
        message = text
    return _fault(key, message, source, origin)


def _bad_route(routes: Any) -> str:
    for name, route in routes.items() if isinstance(routes, dict) else ():
        try:
            msgspec.convert(route, tuple[Target, ...])
        except msgspec.ValidationError:
            return str(name)
    return "..."


def _field(key: str) -> msgspec.structs.FieldInfo | None:
    section, _, name = re.sub(r"\[.*\]$", "", key).partition(".")
    if section not in SECTIONS:
        return None
    return next((f for f in msgspec.structs.fields(SECTIONS[section]) if f.name == name), None)


def _choices(key: str) -> list[str]:
    field = _field(key)
    kinds = [msgspec.inspect.type_info(field.type)] if field else []
    if kinds and isinstance(kinds[0], msgspec.inspect.Metadata):
        kinds = [kinds[0].type]
    if kinds and isinstance(kinds[0], msgspec.inspect.UnionType):
        kinds = list(kinds[0].types)
    choices: list[str] = []
    for kind in kinds:
        if isinstance(kind, msgspec.inspect.LiteralType):
            choices += [f'"{value}"' for value in kind.values]
        elif isinstance(kind, msgspec.inspect.VarTupleType):
            choices.append("a list of peer ids")
    return choices


def _example(key: str) -> str:
    field = _field(key)
    if field is None or field.default in (msgspec.NODEFAULT, None, (), "") or "[" in key:
        return ""
    return f"; for example {field.name} = {toml_value(field.default)}"


def _suggest(parent: str, name: str) -> str:
    """The remedy for an unknown key: the nearest one in its table, or the table where it belongs."""
    if parent.startswith("share"):
        table: type[Struct] = ShareLimits if ".models." in parent else ShareRule
    else:
        table = Target if parent.startswith("routes") else SECTIONS[parent] if parent else Config
    names = [f.name for f in msgspec.structs.fields(table)]
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {near[0]}?"
    homes = [f"{s}.{name}" for s, t in SECTIONS.items() if any(f.name == name for f in msgspec.structs.fields(t))]
    if homes:
        return f"did you mean {' or '.join(homes)}?"
    return ("known here: " if parent else "the tables are: ") + ", ".join(names)


def _value_at(raw: Any, key: str) -> Any:
    for part in re.findall(r"[^.\[\]]+", key):
        try:
            raw = raw[int(part)] if isinstance(raw, list | tuple) else raw[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return raw


# -- and back to TOML ------------------------------------------------------------------------------------------


def toml_value(value: Any) -> str:
    """A value as TOML writes it. TypeError for what TOML has no form for (None)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")  # a JSON string is a TOML basic string
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml_key(k)} = {toml_value(v)}" for k, v in value.items()) + " }" if value else "{}"
    raise TypeError(f"TOML has no {type(value).__name__}")


def toml_key(name: str) -> str:
    """A key as TOML writes it, in quotes where it needs them."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)


def effective(config: Config) -> dict[str, dict[str, Any]]:
    """What is in force, by section, with secrets replaced by "(hidden)" and unset keys left out."""
    shown: dict[str, dict[str, Any]] = {}
    for section, values in msgspec.to_builtins(config).items():
        if section == "providers":
            continue
        shown[section] = {
            name: "(hidden)" if value and is_secret(f"{section}.{name}") else value
            for name, value in values.items()
            if value is not None
        }
    for tables in ("routes", "share"):
        if not shown[tables]:
            del shown[tables]
    for provider, table in config.providers.items():
        key = f"providers.{provider}"
        shown[key] = {k: "(hidden)" if is_secret(f"{key}.{k}") else v for k, v in table.items()}
    return shown


def as_toml(config: Config) -> str:
    """`effective`, as a file."""
    tables = []
    for section, values in effective(config).items():
        name = ".".join(toml_key(part) for part in section.split(".", 1))
        tables.append("\n".join([f"[{name}]", *(f"{toml_key(k)} = {toml_value(v)}" for k, v in values.items())]))
    return "\n\n".join(tables) + "\n"
